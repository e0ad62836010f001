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

// #position=12&layer=3&head=2&theme=dark opens the page there, and follows what is selected
const addressed = () => new URLSearchParams(location.hash.slice(1));
function readAddress() {
  const asked = addressed();
  const wanted = asked.get("theme");
  if (wanted === "dark" || wanted === "light") document.documentElement.dataset.theme = wanted;
  for (const name of ["position", "layer", "head"]) {
    const value = Number.parseInt(asked.get(name) ?? "", 10);
    if (!Number.isNaN(value)) state[name] = value;
  }
}

let writing = 0;
/** Written when the selection rests: browsers allow a page only so many changes of its address. */
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const chosen = document.documentElement.dataset.theme;
    const now = new URLSearchParams({ ...(reading && { side: "encoder" }), ...state, ...(chosen && { theme: chosen }) });
    try {
      history.replaceState(null, "", `#${now}`);
    } catch {
      // a page within another page has no address of its own
    }
  }, 200);
}

/** Open in the middle of the text and of the model, at the head that rests least on the first token. */
function begin() {
  select({ position: Math.floor((n - 1) * 0.6), layer: Math.floor((data.layers.length - 1) / 2) });
  const firsts = data.patterns.heads[state.layer].map((_, head) => habit(state.layer, head).shares[0]);
  select({ head: Math.max(0, firsts.indexOf(Math.min(...firsts))) });
}

function redraw() {
  $("theme").textContent = theme() === "dark" ? "☀ Light" : "☾ Dark";
  draw();
}

begin();
readAddress();
header();
sideSwitch();
panels.push(textPanel(), selectedPanel(), nextPanel(), lossPanel(), lensPanel(), headsPanel(), headPanel(), crossPanel(), alikePanel(), verdictPanel(), expertsPanel(), measuredPanels(), normsPanel(), linesPanel(), { select: writeAddress });
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  redraw();
});
systemDark.addEventListener("change", redraw);
window.addEventListener("hashchange", () => {
  if ((addressed().get("side") === "encoder") !== reading && whole.source) return location.reload();
  readAddress();
  redraw();
});
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
