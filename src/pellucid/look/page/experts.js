// Mixture of experts: where each token was sent, layer by layer, and how evenly the work is spread.

/** A colour of its own for each expert: hues go round by the golden angle, so that neighbours in number look apart. */
function expertColour(expert) {
  const [lightness, chroma] = theme() === "dark" ? [0.46, 0.095] : [0.86, 0.075];
  return `rgb(${toSRGB([lightness, chroma, (25 + 137.508 * expert) % 360]).join(" ")})`;
}

function expertsPanel() {
  $("experts-panel").hidden = data.experts.length === 0;
  if (data.experts.length === 0) return {};
  const node = $("experts");
  const coloured = []; // [element, expert]
  const columns = []; // [position] -> elements
  const header = (position) => el("th", { scope: "col", "data-position": position, title: labelOf(position) }, labelOf(position));
  const heads = data.tokens.map((_, position) => header(position));
  heads.forEach((head, position) => (columns[position] = [head]));
  const body = el("tbody");
  data.experts.forEach(({ layer, ids, load }, row) => {
    const cells = ids.map((experts, position) => {
      const marks = experts.map((expert) => {
        const mark = el("span", { "data-row": row, "data-position": position }, `${expert}`);
        coloured.push([mark, expert]);
        return mark;
      });
      const cell = el("td", { "data-row": row, "data-position": position }, ...marks);
      columns[position].push(cell);
      return cell;
    });
    const shares = load.map((share, expert) => {
      const part = el("span", { "data-row": row, "data-expert": expert }, share >= 0.07 ? `${expert}` : "");
      part.style.flexGrow = share;
      part.hidden = share === 0; // an idle expert has no width, not two pixels
      coloured.push([part, expert]);
      return part;
    });
    const name = el("th", { scope: "row", title: data.points.experts[layer] }, `layer ${layer}`);
    body.prepend(el("tr", {}, name, el("td", { class: "load" }, el("div", {}, ...shares)), ...cells));
  });
  const top = el("tr", {}, el("th", { scope: "row" }), el("th", { class: "load" }, "share of the work"), ...heads);
  node.replaceChildren(el("table", {}, el("thead", {}, top), body));
  node.addEventListener("click", (event) => {
    const at = event.target.closest("[data-position]");
    if (at) select({ position: Number(at.dataset.position) });
  });
  hover(node, (target) => {
    if (target.dataset.row === undefined) return null;
    const { layer, ids, weights, load } = data.experts[Number(target.dataset.row)];
    const title = (...what) => el("div", { class: "dim" }, `layer ${layer}: `, ...what);
    if (target.dataset.expert !== undefined) {
      const expert = Number(target.dataset.expert);
      const even = `${percent(1 / load.length)} if all had the same`;
      return [title(`expert ${expert} of ${load.length}`), el("b", {}, `${percent(load[expert])} of the work`), el("div", { class: "dim" }, even)];
    }
    const at = Number(target.dataset.position);
    return [title(glyph(labelOf(at)), " is given to"), ...ids[at].map((expert, i) => pair(`expert ${expert}`, `weight ${percent(weights[at][i])}`))];
  });
  let marked = [];
  return {
    draw() {
      for (const [mark, expert] of coloured) mark.style.background = expertColour(expert);
    },
    select() {
      marked.forEach((cell) => cell.classList.remove("selected"));
      marked = columns[state.position];
      marked.forEach((cell) => cell.classList.add("selected"));
      reveal(node, heads[state.position], [0, heads[0].offsetLeft]); // the first columns are frozen
    },
  };
}
