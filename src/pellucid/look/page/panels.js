// What was measured inside the model: a table of shares for each panel. Arrow keys walk through its cells.

function measuredPanels() {
  const cells = []; // [element, share]
  for (const [number, { title, note, rows, columns, values, ranked, words }] of data.panels.entries()) {
    const readout = el("p", { class: "readout muted", "aria-live": "polite" });
    const node = el("div", { class: "scroller measured", tabindex: "0", role: "region", "aria-label": `${title}, a table` });
    const order = ranked ? rows.map((_, row) => row) : rows.map((_, row) => rows.length - 1 - row); // deep layers above
    const grid = order.map((row) =>
      columns.map((column, i) => {
        const share = values[row][i];
        const cell = el("td", {}, share === null ? "" : `${Math.round(100 * share)}%`);
        cells.push([cell, share]);
        return Object.assign(cell, { told: `${rows[row]} · ${column}: ${share === null ? "none" : `${(100 * share).toFixed(1)}%`}` });
      }),
    );
    const head = el("tr", {}, el("th", { scope: "row" }), ...columns.map((column) => el("th", { scope: "col", title: column }, column)));
    if (words.length) head.append(el("td"));
    const body = grid.map((line, i) => el("tr", {}, el("th", { scope: "row" }, rows[order[i]]), ...line, ...(words.length ? [el("td", { class: "words" }, words[order[i]])] : [])));
    node.append(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
    const at = [0, 0];
    const choose = (row, column) => {
      grid[at[0]][at[1]].classList.remove("selected");
      [at[0], at[1]] = [clamp(row, grid.length - 1), clamp(column, columns.length - 1)];
      const cell = grid[at[0]][at[1]];
      cell.classList.add("selected");
      readout.textContent = cell.told;
      reveal(node, cell, [head.offsetHeight, head.firstChild.offsetWidth]);
    };
    node.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || event.shiftKey) return;
      event.preventDefault();
      choose(at[0] + step[0], at[1] + step[1]);
    });
    node.addEventListener("click", (event) => {
      const row = grid.findIndex((line) => line.includes(event.target));
      if (row >= 0) choose(row, grid[row].indexOf(event.target));
    });
    hover(node, (target) => target.told && [el("div", {}, target.told)]);
    const id = `measured-${number}-title`;
    const top = el("div", { class: "title" }, el("h2", { id }, title), readout);
    const card = el("section", { class: "card wide", "aria-labelledby": id }, top, el("p", { class: "explain" }, note), node);
    $("text-panel").before(card);
  }
  return {
    draw() {
      for (const [cell, share] of cells) {
        cell.style.background = share === null ? "" : shade("probability", share);
        cell.style.color = share === null ? "" : inkOn("probability", clamp(share, 1));
      }
    },
  };
}
