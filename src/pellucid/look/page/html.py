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

from pellucid.look.numbers import plain
from pellucid.look.page.packing import pack_across, pack_likeness, pack_patterns
from pellucid.look.seen import Encoding, Guesses, Look

# The page's one script is these files, in this order.
SCRIPTS = ("core.js", "reading.js", "depth.js", "attention.js", "encoding.js", "experts.js", "panels.js", "main.js")
# So many alternatives are listed when a lens cell is pointed at.
LENS_GUESSES = 3


def payload(look: Look) -> dict[str, Any]:
    """What the page draws, as JSON values: ``Look.to_json`` with fewer digits, fewer lens guesses, packed patterns."""
    encoding = look.encoding or Encoding(alike=())
    pooled, classes = encoding.pooled, encoding.classes
    return {
        "model": vars(look.model),
        "layers": [[layer.mixer, layer.feed_forward] for layer in look.layers],
        "tokens": [[token.id, token.prose, token.label, token.special] for token in look.tokens],
        "labels": {str(token): text for token, text in look.labels.items()},
        **_guesses(look.guesses, both_ways=look.both_ways),
        "points": look.points,
        "norms": {point: _short(values) for point, values in look.norms.items()},
        "heads": [
            [round(share, 3) for share in (head.first, head.previous, head.itself, head.following, head.last)]
            for head in look.attention.heads
        ],
        "patterns": pack_patterns(look.attention),
        "experts": [
            {
                "layer": experts.layer,
                "load": _short(experts.load),
                "ids": experts.ids.tolist(),
                "weights": _short(experts.weights),
            }
            for experts in look.experts
        ],
        "alike": pack_likeness(encoding.alike),
        "pooled": pooled and {**vars(pooled), "likeness": _short(pooled.likeness)},
        "classes": None if classes is None else _short(classes),
        "classNames": list(encoding.class_names),
        "panels": [
            {**vars(panel), "values": _short(panel.values), "rows": list(panel.rows), "columns": list(panel.columns)}
            for panel in look.panels
        ],
        "cross": look.across and pack_across(look.across.attention),
        "source": look.across and payload(look.across.source),
    }


def _guesses(guesses: Guesses | None, *, both_ways: bool) -> dict[str, Any]:
    if guesses is None:
        lists = dict.fromkeys(("topIds", "topProbs", "entropy", "loss", "rank", "lens", "masked"), ())
        return {**lists, "ahead": 0 if both_ways else 1}
    return {
        "topIds": guesses.top_ids.tolist(),
        "topProbs": _short(guesses.top_probs),
        "entropy": _short(guesses.entropy),
        "loss": _short(guesses.loss),
        "rank": guesses.rank.tolist(),
        "lens": [
            {
                "point": row.point,
                "ids": row.ids[:, :LENS_GUESSES].tolist(),
                "probs": _short(row.probs[:, :LENS_GUESSES]),
                "rank": row.actual_rank.tolist(),
                "entropy": _short(row.entropy),
                "kl": _short(row.kl),
            }
            for row in guesses.lens
        ],
        "ahead": guesses.ahead,
        "masked": list(guesses.masked),
    }


def _short(values: np.ndarray) -> Any:
    return plain(values, digits=3)


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
    page = files("pellucid.look.page")
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
