// What only models with an encoder have: looks at a source, states grown alike, a vector or classes, and two sides.

/** Rows of coloured cells, one a token, deeper ones above. rows: [name, values]; explain(row, column) fills the tooltip. */
function drawGrid(node, rows, labels, ramp, follow, explain) {
  const [left, bottom] = [64, 70];
  const width = Math.max(9, Math.min(56, (node.clientWidth - left - 24) / labels.length));
  const cell = Math.max(12, Math.min(24, 240 / rows.length));
  const [total, height] = [left + width * labels.length + 24, cell * rows.length];
  const svg = el("svg:svg", { width: total, height: height + bottom, role: "img", "aria-label": node.dataset.name });
  rows.forEach(([name, values], r) => {
    const y = (rows.length - 1 - r) * cell;
    svg.append(el("svg:text", { x: left - 8, y: y + cell / 2 + 4, "text-anchor": "end" }, name));
    values.forEach((value, i) => {
      const fill = shade(ramp, ramp === "attention" ? Math.sqrt(value) : value);
      svg.append(el("svg:rect", { x: left + i * width, y, width: width - 1, height: cell - 1, fill, "data-row": r, "data-column": i }));
    });
  });
  labels.forEach((label, i) => {
    const at = left + (i + 0.5) * width + 3;
    const text = label.length > 9 ? `${label.slice(0, 8)}…` : label;
    svg.append(el("svg:text", { x: at, y: height + 14, class: "mono", "text-anchor": "end", transform: `rotate(-60 ${at} ${height + 14})` }, text));
  });
  node.replaceChildren(svg);
  hover(node, (target) => target.dataset.row && explain(Number(target.dataset.row), Number(target.dataset.column)));
  node.onclick = (event) => follow && event.target.dataset.column && select({ position: Number(event.target.dataset.column) });
}

const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));

function alikePanel() {
  if (!data.alike) return {};
  $("alike-panel").hidden = false;
  const { size, stride, rows } = data.alike;
  const cosines = rows.map(bytesOf); // lower triangles; byte = 127.5·(1 + cosine)
  const node = $("alike");
  node.dataset.name = "Cosine between the selected token's state and all others, layer by layer";
  const groups = Array.from({ length: size }, (_, i) => labelOf(i * stride));
  const cosine = (row, a, b) => cosines[row][(Math.max(a, b) * (Math.max(a, b) + 1)) / 2 + Math.min(a, b)] / 127.5 - 1;
  return {
    select() {
      const at = Math.floor(state.position / stride);
      const shown = rows.map((_, row) => [depthName(row), groups.map((_, i) => cosine(row, at, i))]);
      const explain = (row, column) => [
        el("div", {}, glyph(groups[at]), " and ", glyph(groups[column])),
        el("div", { class: "dim" }, row === 0 ? "before the first layer" : `after ${depthName(row)}`),
        el("b", {}, `cosine ${shown[row][1][column].toFixed(2)}`),
      ];
      drawGrid(node, shown, groups, "alike", stride === 1, explain);
    },
  };
}

function crossPanel() {
  if (!data.cross) return {};
  $("cross-panel").hidden = false;
  const { rows, columns, stride, heads } = data.cross;
  const weights = heads.map((layer) => layer.map(bytesOf)); // byte = 255·√weight
  const labels = Array.from({ length: columns }, (_, i) => whole.source.tokens[i * stride][2]);
  const weightAt = (layer, head, row) => Array.from(weights[layer][head].subarray(row * columns, (row + 1) * columns), (byte) => (byte / 255) ** 2);
  const mean = (layer, row) => {
    const each = weights[layer].map((_, head) => weightAt(layer, head, row));
    return labels.map((_, i) => each.reduce((sum, values) => sum + values[i], 0) / each.length);
  };
  const node = $("cross");
  node.dataset.name = "Where the selected token looks in the source";
  let which = -1; // -1: all layers, the mean of their heads
  radios($("cross-which"), ["all layers", ...weights.map((_, layer) => `layer ${layer}`)], (i) => {
    which = i - 1;
    select({});
  });
  return {
    select() {
      const row = Math.min(rows - 1, Math.floor(state.position / stride));
      const across = [...weights.keys()].filter((layer) => weights[layer].length);
      const shown = which < 0 ? across.map((layer) => [`layer ${layer}`, mean(layer, row)]) : weights[which].map((_, head) => [`head ${head}`, weightAt(which, head, row)]);
      const explain = (r, column) => [el("div", {}, glyph(labelOf(state.position)), " looks at ", glyph(labels[column])), el("div", { class: "dim" }, shown[r][0], ": ", glyph(data.points.cross[which < 0 ? across[r] : which])), el("b", {}, percent(shown[r][1][column]))];
      drawGrid(node, shown, labels, "attention", false, explain);
    },
  };
}

/** The head's word on the text: classes, or how near its vector is to each token. */
function verdictPanel() {
  const { pooled, classes } = data;
  if (!pooled && !classes) return {};
  $("verdict-panel").hidden = false;
  const row = (name, share, text) => {
    const bar = el("div", { class: "bar" });
    bar.style.width = `${100 * Math.max(0, share)}%`;
    return el("tr", {}, el("td", { class: "guess" }, name), el("td", {}, bar), el("td", { class: "value" }, text));
  };
  const likeliest = (shares, most) => shares.map((share, i) => [share, i]).sort((a, b) => b[0] - a[0]).slice(0, most);
  const fill = (rows) => $("verdict").tBodies[0].replaceChildren(...rows);
  if (classes) {
    $("verdict-title").textContent = "Classes";
    $("verdict-explain").textContent = classes.length > 1 ? "What the model calls the selected token." : "What the model calls the text.";
    const draw = () => fill(likeliest(classes[classes.length > 1 ? state.position : 0], 10).map(([share, i]) => row(data.classNames[i], share, percent(share))));
    return { select: draw };
  }
  const whose = { first: "the first token's state", last: "the last token's state", mean: "the mean of all states", max: "the maximum of all states" }[pooled.take];
  $("verdict-title").textContent = "The text as one vector";
  $("verdict-explain").textContent = `It is ${whose}${pooled.dense ? ", through a dense layer" : ", and nearest to these tokens' own states (cosine)"}; its length is ${short(pooled.norm)}.`;
  fill(likeliest(pooled.likeness, 10).map(([share, i]) => row(glyph(labelOf(i)), share, share.toFixed(2))));
  return {};
}

/** Facts for the header, in place of a surprise that nobody has. */
function encodingFacts() {
  if (ahead) return [];
  const facts = [];
  if (data.masked.length) facts.push(["masks", `${data.masked.length}`]);
  if (data.pooled) facts.push(["length of its vector", short(data.pooled.norm)]);
  if (data.classes?.length === 1) {
    const best = data.classes[0].indexOf(Math.max(...data.classes[0]));
    facts.push(["likeliest class", `${data.classNames[best]}, ${percent(data.classes[0][best])}`]);
  }
  return facts;
}

/** The text of a model that sees it whole is not shaded; and from one side of an encoder–decoder to the other. */
function sideSwitch() {
  if (!guesses || !ahead) {
    $("text-legend").hidden = true;
    $("text-explain").textContent = "The model sees all of it at once. Click a token, or use the arrow keys, and every panel below follows.";
  }
  if (!whole.source) return;
  const button = $("side");
  button.hidden = false;
  button.textContent = reading ? "What it writes →" : "← What it read";
  button.addEventListener("click", () => {
    location.hash = reading ? "side=decoder" : "side=encoder";
  });
}
