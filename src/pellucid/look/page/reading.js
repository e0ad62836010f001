// The text, what is expected next, and what each token cost.

function addTokens(node) {
  const spans = data.tokens.map(([, prose, , special], position) => {
    const span = el("span", { class: "token", "data-position": position, id: `${node.id}-${position}` }, prose);
    span.classList.toggle("faint", special);
    return span;
  });
  node.replaceChildren(...spans);
  node.addEventListener("click", (event) => {
    if (event.target.dataset.position) select({ position: Number(event.target.dataset.position) });
  });
  return spans;
}

function textPanel() {
  const node = $("text");
  const spans = addTokens(node);
  spans.forEach((span) => span.setAttribute("role", "option"));
  hover(node, (target) => target.dataset.position && tokenTip(Number(target.dataset.position)));
  return {
    draw() {
      spans.forEach((span, position) => {
        if (bits[position] !== null) span.style.background = shade("surprise", surprise(bits[position]));
      });
    },
    select() {
      spans.forEach((span, position) => {
        span.classList.toggle("selected", position === state.position);
        span.setAttribute("aria-selected", position === state.position);
      });
      node.setAttribute("aria-activedescendant", spans[state.position].id);
      reveal(node, spans[state.position]);
    },
  };
}

function selectedPanel() {
  $("back").addEventListener("click", () => select({ position: state.position - 1 }));
  $("forward").addEventListener("click", () => select({ position: state.position + 1 }));
  $("keys").textContent = anyHeads ? "← → token · ↑ ↓ layer · shift ← → head" : "← → token · ↑ ↓ layer";
  return {
    select() {
      const at = state.position;
      $("back").disabled = at === 0;
      $("forward").disabled = at === n - 1;
      const parts = [`token ${at} of ${n - 1}  `, glyph(labelOf(at))];
      if (guesses && !ahead) parts.push(";  best guess here ", glyph(data.labels[data.topIds[at][0]]), ` ${percent(data.topProbs[at][0])}`);
      if (bits[at] !== null) parts.push(` cost ${inBits(bits[at])}`);
      if (guesses && ahead && at < n - 1) parts.push(";  then comes ", glyph(labelOf(at + 1)), `, guess #${data.rank[at].toLocaleString("en")}`);
      $("selected-text").replaceChildren(...parts);
      $("selected-layer").textContent = anyHeads ? headTitle() : `layer ${state.layer}`;
    },
  };
}

function nextPanel() {
  $("next-panel").hidden = !guesses;
  if (!guesses) return {};
  if (!ahead) {
    $("next-title").textContent = "What stands here?";
    $("next-explain").textContent = "The model's best guesses for the selected place, from the whole text; only behind a mask is this a riddle.";
    $("next-panel").classList.replace("narrow", "wide");
  }
  const row = (rank, text, p, kind, widest) => {
    const bar = el("div", { class: "bar" });
    bar.style.width = `${(100 * p) / widest}%`;
    return el(
      "tr",
      { class: kind },
      el("td", { class: "rank" }, rank),
      el("td", { class: "guess", title: text }, glyph(text)),
      el("td", {}, bar),
      el("td", { class: "value" }, percent(p)),
    );
  };
  return {
    select() {
      const at = state.position;
      const hidden = ahead ? at === n - 1 : data.masked.includes(at);
      const actual = hidden ? null : data.tokens[at + ahead][0];
      const [ids, probs] = [data.topIds[at], data.topProbs[at]];
      const rows = ids.map((id, i) => row(`${i + 1}`, data.labels[id], probs[i], id === actual ? "actual" : "", probs[0]));
      if (actual !== null && !ids.includes(actual))
        rows.push(row(count(data.rank[at]), labelOf(at + ahead), Math.exp(-(data.loss[at] ?? Infinity)), "actual beyond", probs[0]));
      $("next").tBodies[0].replaceChildren(...rows);
      const open = ahead ? "The text ends here. " : "A mask hides what stands here. ";
      const came = hidden ? open : `Green is what really ${ahead ? "came next" : "stands here"}. `;
      const choices = 2 ** data.entropy[at];
      $("next-note").textContent = `${came}Entropy ${inBits(data.entropy[at])}: as unsure as among ${short(choices)} equally likely tokens.`;
    },
  };
}

