// Along the depth of the model: the logit lens and the length of the residual vectors. Deeper layers are drawn above.

const layerName = (row) => (row === 0 ? "embed" : row === data.lens.length - 1 ? `output (${row})` : `layer ${row}`);

function lensPanel() {
  const node = $("lens");
  $("lens-panel").hidden = !guesses;
  if (!guesses) return {};
  if (!ahead) $("lens-explain").textContent = "If the model had to stop thinking after a layer, what would it say stands in each place? Read a column upwards, from the bare token to the final answer.";
  const after = (position) => (position + ahead < n && !data.masked.includes(position) ? data.tokens[position + ahead] : null);
  const cells = []; // [row][position]
  const header = (position, text) => el("th", { scope: "col", "data-position": position, title: text }, text);
  const heads = ahead ? data.tokens.map((_, i) => header(i, i < n - 1 ? labelOf(i + 1) : "?")) : [];
  const feet = data.tokens.map((_, i) => header(i, labelOf(i)));
  const columns = el("colgroup", {}, ...Array.from({ length: n + 1 }, () => el("col")));
  const body = el("tbody");
  data.lens.forEach((layer, row) => {
    cells[row] = layer.ids.map((ids, position) => {
      const cell = el("td", { "data-position": position, "data-row": row }, data.labels[ids[0]]);
      cell.classList.toggle("correct", ids[0] === after(position)?.[0]);
      return cell;
    });
    body.prepend(el("tr", {}, el("th", { scope: "row" }, layerName(row)), ...cells[row]));
  });
  const corner = (text) => el("th", { scope: "row" }, text);
  node.replaceChildren(
    el("table", {}, columns, ...(ahead ? [el("thead", {}, el("tr", {}, corner("really next"), ...heads))] : []), body, el("tfoot", {}, el("tr", {}, corner("token read"), ...feet))),
  );
  node.firstChild.style.width = `${92 + 64 * n}px`; // a fixed table layout needs a width, or long guesses widen it
  node.addEventListener("click", (event) => {
    if (event.target.dataset.position) select(Number(event.target.dataset.position));
  });
  arrowKeys(node);
  hover(node, (target) => {
    if (target.dataset.row === undefined) return null;
    const [row, at] = [Number(target.dataset.row), Number(target.dataset.position)];
    const layer = data.lens[row];
    const title = row === 0 ? "before the first layer" : `after layer ${row} of ${data.lens.length - 1}`;
    const nodes = [el("div", { class: "dim" }, `${title}, reading `, glyph(labelOf(at)))];
    nodes.push(...layer.ids[at].map((id, i) => pair(glyph(data.labels[id]), percent(layer.probs[at][i]))));
    if (after(at)) nodes.push(el("div", {}, ahead ? "really next " : "really here ", glyph(after(at)[2]), `: guess #${layer.rank[at].toLocaleString("en")}`));
    nodes.push(el("div", { class: "dim" }, `entropy ${inBits(layer.entropy[at])} · ${short(layer.kl[at] ?? Infinity)} bits from the output`));
    return nodes;
  });
  let marked = [];
  return {
    draw() {
      data.lens.forEach((layer, row) =>
        cells[row].forEach((cell, at) => {
          const p = layer.probs[at][0];
          cell.style.background = shade("probability", p);
          cell.style.color = inkOn("probability", p);
        }),
      );
    },
    select() {
      marked.forEach((cell) => cell.classList.remove("selected"));
      marked = [...heads.slice(state.position, state.position + 1), feet[state.position], ...cells.map((row) => row[state.position])];
      marked.forEach((cell) => cell.classList.add("selected"));
      const cell = feet[state.position];
      const [start, end] = [cell.offsetLeft - 90, cell.offsetLeft + cell.offsetWidth + 10];
      if (start < node.scrollLeft || end > node.scrollLeft + node.clientWidth) node.scrollLeft = start - node.clientWidth / 2;
    },
  };
}

/** The one word for what layers have in a place, or `mixed` where they differ; layers without anything do not count. */
function named(part, mixed) {
  const kinds = new Set(data.layers.map((layer) => layer[part]).filter(Boolean));
  return kinds.size === 1 ? [...kinds][0] : mixed;
}
const [mixer, feedForward] = [named(0, "token mixing"), named(1, "feed-forward")];
const article = ["LSTM", "GRU"].includes(mixer) ? "the " : "";
// [name, name in short, colour, dashes, rows from shallow to deep, layer of the first]; null where a layer has no such thing
const STREAMS = [
  ["The stream after each layer", "stream", "--ink", "", [data.norms.resid_pre[0], ...data.norms.resid_post], 0],
  [`What ${article}${mixer} adds`, mixer.replace("linear attention", "linear attn.").replace("token mixing", "mixing"), "--attn", "", data.norms.mixer_out, 1],
  ["What looking at the source adds", "source", "--cross", "6 2", data.norms.cross_out, 1],
  [`What ${feedForward === "experts" ? "the experts add" : "feed-forward adds"}`, feedForward, "--ffn", "5 3", data.norms.ffn_out, 1],
  ["The state after each token", "state", "--state", "2 3", data.norms.state, 1],
].filter(([, , , , rows]) => rows);

