"""The look page: whole, safe for any text, asks the network for nothing, and draws itself without an error."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.look.page import html as html_page
from pellucid.look.page import packing
from pellucid.look.seen import (
    Across,
    Attention,
    Encoding,
    Experts,
    Guesses,
    Head,
    Layer,
    LensRow,
    Look,
    ModelFacts,
    Pooled,
    Token,
)
from pellucid.look.text import label, prose

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome"))), None
)
HOSTILE = [
    "<|endoftext|>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--",
    "{{script}}",
    "\u2028\u2029",
    '"&quot;',
    " the",
    "\n    ",
    "漢字",
]
POINTS = ("resid_pre", "attn_out", "ffn_out", "resid_post")
VOID = {"meta", "link", "img", "br", "input"}


def synthetic(time: int = 10, n_layers: int = 2, n_heads: int = 3, name: str = "tiny", seed: int = 0) -> Look:
    """A look with every field filled at random, over hostile tokens."""
    random = np.random.default_rng(seed)
    texts = [HOSTILE[t % len(HOSTILE)] for t in range(time)]
    tokens = tuple(Token(t % len(HOSTILE), prose(text), label(text)) for t, text in enumerate(texts))
    after = np.array([token.id for token in tokens[1:]])

    def floats(*shape: int) -> np.ndarray:
        return random.random(shape, dtype=np.float32)

    rows = []
    for depth in range(n_layers + 1):
        ids = random.integers(0, len(HOSTILE), (time, 5))
        correct = tuple((ids[:-1, 0] == after).tolist())
        rank = random.integers(1, 11, time - 1)
        probs = -np.sort(-floats(time, 5) / 5)
        rows.append(LensRow(f"point {depth}", ids, probs, rank, correct, 3 * floats(time), floats(time)))
    scores = np.tril(np.exp(4 * floats(n_layers, n_heads, time, time)))
    patterns = (scores / scores.sum(-1, keepdims=True)).astype(np.float32)
    heads = tuple(Head(i, h, 0.6, 0.2, 0.1, time - 1, 0, 0.5) for i in range(n_layers) for h in range(n_heads))
    streams = ("resid_pre", "mixer_out", "ffn_out", "resid_post")
    return Look(
        ModelFacts(name, 1_234_567, n_layers, n_heads, 32, len(HOSTILE), 512),
        (Layer("attention", "feed-forward"),) * n_layers,
        tokens,
        {t: label(text) for t, text in enumerate(HOSTILE)},
        Attention(tuple(patterns), heads),
        {stream: 1 + floats(n_layers, time) for stream in streams},
        {
            what: tuple(f"blocks.{i}.{point}" for i in range(n_layers))
            for what, point in {**dict(zip(streams, POINTS, strict=True)), "pattern": "attn.pattern"}.items()
        },
        guesses=Guesses(
            1,
            rows[-1].ids,
            rows[-1].probs,
            rows[-1].entropy,
            8 * floats(time - 1),
            rows[-1].actual_rank,
            tuple(rows),
        ),
    )


def without_heads(look: Look, layers: tuple[int, ...]) -> Look:
    """The same, with an LSTM and no feed-forward in some layers."""
    kinds = tuple(Layer("LSTM", "") if i in layers else layer for i, layer in enumerate(look.layers))
    patterns = tuple(each[:0] if i in layers else each for i, each in enumerate(look.attention.patterns))
    heads = tuple(head for head in look.attention.heads if head.layer not in layers)
    norms = {stream: values.copy() for stream, values in look.norms.items()}
    norms["state"] = norms["resid_post"].copy()
    norms["ffn_out"][list(layers)] = np.nan
    norms["state"][[i for i in range(len(kinds)) if i not in layers]] = np.nan
    norms = {stream: values for stream, values in norms.items() if not np.isnan(values).all()}
    facts = replace(look.model, n_heads=max(map(len, patterns)))
    found = {**look.points, "state": tuple(f"blocks.{i}.rnn.h" for i in range(len(kinds)))}
    return replace(look, model=facts, layers=kinds, attention=Attention(patterns, heads), norms=norms, points=found)


def with_experts(look: Look, n_experts: int = 5) -> Look:
    """The same, every layer a mixture of experts of which the last is never chosen."""
    time, random = len(look.tokens), np.random.default_rng(1)
    ids = random.integers(0, n_experts - 1, (len(look.layers), time, 2))
    weights = np.full((time, 2), 0.5, np.float32)
    loads = [np.bincount(chosen.ravel(), minlength=n_experts) / chosen.size for chosen in ids]
    experts = tuple(Experts(layer, n_experts, ids[layer], weights, load) for layer, load in enumerate(loads))
    chosen = {"experts": tuple(f"blocks.{layer}.expert_ids" for layer in range(len(look.layers)))}
    kinds = (Layer("attention", "experts"),) * len(look.layers)
    return replace(look, layers=kinds, experts=experts, points={**look.points, **chosen})


class Page(HTMLParser):
    """What a browser would make of a page: its elements, and the text inside scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.raw: list[tuple[str, dict[str, str | None], str]] = []
        self.title = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("script", "style"):
            self.raw.append((inside, self.elements[-1][1], data))
        if inside == "title":
            self.title += data