/** A horizontal axis of tokens: every label where there is room for it, else a number now and then. */
function tokenAxis(x, width, y) {
  if (width >= 11)
    return data.tokens.map((_, i) => {
      const text = labelOf(i).length > 9 ? `${labelOf(i).slice(0, 8)}…` : labelOf(i);
      const at = x(i) + width / 2 + 3;
      return el("svg:text", { x: at, y, class: "mono", "text-anchor": "end", transform: `rotate(-60 ${at} ${y})` }, text);
    });
  const step = 2 ** Math.ceil(Math.log2(48 / width));
  const ticks = Array.from({ length: Math.ceil(n / step) }, (_, i) => i * step);
  return ticks.map((i) => el("svg:text", { x: x(i) + width / 2, y: y + 4, "text-anchor": "middle" }, `${i}`));
}

function lossPanel() {
  $("loss-panel").hidden = !guesses || !ahead;
  if ($("loss-panel").hidden) return {};
  const node = $("loss");
  let bars = [];
  const finite = bits.slice(1).filter(Number.isFinite);
  const mean = finite.reduce((sum, x) => sum + x, 0) / Math.max(1, finite.length);
  hover(node, (target) => target.dataset.position && tokenTip(Number(target.dataset.position)));
  node.addEventListener("click", (event) => {
    if (event.target.dataset.position) select({ position: Number(event.target.dataset.position) });
  });
  return {
    draw() {
      if (n < 2) return node.replaceChildren("One token alone has nothing before it that could predict it.");
      const [left, right, top, height] = [34, 6, 8, 262];
      const total = node.clientWidth;
      const width = (total - left - right) / n;
      const bottom = width >= 11 ? 66 : 22;
      const highest = Math.max(8, ...finite);
      const y = (x) => top + height * (1 - Math.min(x, highest) / highest);
      const svg = el("svg:svg", { width: total, height: top + height + bottom, role: "img", "aria-label": `Bar chart of bits per token, mean ${short(mean)}` });
      const step = highest > 12 ? 4 : 2;
      for (let tick = 0; tick <= highest; tick += step) {
        svg.append(el("svg:line", { class: "grid", x1: left, x2: total - right, y1: y(tick), y2: y(tick) }));
        svg.append(el("svg:text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${tick}`));
      }
      const x = (i) => left + i * width;
      bars = bits.map((value, i) => {
        if (i === 0) return null;
        const gap = width > 4 ? 1 : 0;
        const fill = shade("surprise", 0.22 + 0.78 * surprise(value));
        svg.append(el("svg:rect", { class: "bar", fill, x: x(i) + gap, width: Math.max(1, width - 2 * gap), y: y(value), height: Math.max(1, top + height - y(value)), rx: width > 8 ? 2 : 0 }));
        const mark = svg.lastChild;
        svg.append(el("svg:rect", { fill: "transparent", "data-position": i, class: "bar", x: x(i), width, y: top, height: height + bottom }));
        return mark;
      });
      svg.append(el("svg:line", { class: "mean", x1: left, x2: total - right, y1: y(mean), y2: y(mean), "pointer-events": "none" }));
      svg.append(...tokenAxis(x, width, top + height + 14));
      node.replaceChildren(svg);
    },
    select() {
      bars.forEach((bar, i) => bar?.classList.toggle("selected", i === state.position));
      if (n < 2) return;
      const own = state.position > 0 ? `selected ${inBits(bits[state.position])} · ` : "";
      $("loss-readout").textContent = `${own}mean ${short(mean)} bits a token (dashed)`;
    },
  };
}
