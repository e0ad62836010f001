// The header, the theme, and the first drawing.

function header() {
  const { name, n_parameters, n_layers, n_heads, d_model, vocab_size, context } = data.model;
  $("name").textContent = name;
  const mixers = data.layers.map(([mixer]) => mixer);
  const kinds = [...new Set(mixers)].map((kind) => `${mixers.filter((mixer) => mixer === kind).length} ${kind}`);
  const written = (x) => x.toLocaleString("en");
  $("facts").textContent = [
    `${count(n_parameters)} parameters`,
    kinds.length > 1 ? `${n_layers} layers (${kinds.join(", ")})` : anyHeads ? `${n_layers} layers` : `${n_layers} ${mixers[0]} layers`,
    ...(anyHeads ? [`${n_heads} heads ${kinds.length > 1 ? "where it attends" : "a layer"}`] : []),
    `${written(d_model)} wide`,
    `vocabulary of ${written(vocab_size)}`,
    `context of ${written(context)} tokens`,
  ].join(" · ");
  const finite = bits.slice(1).filter(Number.isFinite);
  const mean = finite.reduce((sum, x) => sum + x, 0) / Math.max(1, finite.length);
  const right = data.rank.filter((rank) => rank === 1).length / Math.max(1, data.rank.length);
  const facts = [["tokens read", written(n)], ...encodingFacts()];
  if (n > 1 && guesses && ahead) {
    const worst = bits.reduce((best, x, i) => (i > 0 && x > bits[best] ? i : best), 1);
    facts.push(["mean surprise", `${short(mean)} bits`], ["first guess right", percent(right)], ["biggest surprise", glyph(labelOf(worst))]);
  }
  $("summary").replaceChildren(...facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value))));
}

// #theme=dark&position=12&layer=3&head=2 opens the page there (layers and heads count from 1, as on the page)
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const number = (name, most, otherwise) => {
    const value = Number.parseInt(asked.get(name) ?? "", 10);
    return Number.isNaN(value) ? otherwise : Math.max(0, Math.min(most, value));
  };
  const wanted = asked.get("theme");
  if (wanted === "dark" || wanted === "light") document.documentElement.dataset.theme = wanted;
  const layers = data.patterns.heads.length;
  // open in the middle of the text and of the model, where there is something to see
  state.position = number("position", n - 1, Math.floor((n - 1) * 0.6));
  state.layer = number("layer", layers, Math.ceil(layers / 2)) - 1;
  state.layer = Math.max(0, state.layer);
  // of layers without heads, the nearest that has some
  const far = (layer) => Math.abs(layer - state.layer);
  const headed = data.patterns.heads.flatMap((heads, layer) => (heads.length ? [layer] : []));
  state.layer = headed.sort((a, b) => far(a) - far(b))[0] ?? state.layer;
  state.head = Math.max(0, number("head", data.patterns.heads[state.layer].length, 1) - 1);
}

function redraw() {
  $("theme").textContent = theme() === "dark" ? "☀ Light" : "☾ Dark";
  draw();
}

readAddress();
header();
sideSwitch();
panels.push(textPanel(), selectedPanel(), nextPanel(), lossPanel(), lensPanel(), headsPanel(), headPanel(), crossPanel(), alikePanel(), verdictPanel(), expertsPanel(), normsPanel(), linesPanel());
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  redraw();
});
systemDark.addEventListener("change", redraw);
let width = window.innerWidth;
let waiting = 0;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return; // phones "resize" when their address bar hides
  width = window.innerWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(draw);
});
let themeBeforePrint;
window.addEventListener("beforeprint", () => {
  themeBeforePrint = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light"; // paper is white
  redraw();
});
window.addEventListener("afterprint", () => {
  if (themeBeforePrint) document.documentElement.dataset.theme = themeBeforePrint;
  else delete document.documentElement.dataset.theme;
  redraw();
});
redraw();
document.documentElement.dataset.ready = "yes";
