"""Does an explanation say what a model really reads? Rankings of tokens, tested by taking them out and in.

An explanation ranks the tokens of a prompt. *Deletion* takes them out in this order and measures the answer each time;
*insertion* begins with none of them (Petsiuk et al. 2018, section 4). A ranking that is right lets the answer go soon
and come soon, so the area below its insertion curve minus that below its deletion curve is large. Whether it is large
is said by orders without knowledge: random ones, and the nearest token first. ::

    found = compare(model, ["The capital of France is", ...])
    found.verdict("attention")              # "explains": better than random orders and than nearness, within 95 %
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.batch import Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, Measure, place_of
from pellucid.interpret.gradients import gradient_times_activation, integrated_gradients
from pellucid.interpret.measures import rollout
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.patching import embedded
from pellucid.interpret.record import capture
from pellucid.nn.attention import Attention
from pellucid.nn.models import Decoder, Encoder
from pellucid.predicates.algebra import Ahead

METHODS = ("attention", "rollout", "gradient × input", "integrated gradients", "leave-one-out")
NEARNESS = "nearness"  # the token where the answer is read first, then those before it
FILLERS, TOKENS = 4, 1 << 12  # random texts that absent tokens are taken from; tokens of one batch
Verdict = Literal["explains", "no better than nearness", "no better than random orders"]


@dataclass(frozen=True)
class Curves:
    """One prompt, its tokens ranked by each method and by nearness, and the answer's measure as they go and come.

    importance: of each token. deletion, insertion: the measure with 0, 1, … tokens out, or in. random: the areas
    (``area``) of random orders. answer: the token that is measured.
    """

    answer: int
    importance: Mapping[str, Float[Tensor, " time"]]
    deletion: Mapping[str, Float[Tensor, " points"]]
    insertion: Mapping[str, Float[Tensor, " points"]]
    random: Float[Tensor, " orders"]

    def area(self, method: str) -> float:
        """The mean of the insertion curve minus that of the deletion curve: the larger, the better is the ranking."""
        return float(_area(self.insertion[method], self.deletion[method]))

    def beats_random(self, method: str) -> float:
        """The share of random orders that the method's ranking is better than."""
        return float((self.random < self.area(method)).double().mean())


@dataclass(frozen=True)
class Faithfulness:
    """Areas (``Curves.area``) of several prompts: of each method, of nearness, and the mean of random orders."""

    areas: Mapping[str, Float[Tensor, " prompt"]]
    random: Float[Tensor, " prompt"]

    def margin(self, method: str, over: str = "random") -> tuple[float, float, float]:
        """By how much a method is better than random orders, or than another one: the mean over prompts, and its
        interval of 95 % by 2,000 bootstrap samples of the prompts.

        Raises UsageError for an unknown method, and where a single prompt gives no interval.
        """
        for name in (method, over):
            if name not in self.areas and name != "random":
                raise UsageError(f"method = {name!r}", f"choose one of {', '.join((*self.areas, 'random'))}")
        if len(self.random) < 2:
            raise UsageError("one prompt gives no interval", "compare over several prompts")
        better = self._of(method) - self._of(over)
        drawn = torch.randint(len(better), (2000, len(better)), generator=torch.Generator().manual_seed(0))
        low, high = better[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=better.dtype)).tolist()
        return float(better.mean()), low, high

    def verdict(self, method: str) -> Verdict:
        """Whether the whole interval of the method's margins lies above zero, over both orders without knowledge."""
        if self.margin(method)[1] <= 0:
            return "no better than random orders"
        return "explains" if self.margin(method, NEARNESS)[1] > 0 else "no better than nearness"

    def _of(self, name: str) -> Float[Tensor, " prompt"]:
        return self.random if name == "random" else self.areas[name]