@pytest.fixture(scope="module")
def html() -> str:
    return html_page.to_html(synthetic(name="</title><script>alert(2)</script>"))


def test_no_token_can_become_markup(html: str) -> None:
    page = Page(html)
    assert page.open == [], "every element is closed"
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"id": "data", "type": "application/json"}, {}], "the data and one script: nothing slipped in"
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert page.title.startswith("</title><script>alert(2)</script> reads 10 tokens")
    data = json.loads(next(text for _, attributes, text in page.raw if attributes.get("id") == "data"))
    assert data["tokens"][1][2] == "</script><script>alert(1)</script>"
    assert data["tokens"][4][2] == "{{script}}"
    assert "\u2028" not in html
    assert "\u2029" not in html


def test_embedded_json_is_the_value_and_holds_nothing_dangerous() -> None:
    value = {"text": "".join(HOSTILE) + "\u2028\u2029&<>\\", "numbers": [1, 0.25, None]}
    text = html_page.embed_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)


def test_the_page_asks_the_network_for_nothing(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "video", "audio", "source"}
        assert not {"src", "srcset", "action", "data", "poster", "style"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    own = "".join(text for _, attributes, text in page.raw if attributes.get("id") != "data")
    namespaces = {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert set(re.findall(r"https?://[^\s\"'`)]+", own)) <= namespaces
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\b|\beval\(|innerHTML", own)


def test_the_policy_allows_only_the_pages_own_script_and_style(html: str) -> None:
    page = Page(html)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind, attributes, text in page.raw:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert (f"{kind}-src 'sha256-{digest}'" in policy) == (attributes.get("id") != "data")


def test_patterns_are_packed_within_a_quarter_of_a_percent_point() -> None:
    look = synthetic(time=12)
    packed = html_page.payload(look)["patterns"]
    assert (packed["size"], packed["stride"], packed["causal"]) == (12, 1, True)
    stored = np.frombuffer(base64.b64decode(packed["heads"][1][2]), np.uint8)
    rows, columns = np.tril_indices(12)
    np.testing.assert_allclose((stored / 255) ** 2, look.attention.patterns[1][2][rows, columns], atol=0.004)
    even = tuple(np.full((3, 12, 12), 1 / 12, np.float32) for _ in range(2))
    full = replace(look, attention=replace(look.attention, patterns=even))
    packed = html_page.payload(full)["patterns"]
    assert not packed["causal"]
    assert len(base64.b64decode(packed["heads"][0][0])) == 144


def test_the_page_stays_small() -> None:
    assert len(html_page.to_html(synthetic(time=64, n_layers=6, n_heads=6))) < 600_000


def test_a_long_text_in_a_large_model_is_merged_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_PATTERN_BYTES", 2_000)
    look = synthetic(time=50)
    packed = html_page.payload(look)["patterns"]
    size, stride = packed["size"], packed["stride"]
    assert (size, stride) == (25, 2)
    stored = np.frombuffer(base64.b64decode(packed["heads"][0][0]), np.uint8)
    assert len(stored) == size * (size + 1) // 2
    row, column = 9, 4
    tile = look.attention.patterns[0][0][row * 2 : row * 2 + 2, column * 2 : column * 2 + 2]
    assert stored[row * (row + 1) // 2 + column] == packing.quantise(tile).max()
    assert 2 * 3 * len(stored) <= 2_000 < 2 * 3 * (50 * 51 // 2)


def dump(page: Path, fragment: str, profile: Path, size: tuple[int, int] = (1400, 900)) -> tuple[str, str]:
    """The page's elements after its script ran, and what the browser's console said."""
    assert CHROMIUM is not None
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync"]
    command += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=4000", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=True, encoding="utf-8"
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with")


@needs_chromium
@pytest.mark.parametrize(("time", "n_layers", "n_heads"), [(10, 2, 3), (2, 1, 1), (200, 6, 6)])
def test_page_draws_without_an_error(tmp_path: Path, time: int, n_layers: int, n_heads: int) -> None:
    page = tmp_path / "look.html"
    page.write_text(html_page.to_html(synthetic(time, n_layers, n_heads)), encoding="utf-8")
    drawn, console = dump(
        page, f"#theme=dark&position={time - 1}&layer={n_layers - 1}&head={n_heads - 1}", tmp_path / "profile"
    )
    assert console == ""
    assert 'data-ready="yes"' in drawn
    assert 'data-theme="dark"' in drawn
    assert drawn.count('class="head"') == n_layers * n_heads
    assert f"Layer {n_layers - 1}, head {n_heads - 1}" in drawn
    assert f"blocks.{n_layers - 1}.attn.pattern[0, {n_heads - 1}]" in drawn
    assert f">output ({n_layers - 1})</th>" in drawn
    assert drawn.count('aria-selected="true"') == 1
    assert drawn.count("<td data-position=") + drawn.count('<td class="') >= time * (n_layers + 1)
    assert "<img" not in drawn
    assert len(re.findall(r"<script[ >]", drawn)) == 2


def draw(tmp_path: Path, look: Look, fragment: str = "") -> str:
    page = tmp_path / "look.html"
    page.write_text(html_page.to_html(look), encoding="utf-8")
    drawn, console = dump(page, fragment, tmp_path / "profile")
    assert console == ""
    assert 'data-ready="yes"' in drawn
    assert "NaN" not in drawn.split('<script id="data"', maxsplit=1)[0]
    return drawn


def driven(tmp_path: Path, look: Look, actions: str, fragment: str = "", size: tuple[int, int] = (1400, 900)) -> Any:
    """What ``actions``, JavaScript within the page, return; the policy of the page, which forbids them, is left out."""
    page = tmp_path / "driven.html"
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html_page.to_html(look))
    script = f"{HELPERS}(async () => {{{actions}}})().then((said) => ($('name').dataset.said = JSON.stringify(said)));"
    page.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    drawn, console = dump(page, fragment, tmp_path / "profile", size)
    assert console == ""
    said = re.search(r'<h1 id="name" data-said="([^"]*)"', drawn)
    assert said is not None
    return json.loads(unescape(said[1]))


# for actions: a key pressed where nothing has been clicked, or in a place, and time for what waits
HELPERS = """
const press = (key, more, where = document.body) =>
  where.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const rest = () => new Promise((done) => setTimeout(done, 400));
const shows = () => [$("head-title").textContent, state.position];
"""


@needs_chromium
@pytest.mark.parametrize("size", [(1400, 900), (390, 844)], ids=["desk", "phone"])
def test_enlarged_head_is_seen_beside_each_of_thirty_layers(tmp_path: Path, size: tuple[int, int]) -> None:
    """It stood 1,800 px away from the head that was clicked, and on a phone below all of them."""
    look = synthetic(time=24, n_layers=30, n_heads=9)
    seen = driven(
        tmp_path,
        look,
        """
        const found = [];
        $("attention").scrollIntoView();
        scrollBy(0, -70);
        for (const [layer, head] of [[29, 8], [0, 0], [14, 4]]) {
          const button = document.querySelector(`.head[data-layer="${layer}"][data-head="${head}"]`);
          button.click();
          await rest();
          const [here, map] = [button, $("head-map").firstChild].map((node) => node.getBoundingClientRect());
          const part = (box) => (Math.min(box.bottom, innerHeight) - Math.max(box.top, 0)) / box.height;
          found.push([$("head-title").textContent.slice(0, 17), part(here), part(map)]);
        }
        return [found, innerWidth, document.documentElement.scrollWidth];
        """,
        size=size,
    )
    (found, inner, scrolled) = seen
    assert scrolled <= inner, "nothing stands out at the side"
    assert [title for title, _, _ in found] == ["Layer 29, head 8 ", "Layer 0, head 0 b", "Layer 14, head 4 "]
    assert all(button > 0.9 and pattern > 0.6 for _, button, pattern in found), found


@needs_chromium
def test_keys_select_at_once_and_the_address_keeps_the_selection(tmp_path: Path) -> None:
    look = without_heads(synthetic(time=10, n_layers=5, n_heads=3), (2,))
    at_once, up, twice_down, shifted, address, restored, kept = driven(
        tmp_path,
        look,
        """
        const said = [shows()];
        press("ArrowUp"); said.push(shows());
        press("ArrowDown"); press("ArrowDown"); press("ArrowRight"); said.push(shows());
        press("ArrowRight", { shiftKey: true }); press("ArrowUp", { ctrlKey: true }); said.push(shows());
        await rest();
        said.push(location.hash);
        location.hash = "position=2&layer=4&head=1"; await rest(); said.push(shows());
        location.hash = "text-panel"; await rest(); said.push(shows());
        return said;
        """,
        "#position=5&layer=3&head=0&theme=dark",
    )
    point = "blocks.{0}.attn.pattern[0, {1}]".format
    assert at_once == [f"Layer 3, head 0 {point(3, 0)}", 5]
    assert up == [f"Layer 4, head 0 {point(4, 0)}", 5]
    assert twice_down == [f"Layer 1, head 0 {point(1, 0)}", 6], "the layer without heads is passed over"
    assert shifted == [f"Layer 1, head 1 {point(1, 1)}", 6], "a browser's own shortcut is left to it"
    assert address == "#position=6&layer=1&head=1&theme=dark"
    assert restored == kept == [f"Layer 4, head 1 {point(4, 1)}", 2]


@needs_chromium
def test_pointing_and_clicking_tell_of_what_is_there(tmp_path: Path) -> None:
    told, clicked, in_radios = driven(
        tmp_path,
        synthetic(),
        """
        const point = (node) => {
          node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 5 }));
          return $("tip").textContent;
        };
        const told = ["#text .token:nth-child(4)", "#lens tbody tr:first-child td", "#norms [data-row]", "#heads .head"]
          .map((where) => point(document.querySelector(where)));
        document.querySelector('#lens td[data-row="1"][data-position="3"]').click();
        const clicked = shows();
        press("ArrowRight", {}, document.querySelector("#norms-which [role=radio]"));
        const checked = document.querySelector("#norms-which [aria-checked=true]").textContent;
        return [told, clicked, [state.position, checked]];
        """,
    )
    token, cell, norm, head = told
    assert "expected here:" in token
    assert "point 2, reading" in cell
    assert "blocks.0.resid_pre" in norm
    assert "layer 1, head 0" in head
    assert clicked[0].startswith("Layer 0, head") and clicked[1] == 3
    assert in_radios == [3, "What attention adds"], "keys within a choice belong to it"


@needs_chromium
def test_one_long_vector_leaves_the_shades_of_the_others(tmp_path: Path) -> None:
    """The first token of real models is often a hundred times as long as the others."""
    look = synthetic(time=12, n_layers=4)
    norms = {stream: values.copy() for stream, values in look.norms.items()}
    norms["resid_post"][1:, 0] = 22_700.0
    spread, note, ticks = driven(
        tmp_path,
        replace(look, norms=norms),
        """
        const others = document.querySelectorAll('#norms rect[data-row]:not([data-position="0"])');
        const shades = [...others].map((cell) => Number(cell.getAttribute("fill").split(" ")[1]));
        select({ position: 0 });
        const ticks = [...document.querySelectorAll("#lines text")].map((text) => text.textContent);
        return [Math.max(...shades) - Math.min(...shades), $("norms-far").textContent, ticks];
        """,
    )
    assert spread > 100, "of 255"
    assert "22,700" in note
    assert {"1", "10", "100", "10,000"} <= set(ticks)


def hidden(drawn: str, element: str) -> bool:
    tag = re.search(rf'<[^>]*\bid="{element}"[^>]*>', drawn)
    assert tag is not None
    return "hidden" in tag[0]


@needs_chromium
def test_page_opens_at_a_layer_that_has_heads(tmp_path: Path) -> None:
    look = without_heads(synthetic(n_layers=4, n_heads=2), (0, 1, 2))
    for fragment in ("", "#layer=1"):
        drawn = draw(tmp_path, look, fragment)
        assert "Layer 3, head 0" in drawn
        assert drawn.count('class="head"') == 2
        assert drawn.count("LSTM: a running state") == 3
        assert "4 layers (3 LSTM, 1 attention)" in drawn
        assert hidden(drawn, "no-heads")


@needs_chromium
def test_page_draws_a_model_without_heads(tmp_path: Path) -> None:
    drawn = draw(tmp_path, without_heads(synthetic(n_layers=2), (0, 1)))
    assert not hidden(drawn, "no-heads")
    assert all(hidden(drawn, name) for name in ("attention", "attention-explain", "experts-panel"))
    assert "2 LSTM layers" in drawn
    assert "What the LSTM adds" in drawn
    assert "What feed-forward adds" not in drawn


@needs_chromium
def test_page_draws_which_experts_got_which_tokens(tmp_path: Path) -> None:
    look = with_experts(synthetic(time=12))
    drawn = draw(tmp_path, look)
    assert not hidden(drawn, "experts-panel")
    assert "What the experts add" in drawn
    cells = re.findall(r'<td data-row="1" data-position="(\d+)"[^>]*>(.*?)</td>', drawn)
    shown = {int(at): [int(expert) for expert in re.findall(r">(\d+)</span>", marks)] for at, marks in cells}
    assert shown == dict(enumerate(look.experts[1].ids.tolist()))


def encoding(look: Look, guesses: bool = False, n_layers: int = 2) -> Look:
    """The same text as an encoder sees it: all at once, perhaps with a head that fills in masks."""
    time, random = len(look.tokens), np.random.default_rng(2)
    states = random.standard_normal((n_layers + 1, time, 8)).astype(np.float32)
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    patterns = random.random((n_layers, 3, time, time), dtype=np.float32)
    seen = replace(
        look,
        tokens=tuple(replace(token, special=t in (0, time - 1)) for t, token in enumerate(look.tokens)),
        attention=Attention(
            tuple(patterns / patterns.sum(-1, keepdims=True)),
            tuple(replace(head, first=0.1, previous=0.1, following=0.7) for head in look.attention.heads),
        ),
        encoding=Encoding(tuple(layer @ layer.T for layer in states)),
    )
    if not guesses:
        return replace(seen, guesses=None)
    assert seen.guesses is not None
    loss, rank = np.full(time, 2.0, np.float32), np.full(time, 3)
    loss[4], rank[4] = np.nan, 0
    rows = [replace(row, actual_rank=rank, correct=(False,) * time) for row in seen.guesses.lens]
    return replace(seen, guesses=replace(seen.guesses, ahead=0, loss=loss, rank=rank, masked=(4,), lens=tuple(rows)))


def with_verdict(look: Look, **said: Any) -> Look:
    """The same with what a head says."""
    assert look.encoding is not None
    return replace(look, encoding=replace(look.encoding, **said))


@needs_chromium
def test_page_draws_an_encoder_without_guesses(tmp_path: Path) -> None:
    look = encoding(synthetic())
    drawn = draw(tmp_path, look, "#position=3")
    assert all(
        hidden(drawn, name) for name in ("next-panel", "loss-panel", "lens-panel", "cross-panel", "verdict-panel")
    )
    assert not hidden(drawn, "alike-panel")
    assert "on average 10% to the first token, 10% to the previous one, 10% to itself, 70% to the next one" in drawn
    cells = re.findall(r'<rect [^>]*data-row="2" data-column="\d+"', drawn)
    assert len(cells) == len(look.tokens), "the selected token beside all, after the last layer"
    assert drawn.count('class="token faint"') >= 2, "special tokens are set apart"
    heads = sum(len(layer) for layer in look.attention.patterns)
    assert drawn.count('class="head full"') == heads, "a head's habit is written below a pattern without an empty half"


@needs_chromium
def test_page_draws_a_pooled_vector_and_classes(tmp_path: Path) -> None:
    look = encoding(synthetic())
    near = np.linspace(0, 0.9, len(look.tokens), dtype=np.float32)
    drawn = draw(tmp_path, with_verdict(look, pooled=Pooled("mean", False, 3.21, near)))
    assert not hidden(drawn, "verdict-panel")
    assert "mean of all states, and nearest" in drawn
    assert "3.21" in drawn
    classes = np.array([[0.2, 0.7, 0.1]], np.float32)
    drawn = draw(tmp_path, with_verdict(look, classes=classes, class_names=("bad", "<b>good", "odd")))
    assert re.search(r"likeliest class</dt><dd>&lt;b&gt;good, 70%", drawn)
    assert drawn.index(">&lt;b&gt;good<") < drawn.index(">bad<") < drawn.index(">odd<")


@needs_chromium
def test_page_draws_guesses_for_masked_tokens(tmp_path: Path) -> None:
    drawn = draw(tmp_path, encoding(synthetic(), guesses=True), "#position=4")
    assert "What stands here?" in drawn
    assert "A mask hides what stands here." in drawn
    assert hidden(drawn, "loss-panel")
    assert not hidden(drawn, "lens-panel")
    assert "really next" not in drawn.split("<script")[0]
    elsewhere = draw(tmp_path, encoding(synthetic(), guesses=True), "#position=5")
    assert "Green is what really stands here." in elsewhere


@needs_chromium
def test_page_draws_both_sides_of_an_encoder_decoder(tmp_path: Path) -> None:
    writes, reads = synthetic(time=6, name="writes"), encoding(synthetic(time=9, name="reads"))
    cross = np.random.default_rng(3).random((2, 3, 6, 9), dtype=np.float32)
    heads = tuple(Head(i, h, 0.1, 0.0, 0.0, 1, 2, 0.5) for i in range(2) for h in range(3))
    points = {**writes.points, "cross": tuple(f"decoder.blocks.{i}.cross.pattern" for i in range(2))}
    across = Across(reads, Attention(tuple(cross / cross.sum(-1, keepdims=True)), heads))
    look = replace(writes, across=across, points=points)
    drawn = draw(tmp_path, look, "#position=2")
    assert not hidden(drawn, "cross-panel")
    assert "What it read" in drawn
    assert len(re.findall(r'<rect [^>]*data-row="1" data-column="\d+"', drawn)) == 9
    other = draw(tmp_path, look, "#side=encoder")
    assert "What it writes" in other
    assert hidden(other, "cross-panel")
    assert not hidden(other, "alike-panel")
    assert '<h1 id="name">reads</h1>' in other


def test_likeness_and_looks_across_are_packed_within_their_precision() -> None:
    look = encoding(synthetic(time=12))
    packed = html_page.payload(look)["alike"]
    stored = np.frombuffer(base64.b64decode(packed["rows"][1]), np.uint8)
    assert look.encoding is not None
    np.testing.assert_allclose(stored / 127.5 - 1, look.encoding.alike[1][np.tril_indices(12)], atol=0.004)
    assert html_page.payload(synthetic())["alike"] is None


def test_a_long_source_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_PATTERN_BYTES", 500)
    reads = encoding(synthetic(time=50))
    cross = np.random.default_rng(3).random((2, 3, 20, 50), dtype=np.float32)
    heads = (Head(0, 0, 0.0, 0.0, 0.0, 0, 0, 0.0),) * 6
    packed = html_page.payload(replace(synthetic(time=20), across=Across(reads, Attention(tuple(cross), heads))))[
        "cross"
    ]
    rows, columns, stride = packed["rows"], packed["columns"], packed["stride"]
    stored = np.frombuffer(base64.b64decode(packed["heads"][1][2]), np.uint8)
    assert len(stored) == rows * columns
    assert 6 * len(stored) <= 500
    assert stored[columns + 1] == packing.quantise(cross[1][2][stride : 2 * stride, stride : 2 * stride]).max()


@needs_chromium
def test_the_browser_test_can_see_an_error(tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    page.write_text(html_page.to_html(synthetic()).replace('"topIds"', '"lost"'), encoding="utf-8")
    drawn, console = dump(page, "", tmp_path / "profile")
    assert "TypeError" in console
    assert 'data-ready="yes"' not in drawn
