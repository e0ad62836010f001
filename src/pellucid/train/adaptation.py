"""What is asked of a run that trains an adapter: which modules it acts on, how, and on what base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pellucid.train.options import COUNT, POSITIVE, Part, option

if TYPE_CHECKING:
    from pellucid.surgery.lora import LoRA


@dataclass(frozen=True, kw_only=True)
class Adaptation(Part):
    """The adapter that is trained in place of the model's own weights; without ``targets``, there is none."""

    targets: tuple[str, ...] = option(
        "Train a low-rank adapter of these modules, by name or pattern, e.g. '*blocks.*', and nothing else of the "
        "model that the run goes on from.",
        default=(),
        flag="lora",
        later=True,
    )
    rank: int = option("Rank of the adapter.", COUNT, default=8, flag="lora_rank", later=True)
    alpha: float = option(
        "Its update is multiplied by this over the rank (with rslora, over the root of it).",
        POSITIVE,
        default=16.0,
        flag="lora_alpha",
        later=True,
    )
    kind: Literal["lora", "rslora", "dora"] = option(
        "lora (Hu et al. 2021), rslora (Kalajdzievski 2023) or dora (Liu et al. 2024).",
        default="lora",
        flag="lora_kind",
        later=True,
    )
    also: tuple[str, ...] = option(
        "Parameters that are trained whole beside it, by name or pattern.", default=(), flag="lora_also", later=True
    )
    quantised: bool = option(
        "Leave the weights of the .gguf file below the adapter as small as they are there.",
        default=False,
        flag="lora_quantised",
        later=True,
    )

    @property
    def asked(self) -> LoRA:
        """What ``surgery.lora.adapt`` is asked for."""
        from pellucid.surgery.lora import LoRA

        return LoRA(
            targets=self.targets,
            rank=self.rank,
            alpha=self.alpha,
            rslora=self.kind == "rslora",
            dora=self.kind == "dora",
            also=self.also,
        )