@checked(model="give a decoder, e.g. of pellucid.load")
def compare(
    model: Decoder | Encoder,
    prompts: Sequence[Prompt],
    *,
    methods: Sequence[str] = METHODS,
    measure: Measure = "prob",
    read: int = -1,
    orders: int = 8,
    seed: int = 0,
) -> Faithfulness:
    """``curves`` of several prompts, each for the answer that the model itself finds likeliest. Raises as that does."""
    if not prompts:
        raise UsageError("there are no prompts", "give at least two, for an interval")
    found = [
        curves(model, prompt, methods=methods, measure=measure, read=read, orders=orders, seed=seed + number)
        for number, prompt in enumerate(prompts)
    ]
    areas = {name: torch.tensor([each.area(name) for each in found]).double() for name in (*methods, NEARNESS)}
    return Faithfulness(areas, torch.stack([each.random.mean() for each in found]).double())


@checked(model="give a decoder, e.g. of pellucid.load")
def curves(
    model: Decoder | Encoder,
    prompt: Prompt,
    right: int | None = None,
    wrong: int | None = None,
    *,
    methods: Sequence[str] = METHODS,
    measure: Measure = "prob",
    read: int = -1,
    orders: int = 8,
    seed: int = 0,
) -> Curves:
    """Rank the tokens of one prompt by each method, and take them out and put them in by these ranks.

    right, wrong, measure, read: the answer, as of ``patching.patch``; by default the token that the model finds
    likeliest. In the place of a token that is out stands a random one; measures are means over FILLERS draws.
    methods: some of METHODS. orders: random orders to compare with. Tokens behind ``read`` of a model that cannot look
    ahead are left out. Raises UsageError for several prompts, an unknown method, and a model without attention maps
    where a method reads them.
    """
    ids = rows_of(model, prompt)
    _refuse(model, ids, methods, orders)
    place, generator = place_of(ids, read), torch.Generator().manual_seed(seed)
    ids = ids[:, : place + 1] if isinstance(model, Decoder) and model.spec.ahead == Ahead() else ids
    # a ranking that was made with some random texts is tested with others, so that it gains nothing by their chance
    game, tested = (_Game.of(model, ids, place, generator) for _ in range(2))
    if right is None:
        right = game.likeliest()
    answer = Answer.of(model, right, wrong, 1, measure)
    importance = {name: _importance(name, game, answer) for name in methods}
    time = ids.shape[1]
    importance[NEARNESS] = -(torch.arange(time) - place).abs().double()
    drawn = [torch.randperm(time, generator=generator) for _ in range(orders)]
    ranks = [*(score.argsort(descending=True, stable=True) for score in importance.values()), *drawn]
    present = torch.stack([_first(rank) for rank in ranks])  # (orders, points, time): insertion; deletion is the rest
    insertion, deletion = tested.scores(torch.stack((present, ~present)).flatten(0, 2), answer).view(2, len(ranks), -1)
    names = list(importance)
    return Curves(
        answer=right,
        importance=importance,
        deletion=dict(zip(names, deletion, strict=False)),
        insertion=dict(zip(names, insertion, strict=False)),
        random=_area(insertion[len(names) :], deletion[len(names) :]),
    )


