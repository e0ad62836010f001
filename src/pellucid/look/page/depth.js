// Along the depth of the model: the logit lens and the length of the residual vectors. Deeper layers are drawn above.

/** Select what was clicked: its token, and the layer of its row (rows count from the embedding). */
function selectCell(target, embedding = true) {
  if (!target.dataset.position) return;
  const layer = Number(target.dataset.row ?? state.layer + embedding) - embedding;
  select({ position: Number(target.dataset.position), layer: layer < 0 ? state.layer : layer });
}

function lensPanel() {
  const node = $("lens");
  $("lens-panel").hidden = !guesses;
  if (!guesses) return {};
  if (!ahead) $("lens-explain").textContent = "If the model had to stop thinking after a layer, what would it say stands in each place? Read a column upwards, from the bare token to the final answer.";
  const after = (position) => (position + ahead < n && !data.masked.includes(position) ? data.tokens[position + ahead] : null);
  const cells = []; // [row][position]
  const names = []; // [row]
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
    const name = row < data.lens.length - 1 ? depthName(row) : `output (${row - 1})`;
    names[row] = el("th", { scope: "row", title: layer.point }, name);
    body.prepend(el("tr", {}, names[row], ...cells[row]));
  });
  const corner = (text) => el("th", { scope: "row" }, text);
  node.replaceChildren(
    el("table", {}, columns, ...(ahead ? [el("thead", {}, el("tr", {}, corner("really next"), ...heads))] : []), body, el("tfoot", {}, el("tr", {}, corner("token read"), ...feet))),
  );
  node.firstChild.style.width = `${92 + 64 * n}px`; // a fixed table layout needs a width, or long guesses widen it
  node.addEventListener("click", (event) => selectCell(event.target));
  hover(node, (target) => {
    if (target.dataset.row === undefined) return null;
    const [row, at] = [Number(target.dataset.row), Number(target.dataset.position)];
    const layer = data.lens[row];
    const nodes = [el("div", { class: "dim" }, glyph(layer.point), ", reading ", glyph(labelOf(at)))];
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
      marked = [...heads.slice(state.position, state.position + 1), feet[state.position], ...cells.map((row) => row[state.position]), names[state.layer + 1]];
      marked.forEach((cell) => cell.classList.add("selected"));
      reveal(node, feet[state.position], [0, names[0].offsetWidth]);
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
// [name, name in short, colour, dashes, rows from shallow to deep, layer of the first, points]; a value is null where a
// layer has no such thing; the stream begins with the embedding, before layer 0
const STREAMS = [
  ["The stream after each layer", "stream", "--ink", "", [data.norms.resid_pre[0], ...data.norms.resid_post], -1, [data.points.resid_pre[0], ...data.points.resid_post]],
  [`What ${article}${mixer} adds`, mixer.replace("linear attention", "linear attn.").replace("token mixing", "mixing"), "--attn", "", data.norms.mixer_out, 0, data.points.mixer_out],
  ["What looking at the source adds", "source", "--cross", "6 2", data.norms.cross_out, 0, data.points.cross_out],
  [`What ${feedForward === "experts" ? "the experts add" : "feed-forward adds"}`, feedForward, "--ffn", "5 3", data.norms.ffn_out, 0, data.points.ffn_out],
  ["The state after each token", "state", "--state", "2 3", data.norms.state, 0, data.points.state],
].filter(([, , , , rows]) => rows);
const FAR = 4; // a vector so many times as long as the median of its row leaves the scale of the others
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function normsPanel() {
  const node = $("norms");
  let which = 0;
  radios($("norms-which"), STREAMS.map(([name]) => name), (i) => {
    which = i;
    draw();
  });
  let follow = () => {};
  const svgRect = (attributes) => el("svg:rect", attributes);
  hover(node, (target) => {
    if (target.dataset.row === undefined) return null;
    const [row, at] = [Number(target.dataset.row), Number(target.dataset.position)];
    const [layer, points] = [row + STREAMS[which][5], STREAMS[which][6]];
    const kind = layer < 0 ? "embed" : `layer ${layer} (${data.layers[layer].filter(Boolean).join(", ")})`;
    return [pair(glyph(labelOf(at)), kind), el("div", {}, `length ${short(STREAMS[which][4][row][at])}`), el("div", { class: "dim" }, glyph(points[row]))];
  });
  node.addEventListener("click", (event) => selectCell(event.target, STREAMS[which][5] < 0));
  return {
    draw() {
      const rows = STREAMS[which][4];
      const first = STREAMS[which][5];
      // the first token's vector is often a hundred times as long as the others: it would take the ramp for itself
      const most = rows.map((row) => FAR * median(row.filter((value) => value !== null)));
      const within = rows.flatMap((row, r) => row.filter((value) => value > 0 && value <= most[r]));
      const [low, high] = within.length ? [Math.min(...within), Math.max(...within)] : [1, 1];
      const far = rows.flatMap((row, r) => row.filter((value) => value > most[r]));
      // lengths grow by factors: a logarithmic ramp
      const place = (value) => (high > low ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : 0);
      TICKS.norm = [[0, short(low)], [0.5, short(Math.sqrt(low * high))], [1, `length ${short(high)}`]];
      $("norms-far").textContent = far.length ? `↑ more than ${FAR} times the median of its row, at most ${Math.round(Math.max(...far)).toLocaleString("en")}: beyond the scale.` : "";
      drawLegend(document.querySelector('[data-legend="norm"]'));
      const [left, total] = [52, node.clientWidth];
      const width = (total - left) / n;
      const cell = Math.max(12, Math.min(26, 190 / rows.length));
      const bottom = width >= 11 ? 66 : 22;
      const height = cell * rows.length;
      const svg = el("svg:svg", { width: total, height: height + bottom, role: "img", "aria-label": `${STREAMS[which][0]}, from ${short(low)} to ${short(high)}` });
      rows.forEach((row, r) => {
        const y = (rows.length - 1 - r) * cell;
        svg.append(el("svg:text", { x: left - 8, y: y + cell / 2 + 4, "text-anchor": "end" }, r + first < 0 ? "embed" : `${r + first}`));
        row.forEach((value, i) => {
          if (value === null) return;
          const gap = width > 5 ? 1 : 0;
          svg.append(svgRect({ x: left + i * width, y, width: width - gap, height: cell - 1, fill: shade("norm", place(value)), "data-row": r, "data-position": i }));
          if (value <= most[r] || width < 8) return;
          svg.append(el("svg:text", { x: left + (i + 0.5) * width, y: y + cell / 2 + 4, class: "far", "text-anchor": "middle" }, "↑"));
          svg.lastChild.style.fill = inkOn("norm", 1);
        });
      });
      svg.append(...tokenAxis((i) => left + i * width, width, height + 14));
      const outline = { fill: "none", stroke: css("--accent"), "pointer-events": "none" };
      const column = svgRect({ ...outline, x: 0, y: 0, width: Math.max(2, width), height: height - 1, "stroke-width": 2 });
      const row = svgRect({ ...outline, x: left, y: 0, width: total - left - 1, height: cell });
      svg.append(column, row);
      follow = () => {
        column.setAttribute("x", left + state.position * width - 0.5);
        row.setAttribute("y", (rows.length - 1 - state.layer + first) * cell - 0.5);
      };
      node.replaceChildren(svg);
    },
    select() {
      follow();
    },
  };
}

/** Of lengths, the ends of a logarithmic axis that has room for all; a length of 0 lies on its lower end. */
function bounds(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return [0.5, 2];
  return [Math.min(...positive) / 1.2, Math.max(...positive) * 1.2];
}
/** Round numbers between the two: powers of ten, and where those are few also twice and five times as much. */
function logTicks(lowest, highest) {
  const powers = Array.from({ length: 24 }, (_, i) => 10 ** (i - 12));
  const within = (ticks) => ticks.filter((tick) => tick >= lowest && tick <= highest).map((tick) => Number(tick.toPrecision(1)));
  const few = within(powers);
  return few.length > 3 ? few : within(powers.flatMap((power) => [power, 2 * power, 5 * power]));
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
      const [left, right, top, height, total] = [54, 82, 10, 210, node.clientWidth];
      const [lowest, highest] = bounds(lines.flatMap((line) => line[3].map(([, value]) => value)));
      const depth = data.norms.resid_post.length;
      const x = (layer) => left + ((total - left - right) * (layer + 1)) / depth;
      const y = (value) => top + height * (1 - Math.log(Math.max(value, lowest) / lowest) / Math.log(highest / lowest));
      const svg = el("svg:svg", { width: total, height: top + height + 26, role: "img", "aria-label": "Length of the selected token's vectors by layer" });
      for (const tick of logTicks(lowest, highest)) {
        svg.append(el("svg:line", { class: "grid", x1: left, x2: total - right, y1: y(tick), y2: y(tick) }));
        svg.append(el("svg:text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, tick.toLocaleString("en")));
      }
      for (let layer = -1; layer < depth; layer += Math.ceil(depth / 6))
        svg.append(el("svg:text", { x: x(layer), y: top + height + 18, "text-anchor": "middle" }, layer < 0 ? "embed" : `${layer}`));
      svg.append(el("svg:line", { class: "mean", x1: x(state.layer), x2: x(state.layer), y1: top, y2: top + height }));
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
