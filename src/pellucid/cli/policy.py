"""Flags that choose how a text is written, for every command that writes one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from pellucid.errors import UsageError

if TYPE_CHECKING:
    from pellucid.generate.policy import Policy
    from pellucid.generate.sample import Sampling

Stopping: TypeAlias = Literal["false", "true", "never"]
STOPPINGS: dict[str, bool | Literal["never"]] = {"false": False, "true": True, "never": "never"}
BEAMS = 4  # what a remedy suggests


@dataclass(frozen=True)
class BeamOptions:
    """Beam search: the likeliest texts, searched for instead of drawn."""

    beams: int | None = field(
        default=None,
        metadata={
            "help": "Search with this many candidates, and draw nothing; 4 to 6 are usual.",
            "alias": "--beam",
        },
    )
    length_penalty: float = field(
        default=1.0, metadata={"help": "Rank texts by ln p / length^this: 0 prefers short ones, above 1 long ones."}
    )
    early_stopping: Stopping = field(
        default="false",
        metadata={
            "help": "End when so many texts have ended (true), when the best candidate is no better than these now"
            " (false), or only when none can become better (never)."
        },
    )


@dataclass(frozen=True)
class SpeculationOptions:
    """Speculative decoding: several tokens are guessed and read at once; the distribution stays the same."""

    draft: str | None = field(
        default=None, metadata={"help": "A smaller model with the same vocabulary that guesses what comes."}
    )
    lookup: bool = field(
        default=False, metadata={"help": "Guess what followed the newest words where they stood before in the text."}
    )
    guesses: int = field(default=4, metadata={"help": "How many tokens are guessed at a time."})


def sampled(sampling: Sampling, speculation: SpeculationOptions) -> Policy:
    """The policy that draws with ``sampling``, by guesses where asked. Raises UsageError for flags that clash."""
    from pellucid.cli.opening import open_model
    from pellucid.generate.speculate import Speculation

    if speculation.draft is not None and speculation.lookup:
        raise UsageError("--draft and --lookup are both given", "guesses come from one place: leave one out")
    if speculation.draft is None and not speculation.lookup:
        if speculation.guesses != SpeculationOptions().guesses:
            raise UsageError("--guesses is given, but nobody guesses", "add --lookup, or --draft MODEL")
        return sampling
    draft = None if speculation.draft is None else open_model(speculation.draft)
    return Speculation(draft, speculation.guesses, sampling=sampling)


def searched(sampling: Sampling, default: Sampling, beams: BeamOptions, speculation: SpeculationOptions) -> Policy:
    """The policy of ``generate``'s flags. Raises UsageError for flags that clash, as ``sampled`` does.

    default: the sampling of somebody who gives no flags.
    """
    from dataclasses import replace

    from pellucid.generate.beam import Beams

    if beams.beams is None:
        for name, default_value in (("length_penalty", 1.0), ("early_stopping", "false")):
            if getattr(beams, name) != default_value:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is for beam search", f"add --beams {BEAMS}, or leave it out")
        return sampled(sampling, speculation)
    if speculation != SpeculationOptions():
        raise UsageError("--beams searches, and takes no guesses", "leave out --draft, --lookup and --guesses")
    greedy = replace(default, temperature=0.0, repetition_penalty=sampling.repetition_penalty)
    if replace(sampling, temperature=0.0) != greedy or sampling.temperature not in (0, default.temperature):
        raise UsageError("--beams searches, and draws nothing", "leave out --temperature, --top-k, --top-p and --min-p")
    return Beams(beams.beams, beams.length_penalty, STOPPINGS[beams.early_stopping], sampling.repetition_penalty)