@dataclass(frozen=True)
class _Game:
    """A prompt whose tokens may be there or not. x: what enters the first block; absent: the same of random texts."""

    model: Decoder | Encoder
    ids: Int[Tensor, "1 time"]
    place: int
    x: Float[Tensor, "1 time d_model"]
    absent: Float[Tensor, "fillers time d_model"]

    @staticmethod
    @torch.no_grad()
    def of(model: Decoder | Encoder, ids: Int[Tensor, "1 time"], place: int, generator: torch.Generator) -> _Game:
        fillers = torch.randint(model.spec.vocab_size, (FILLERS, ids.shape[1]), generator=generator)
        with evaluating(model):
            return _Game(model, ids, place, embedded(model, ids), embedded(model, fillers.to(model.device)))

    def scores(self, present: Bool[Tensor, "rows time"], answer: Answer) -> Float[Tensor, " rows"]:
        """The answer's measure with some tokens present; equal rows are run once."""
        distinct, which = present.unique(dim=0, return_inverse=True)
        found: list[Tensor] = []
        for rows in distinct.split(max(1, TOKENS // (FILLERS * self.ids.shape[1]))):
            x = torch.where(rows.to(self.x.device)[:, None, :, None], self.x, self.absent)  # (rows, fillers, time, d)
            said = self._logits(x.flatten(0, 1)).unflatten(0, (-1, FILLERS))
            found.append(answer(said[:, :, None])[..., 0].mean(1))
        return torch.cat(found).cpu().double()[which]

    def likeliest(self) -> int:
        """The token that the model would say."""
        return int(self._logits(self.x).argmax())

    @torch.no_grad()
    def _logits(self, x: Float[Tensor, "rows time d_model"]) -> Float[Tensor, "rows vocab"]:
        with evaluating(self.model):
            end = self.model.blocks_from(x, Tokens.plain(*x.shape[:2], device=x.device))[:, self.place, None]
            return self.model.unembed(end)[:, 0]


def _importance(method: str, game: _Game, answer: Answer) -> Float[Tensor, " time"]:
    """How much each token counts for the answer, as one method says."""
    model, ids, time = game.model, game.ids, game.ids.shape[1]
    options: dict[str, Any] = {
        "right": answer.right,
        "wrong": answer.wrong,
        "measure": answer.measure,
        "read": game.place,
    }
    if method == "leave-one-out":
        rows = torch.cat((torch.ones(1, time, dtype=torch.bool), ~torch.eye(time, dtype=torch.bool)))
        scores = game.scores(rows, answer)
        return scores[0] - scores[1:]
    if method == "gradient × input":
        return gradient_times_activation(model, ids, **options).parts[0].cpu().double()
    if method == "integrated gradients":
        return (
            integrated_gradients(model, ids, baseline=game.absent.mean(0, keepdim=True), **options)
            .parts[0]
            .cpu()
            .double()
        )
    patterns = list(capture(model, ids, "blocks.*.attn.pattern").values())
    if method == "rollout":
        return rollout(patterns)[0, -1, game.place].cpu().double()
    return torch.stack([pattern[0, :, game.place].double().mean(0) for pattern in patterns]).mean(0).cpu()


def _first(rank: Int[Tensor, " time"]) -> Bool[Tensor, "points time"]:
    """Which tokens are present when the first 0, 1, …, time of an order are."""
    behind = torch.empty_like(rank).scatter_(0, rank, torch.arange(len(rank)))
    return behind[None] < torch.arange(len(rank) + 1)[:, None]


def _area(insertion: Float[Tensor, "*orders points"], deletion: Float[Tensor, "*orders points"]) -> Tensor:
    """The area between both curves, by the trapezium rule, over a width of 1."""
    steps = insertion.shape[-1] - 1
    return (torch.trapezoid(insertion, dim=-1) - torch.trapezoid(deletion, dim=-1)) / steps


def _refuse(model: Decoder | Encoder, ids: Int[Tensor, "batch time"], methods: Sequence[str], orders: int) -> None:
    if len(ids) != 1 or orders < 1:
        raise UsageError(
            f"{len(ids)} prompts, orders = {orders}", "explain one prompt, beside one random order at least"
        )
    unknown = [method for method in methods if method not in METHODS]
    if unknown or len(set(methods)) < len(methods) or not methods:
        raise UsageError(f"methods = {list(methods)}", f"choose some of {', '.join(METHODS)}, each once")
    maps = [isinstance(block.mixer, Attention) for block in model.layers]
    if "rollout" in methods and not all(maps):
        raise UsageError("rollout needs an attention map in every layer", "leave it out of methods")
    if "attention" in methods and not any(maps):
        raise UsageError("no layer of this model has an attention map", "leave 'attention' out of methods")