function normsPanel() {
  const node = $("norms");
  let which = 0;
  const buttons = STREAMS.map(([name], i) => {
    const button = el("button", { type: "button", role: "radio" }, name);
    button.addEventListener("click", () => {
      which = i;
      draw();
    });
    return button;
  });
  $("norms-which").replaceChildren(...buttons);
  $("norms-which").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    which = (which + step + STREAMS.length) % STREAMS.length;
    draw();
    buttons[which].focus();
  });
  let marks = [];
  const svgRect = (attributes) => el("svg:rect", attributes);
  hover(node, (target) => {
    if (target.dataset.row === undefined) return null;
    const [row, at] = [Number(target.dataset.row), Number(target.dataset.position)];
    const layer = row + STREAMS[which][5];
    const kind = layer === 0 ? "embed" : `layer ${layer} (${data.layers[layer - 1].filter(Boolean).join(", ")})`;
    return [pair(glyph(labelOf(at)), kind), el("div", {}, `length ${short(STREAMS[which][4][row][at])}`)];
  });
  node.addEventListener("click", (event) => {
    if (event.target.dataset.position) select(Number(event.target.dataset.position));
  });
  return {
    draw() {
      buttons.forEach((button, i) => {
        button.setAttribute("aria-checked", i === which);
        button.tabIndex = i === which ? 0 : -1;
      });
      const rows = STREAMS[which][4];
      const first = STREAMS[which][5];
      const values = rows.flat().filter((value) => value > 0);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      // lengths grow by factors, and the first token's is often many times the others': a logarithmic ramp
      const place = (value) => (high > low ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : 0);
      TICKS.norm = [[0, short(low)], [0.5, short(Math.sqrt(low * high))], [1, `length ${short(high)}`]];
      drawLegend(document.querySelector('[data-legend="norm"]'));
      const [left, total] = [52, node.clientWidth];
      const width = (total - left) / n;
      const cell = Math.max(12, Math.min(26, 190 / rows.length));
      const bottom = width >= 11 ? 66 : 22;
      const height = cell * rows.length;
      const svg = el("svg:svg", { width: total, height: height + bottom, role: "img", "aria-label": `${STREAMS[which][0]}, from ${short(low)} to ${short(high)}` });
      rows.forEach((row, r) => {
        const y = (rows.length - 1 - r) * cell;
        svg.append(el("svg:text", { x: left - 8, y: y + cell / 2 + 4, "text-anchor": "end" }, r + first === 0 ? "embed" : `${r + first}`));
        row.forEach((value, i) => {
          if (value === null) return;
          const gap = width > 5 ? 1 : 0;
          svg.append(svgRect({ x: left + i * width, y, width: width - gap, height: cell - 1, fill: shade("norm", place(value)), "data-row": r, "data-position": i }));
        });
      });
      svg.append(...tokenAxis((i) => left + i * width, width, height + 14));
      const mark = svgRect({ x: 0, y: 0, width: Math.max(2, width), height: height - 1, fill: "none", stroke: css("--accent"), "stroke-width": 2, "pointer-events": "none" });
      svg.append(mark);
      marks = [mark, left, width];
      node.replaceChildren(svg);
    },
    select() {
      const [mark, left, width] = marks;
      mark.setAttribute("x", left + state.position * width - 0.5);
    },
  };
}

function linesPanel() {
  const node = $("lines");
  return {
    select() {
      const at = state.position;
      // [name, colour, dashes, points (layer, length)]
      const lines = STREAMS.map(([, name, colour, dash, rows, first]) => {
        const points = rows.map((row, layer) => [layer + first, row[at]]);
        return [name, colour, dash, points.filter(([, value]) => value !== null)];
      });
      const [left, right, top, height, total] = [40, 82, 10, 210, node.clientWidth];
      const highest = Math.max(...lines.flatMap((line) => line[3].map(([, value]) => value)));
      const depth = data.norms.resid_post.length;
      const x = (layer) => left + ((total - left - right) * layer) / depth;
      const y = (value) => top + height * (1 - value / highest);
      const svg = el("svg:svg", { width: total, height: top + height + 26, role: "img", "aria-label": "Length of the selected token's vectors by layer" });
      for (const share of [0, 0.25, 0.5, 0.75, 1]) {
        svg.append(el("svg:line", { class: "grid", x1: left, x2: total - right, y1: y(share * highest), y2: y(share * highest) }));
        svg.append(el("svg:text", { x: left - 8, y: y(share * highest) + 4, "text-anchor": "end" }, short(share * highest)));
      }
      for (let layer = 0; layer <= depth; layer += Math.ceil(depth / 6))
        svg.append(el("svg:text", { x: x(layer), y: top + height + 18, "text-anchor": "middle" }, layer === 0 ? "embed" : `${layer}`));
      const ends = lines.map((line) => y(line[3].at(-1)[1]));
      const order = ends.map((_, i) => i).sort((a, b) => ends[a] - ends[b]);
      order.slice(1).forEach((line, i) => (ends[line] = Math.max(ends[line], ends[order[i]] + 14))); // labels apart
      const over = Math.max(0, ...ends) - (top + height + 4);
      lines.forEach(([name, colour, dash, values], i) => {
        const points = values.map(([layer, value]) => `${x(layer)},${y(value)}`).join(" ");
        svg.append(el("svg:polyline", { points, fill: "none", stroke: css(colour), "stroke-width": 2, "stroke-dasharray": dash, "stroke-linejoin": "round" }));
        values.forEach(([layer, value]) => svg.append(el("svg:circle", { cx: x(layer), cy: y(value), r: 2.5, fill: css(colour) })));
        const text = el("svg:text", { x: total - right + 8, y: ends[i] + 4 - Math.max(0, over) }, name);
        text.style.fill = css(colour);
        svg.append(text);
      });
      node.replaceChildren(svg);
    },
  };
}
