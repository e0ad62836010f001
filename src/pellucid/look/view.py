"""A look as one self-contained HTML page: no network, nothing to install, safe for any text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pellucid.look.seen import Look

# Bytes of quantised attention that a page may carry; beyond it neighbouring cells are merged, so that a long text in a
# large model stays a page of a few MB that a phone can open (12 layers x 12 heads x 64 tokens fit unmerged).
MAX_PATTERN_BYTES = 3_000_000
SCRIPTS = (
    "core.js",
    "reading.js",
    "depth.js",
    "attention.js",
    "encoding.js",
    "experts.js",
    "main.js",
)  # one script, in this order
LENS_GUESSES = 3  # alternatives listed when a lens cell is pointed at


def quantise(weights: Float[np.ndarray, " ..."]) -> UInt8[np.ndarray, " ..."]:
    """Weights in [0, 1] as bytes on a square-root scale: at most 0.004 off near 1, and 0.00002 is still not 0."""
    return np.rint(255 * np.sqrt(np.clip(weights, 0, 1))).astype(np.uint8)


def merge(pattern: Float[np.ndarray, "heads query key"], stride: int) -> Float[np.ndarray, "heads rows columns"]:
    """The largest weight of every ``stride`` x ``stride`` tile (a mean would fade the single strong links away)."""
    if stride == 1:
        return pattern
    rows, columns = (np.arange(0, size, stride) for size in pattern.shape[1:])
    return np.maximum.reduceat(np.maximum.reduceat(pattern, rows, axis=1), columns, axis=2)


def _patterns(look: Look) -> dict[str, Any]:
    """The attention of all heads: bytes of the lower triangles row by row, base64, one string a head."""
    time = len(look.tokens)
    n_heads = sum(len(layer) for layer in look.patterns)
    causal = not any(np.triu(layer, 1).any() for layer in look.patterns)
    stride = 1
    while n_heads * (size := -(-time // stride)) * ((size + 1) // 2 if causal else size) > MAX_PATTERN_BYTES:
        stride += 1
    rows, columns = np.tril_indices(size) if causal else np.indices((size, size)).reshape(2, -1)
    encoded = [
        [base64.b64encode(quantise(head[rows, columns]).tobytes()).decode() for head in merge(layer, stride)]
        for layer in look.patterns
    ]
    return {"size": size, "stride": stride, "causal": causal, "heads": encoded}


def _cross(look: Look) -> dict[str, Any] | None:
    """How the decoder's heads look at the source: bytes row by row, base64, one string a head."""
    if look.source is None:
        return None
    rows, columns = len(look.tokens), len(look.source.tokens)
    stride = 1
    while len(look.cross_heads) * -(-rows // stride) * -(-columns // stride) > MAX_PATTERN_BYTES:
        stride += 1
    encoded = [
        [base64.b64encode(quantise(head).tobytes()).decode() for head in merge(layer, stride)] for layer in look.cross
    ]
    return {"rows": -(-rows // stride), "columns": -(-columns // stride), "stride": stride, "heads": encoded}


def _alike(look: Look) -> dict[str, Any] | None:
    """Cosines between states: bytes of the lower triangles row by row, base64, one string a layer."""
    if not look.alike:
        return None
    time, stride = len(look.tokens), 1
    while len(look.alike) * (size := -(-time // stride)) * (size + 1) // 2 > MAX_PATTERN_BYTES:
        stride += 1
    rows, columns = np.tril_indices(size)
    merged = (merge(cosines[None], stride)[0] for cosines in look.alike)
    encoded = [
        base64.b64encode(np.rint(127.5 * (1 + cosines[rows, columns])).astype(np.uint8).tobytes()).decode()
        for cosines in merged
    ]
    return {"size": size, "stride": stride, "rows": encoded}


def payload(look: Look) -> dict[str, Any]:
    """What the page draws, as JSON values: ``Look.to_json`` with fewer digits, fewer lens guesses, packed patterns."""
    pooled = look.pooled
    return {
        "model": vars(look.model),
        "layers": [[layer.mixer, layer.feed_forward] for layer in look.layers],
        "tokens": [[token.id, token.prose, token.label, token.special] for token in look.tokens],
        "labels": {str(token): text for token, text in look.labels.items()},
        "topIds": look.top_ids.tolist(),
        "topProbs": _short(look.top_probs),
        "entropy": _short(look.entropy),
        "loss": _short(look.loss),
        "rank": look.rank.tolist(),
        "lens": [
            {
                "point": row.point,
                "ids": row.ids[:, :LENS_GUESSES].tolist(),
                "probs": _short(row.probs[:, :LENS_GUESSES]),
                "rank": row.actual_rank.tolist(),
                "entropy": _short(row.entropy),
                "kl": _short(row.kl),
            }
            for row in look.lens
        ],
        "norms": {point: _short(values) for point, values in look.norms.items()},
        "heads": [
            [round(share, 3) for share in (head.first, head.previous, head.itself, head.following, head.last)]
            for head in look.heads
        ],
        "patterns": _patterns(look),
        "experts": [
            {
                "layer": experts.layer,
                "load": _short(experts.load),
                "ids": experts.ids.tolist(),
                "weights": _short(experts.weights),
            }
            for experts in look.experts
        ],
        "ahead": look.ahead,
        "masked": list(look.masked),
        "alike": _alike(look),
        "pooled": pooled and {**vars(pooled), "likeness": _short(pooled.likeness)},
        "classes": None if look.classes is None else _short(look.classes),
        "classNames": list(look.class_names),
        "cross": _cross(look),
        "source": None if look.source is None else payload(look.source),
    }


def _short(values: np.ndarray) -> Any:
    """Nested lists with three significant digits; null for what is not finite."""

    def shorten(value: Any) -> Any:
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return float(f"{value:.3g}") if np.isfinite(value) else None

    return shorten(values.tolist())


def embed_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: no character of it can end the element or a JavaScript line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def fill(template: str, values: Mapping[str, str]) -> str:
    """``{{name}}`` -> value, in one pass over the template: a value that contains ``{{name}}`` stays as it is."""
    head, *rest = template.split("{{")
    parts = [head]
    for part in rest:
        name, after = part.split("}}", 1)
        parts += [values[name], after]
    return "".join(parts)


def _source_hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def to_html(look: Look) -> str:
    """The page. Its content security policy allows its own script and style, by hash, and no request of any kind."""
    page = files("pellucid.look") / "page"
    template, style = ((page / name).read_text("utf-8") for name in ("look.html", "look.css"))
    script = "".join((page / name).read_text("utf-8") for name in SCRIPTS)
    own = f"script-src '{_source_hash(script)}'; style-src '{_source_hash(style)}'"
    return fill(
        template,
        {
            "policy": f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'",
            "title": html.escape(f"{look.model.name} reads {len(look.tokens)} tokens · pellucid look"),
            "style": style,
            "data": embed_json(payload(look)),
            "script": script,
        },
    )
