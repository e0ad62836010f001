"use strict";
// What all panels share: the data, how numbers and colours are written, the selection, the tooltip.
// Layers, heads and experts are numbered from 0, as the model's points are.

const whole = JSON.parse(document.getElementById("data").textContent);
// an encoder–decoder has two sides: the one that writes, and with #side=encoder the one that reads
const reading = Boolean(whole.source) && new URLSearchParams(location.hash.slice(1)).get("side") === "encoder";
const data = reading ? whole.source : whole;
const n = data.tokens.length;
const $ = (id) => document.getElementById(id);
const bitsOf = (nats) => (nats === null ? Infinity : nats / Math.LN2);
const guesses = data.lens.length > 0; // a model without a vocabulary head has none
const ahead = data.ahead; // 1: a place guesses the next token; 0: its own, with the whole text in view
// bits[i]: surprisal of token i itself, where the text before predicted it; nothing predicted the first one
const bits = guesses && ahead ? [null, ...data.loss.map(bitsOf)] : data.tokens.map(() => null);
const labelOf = (position) => data.tokens[position][2];
const depthName = (row) => (row === 0 ? "embed" : `layer ${row - 1}`); // rows of what is seen after each layer
const headsOf = (layer) => data.patterns.heads[layer].length;
const anyHeads = data.layers.some((_, layer) => headsOf(layer) > 0);
// layers that can be selected: those with heads, or all where none has any
const layers = [...data.layers.keys()].filter((layer) => headsOf(layer) > 0 || !anyHeads);

// --- elements. Text only ever enters as text nodes: no token can become markup.

function el(tag, attributes = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const glyph = (text) => el("span", { class: "glyph" }, text);

function percent(p) {
  if (p === null) return "?";
  if (p > 0 && p < 0.0001) return "<0.01%";
  const digits = p >= 0.0995 || p === 0 ? 0 : p >= 0.00995 ? 1 : 2;
  return `${(100 * p).toFixed(digits)}%`;
}
const inBits = (x) => (x === Infinity ? "∞ bits" : `${x.toFixed(1)} bits`);
const short = (x) => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
function count(x) {
  for (const [size, unit] of [[1e9, " B"], [1e6, " M"], [1e4, " k"]])
    if (x >= size) return (x / (size === 1e4 ? 1e3 : size)).toPrecision(3) + unit;
  return x.toLocaleString("en");
}

// --- colour: ramps that are straight lines in OKLCH, so equal steps of the data look like equal steps.

const RAMPS = {
  probability: { light: [[0.975, 0.01, 250], [0.76, 0.11, 250], [0.42, 0.17, 266]], dark: [[0.24, 0.018, 265], [0.5, 0.12, 262], [0.88, 0.1, 215]] },
  surprise: { light: [[0.985, 0.012, 95], [0.88, 0.11, 80], [0.7, 0.19, 38]], dark: [[0.22, 0.012, 80], [0.4, 0.085, 65], [0.56, 0.19, 30]] },
  norm: { light: [[0.975, 0.012, 310], [0.74, 0.11, 310], [0.43, 0.17, 305]], dark: [[0.235, 0.02, 305], [0.5, 0.14, 305], [0.85, 0.09, 325]] },
};
RAMPS.attention = RAMPS.probability;
RAMPS.alike = RAMPS.norm;

function toSRGB([lightness, chroma, hue]) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((x) => {
    const clipped = Math.min(1, Math.max(0, x));
    return Math.round(255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055));
  });
}

function mix(stops, t) {
  const place = Math.min(0.9999, Math.max(0, t)) * (stops.length - 1);
  const [from, to] = [stops[Math.floor(place)], stops[Math.floor(place) + 1]];
  return from.map((x, i) => x + (to[i] - x) * (place % 1));
}

const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme || (systemDark.matches ? "dark" : "light");
const tables = {};
function table(name) {
  const key = `${name} ${theme()}`;
  tables[key] ??= Array.from({ length: 256 }, (_, i) => toSRGB(mix(RAMPS[name][theme()], i / 255)));
  return tables[key];
}
const shade = (name, t) => `rgb(${table(name)[Math.round(255 * Math.min(1, Math.max(0, t)))].join(" ")})`;
// black and white ink are equally legible on OKLCH lightness 0.58
const inkOn = (name, t) => (mix(RAMPS[name][theme()], t)[0] > 0.58 ? "#111216" : "#ffffff");
const css = (name) => {
  const probe = $("tip"); // light-dark() only becomes a colour where it is used
  const before = probe.style.borderColor;
  probe.style.borderColor = `var(${name})`;
  const colour = getComputedStyle(probe).borderTopColor;
  probe.style.borderColor = before;
  return colour;
};

const MAX_BITS = 12; // the surprise ramp is the same on every page, so that pages compare
const surprise = (x) => x / MAX_BITS;
const TICKS = {
  surprise: [[0, "0 bits"], [2 / 12, "2"], [4 / 12, "4"], [6 / 12, "6"], [8 / 12, "8"], [1, "12+ bits"]],
  probability: [[0, "0%"], [0.25, "25%"], [0.5, "50%"], [1, "100% probable"]],
  // weights are stored and coloured on a square-root scale: the weak ones are many and matter
  attention: [[0, "0%"], [0.2, "4%"], [0.5, "25%"], [1, "100% of attention"]],
  alike: [[0, "0 or less"], [0.5, "0.5"], [1, "1: the same direction"]],
  norm: [],
};

