"""Rotary positions in published configs, both ways: the base, what share of a head turns, and the rules of scaling."""

from __future__ import annotations

import math
from typing import Any

from pellucid.families.config import Config, brief
from pellucid.spec import ByPartsScaling, LinearScaling, RotaryScaling, RotarySpec, YaRNScaling

# how the weights came about; a name that stands in published files and that transformers reads nowhere
IGNORED = {"finetuned", "attn_factor"}


def _scaling(read: Config, context: int) -> RotaryScaling | None:
    """The rule that ``rope_type`` names, with its numbers. Raises CheckpointError for a rule that no spec expresses.

    context: of the model, where the config gives no original one.
    """
    kind = read.take("rope_type", str, read.take("type", str, "default"))
    read.expect("type", None, kind)
    read.known |= IGNORED
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        said = "rope_type" if "rope_type" in read.values else "type"  # as older files have it
        raise read.refuse(said, "is not supported", "known: default, linear, llama3, yarn")
    original = context if kind == "linear" else read.count("original_max_position_embeddings", context)
    factor = read.take("factor", float, context / original if kind == "yarn" else None)
    if factor < 1:
        raise read.refuse("factor", "is below 1", "the config is damaged")
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "llama3":
        return ByPartsScaling(
            factor, original, read.take("low_freq_factor", float), read.take("high_freq_factor", float)
        )
    usual = 0.1 * math.log(factor) + 1.0
    sharpened = read.take("attention_factor", float, _sharpening(read, factor))
    if sharpened <= 0:
        said = "attention_factor" if "attention_factor" in read.values else "mscale"
        raise read.refuse(said, "must be above 0", "the config is damaged")
    return YaRNScaling(
        factor,
        original,
        read.take("beta_fast", float, 32.0) or 32.0,  # to transformers 0 is as good as nothing, of all four
        read.take("beta_slow", float, 1.0) or 1.0,
        None if math.isclose(sharpened, usual, rel_tol=1e-6) else sharpened,
        read.take("truncate", bool, True),
    )


def _sharpening(read: Config, factor: float) -> float:
    """YaRN's factor on q and k where no attribute gives it: the paper's, or a quotient as in DeepSeek-V2's code."""
    above, below = read.take("mscale", float, 0.0), read.take("mscale_all_dim", float, 0.0)
    turned = 0.1 * math.log(factor)
    return (above * turned + 1.0) / (below * turned + 1.0) if above and below else turned + 1.0


def rotary(read: Config, context: int, base: float = 10_000.0, fraction: float | None = None) -> RotarySpec:
    """Base and scaling from ``rope_parameters``, or in older files from ``rope_theta`` and ``rope_scaling``.

    base: where no attribute says it. fraction: likewise; None: the family turns whole heads only.
    """
    new, old = read.nested("rope_parameters"), read.nested("rope_scaling")
    if new and old and new != old:
        raise read.refuse("rope_scaling", f"contradicts rope_parameters = {brief(new)}", "keep one of them")
    inner = Config(new or old, f"{read.where}, {'rope_parameters' if new else 'rope_scaling'}", strict=True)
    if fraction is None:
        for each in (read, inner):
            each.expect("partial_rotary_factor", None, 1.0)
    turned = 1.0 if fraction is None else _either(read, inner, "partial_rotary_factor", fraction)
    if not 0 < turned <= 1:
        raise read.refuse("partial_rotary_factor", f"or {turned} is no share of a head")
    for each in (read, inner):
        base_of(each, "rope_theta", 10_000.0)
    spec = RotarySpec(_either(read, inner, "rope_theta", base), turned, _scaling(inner, context))
    inner.done()
    return spec


def base_of(read: Config, name: str, default: float) -> float:
    """An attribute that is a base of angles. Raises CheckpointError where it is none."""
    base = read.take(name, float, default)
    if base <= 1:
        raise read.refuse(name, "is not above 1")
    return base


def _either(outer: Config, inner: Config, name: str, default: float) -> float:
    """An attribute of the one or the other. Raises CheckpointError where they contradict each other."""
    value = outer.take(name, float, default)
    found = inner.take(name, float, value)
    if found != value and outer.values.get(name) is not None:
        raise outer.refuse(name, f"contradicts {found} in {inner.where}", "keep one of them")
    return found


def rotary_attributes(spec: RotarySpec) -> dict[str, Any]:
    """The older attributes, which every reader knows; a rule that has no published name is left out."""
    return {"rope_theta": spec.base, "rope_scaling": _rule(spec.scaling)}


def rotary_parameters(spec: RotarySpec) -> dict[str, Any]:
    """The same in one object, as newer files have it."""
    return {"rope_theta": spec.base, **(_rule(spec.scaling) or {"rope_type": "default"})}


def _rule(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, ByPartsScaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    if isinstance(scaling, YaRNScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            **({} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}),
            **({} if scaling.truncate else {"truncate": False}),
        }
    return None