function drawLegend(node) {
  const name = node.dataset.legend;
  const bar = el("div", { class: "bar" });
  const stops = Array.from({ length: 17 }, (_, i) => shade(name, i / 16));
  bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const ticks = TICKS[name].map(([at, text]) => {
    const tick = el("span", {}, text);
    tick.style.left = `${100 * at}%`;
    return tick;
  });
  node.replaceChildren(bar, el("div", { class: "ticks" }, ...ticks));
}

// --- one state; panels register how they draw (theme, width) and how they follow the selection.

const state = { position: 0, layer: 0, head: 0 };
const panels = []; // {draw(), select()}
const clamp = (value, most) => Math.max(0, Math.min(most, value));
/** Select another position, layer or head; of what there is not, the nearest that there is. */
function select(change) {
  Object.assign(state, change);
  const far = (layer) => Math.abs(layer - state.layer);
  state.position = clamp(state.position, n - 1);
  state.layer = layers.reduce((best, layer) => (far(layer) < far(best) ? layer : best));
  state.head = clamp(state.head, headsOf(state.layer) - 1);
  for (const panel of panels) panel.select?.();
}
function draw() {
  document.querySelectorAll("[data-legend]").forEach(drawLegend);
  for (const panel of panels) panel.draw?.();
  select({});
}
/** What a key selects: arrows go along the text, and up and down the layers; with shift, along the heads. */
function selects({ key, shiftKey }) {
  const across = { ArrowRight: 1, ArrowLeft: -1 }[key];
  if (across) return shiftKey ? { head: state.head + across } : { position: state.position + across };
  const up = { ArrowUp: 1, ArrowDown: -1 }[key];
  if (up) return { layer: layers[clamp(layers.indexOf(state.layer) + up, layers.length - 1)] };
  return { Home: { position: 0 }, End: { position: n - 1 } }[key];
}
document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
  const change = selects(event);
  if (!change) return;
  event.preventDefault();
  select(change);
});

/** Scroll `node`, and nothing else, as little as shows `child`; [top, left]: what is frozen at its edges. */
function reveal(node, child, [top, left] = [0, 0]) {
  const [outer, inner, margin] = [node.getBoundingClientRect(), child.getBoundingClientRect(), 8];
  const step = (start, end, from, to) => (start < from ? start - from : end > to ? Math.min(end - to, start - from) : 0);
  node.scrollTop += step(inner.top, inner.bottom, outer.top + top + margin, outer.top + node.clientHeight - margin);
  node.scrollLeft += step(inner.left, inner.right, outer.left + left + margin, outer.left + node.clientWidth - margin);
}

/** Buttons of which one is chosen, at first the first; arrow keys within them choose another. */
function radios(node, names, choose) {
  let chosen = 0;
  const buttons = names.map((name) => el("button", { type: "button", role: "radio" }, name));
  const mark = () =>
    buttons.forEach((button, i) => {
      button.setAttribute("aria-checked", i === chosen);
      button.tabIndex = i === chosen ? 0 : -1;
    });
  const pick = (i) => {
    chosen = (i + names.length) % names.length;
    mark();
    choose(chosen);
  };
  buttons.forEach((button, i) => button.addEventListener("click", () => pick(i)));
  node.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.shiftKey) return;
    event.preventDefault();
    pick(chosen + step);
    buttons[chosen].focus();
  });
  node.replaceChildren(...buttons);
  mark();
}

// --- tooltip

function pair(left, right) {
  return el("div", { class: "pair" }, left, el("span", {}, right));
}
function showTip(event, nodes) {
  const tip = $("tip");
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 16 + width < innerWidth;
  const below = event.clientY + 18 + height < innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX + 14 : event.clientX - width - 10)}px`;
  tip.style.top = `${Math.max(4, below ? event.clientY + 16 : event.clientY - height - 10)}px`;
}
const hideTip = () => ($("tip").hidden = true);
/** `explain(target, event)` gives the tooltip's nodes for what is pointed at, or nothing. */
function hover(node, explain) {
  node.addEventListener("pointermove", (event) => {
    const nodes = explain(event.target, event);
    if (nodes) showTip(event, nodes);
    else hideTip();
  });
  node.addEventListener("pointerleave", hideTip);
}
/** What a model that sees the whole text would put in this place. */
function ownGuesses(position) {
  const rank = data.rank[position];
  const own = rank ? el("div", {}, `guess #${rank.toLocaleString("en")}`) : el("div", {}, "hidden by a mask");
  const shown = data.topIds[position].slice(0, 4).map((id, i) => pair(glyph(data.labels[id]), percent(data.topProbs[position][i])));
  return [own, el("div", { class: "dim" }, "best guesses here:"), ...shown];
}
/** Tooltip of one token: how surprising it was and what was expected in its place. */
function tokenTip(position) {
  const title = el("div", {}, el("b", {}, glyph(labelOf(position))), el("span", { class: "dim" }, `  token ${position} · id ${data.tokens[position][0]}`));
  if (!guesses) return [title];
  if (!ahead) return [title, ...ownGuesses(position)];
  if (position === 0) return [title, el("div", { class: "dim" }, "the first token: nothing before it could predict it")];
  const before = position - 1;
  const cost = `${inBits(bits[position])} · loss ${short(data.loss[before] ?? Infinity)} nats · guess #${data.rank[before].toLocaleString("en")}`;
  const expected = data.topIds[before].slice(0, 4).map((id, i) => pair(glyph(data.labels[id]), percent(data.topProbs[before][i])));
  return [title, el("div", {}, cost), el("div", { class: "dim" }, "expected here:"), ...expected];
}
