// Attention: all heads as small pictures, one of them enlarged, and where the selected token looks in the text.

const { size, stride, causal } = data.patterns;
const groupOf = (position) => Math.floor(position / stride);
const groupName = (group) => {
  const [from, to] = [group * stride, Math.min(n, (group + 1) * stride) - 1];
  return from === to ? labelOf(from) : `${labelOf(from)} … ${labelOf(to)}`;
};
const decoded = new Map();
/** Bytes of one head; byte = 255·√weight; above the diagonal of a causal model nothing is stored. */
function patternOf(layer, head) {
  const key = `${layer}.${head}`;
  if (!decoded.has(key)) decoded.set(key, Uint8Array.from(atob(data.patterns.heads[layer][head]), (char) => char.charCodeAt(0)));
  return decoded.get(key);
}
const place = (row, column) => (causal ? (row * (row + 1)) / 2 + column : row * size + column);
const weight = (layer, head, row, column) => (causal && column > row ? 0 : (patternOf(layer, head)[place(row, column)] / 255) ** 2);

function paint(canvas, layer, head) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const bytes = patternOf(layer, head);
  const pixels = new Uint32Array(image.data.buffer); // one write a pixel; every browser's platform is little-endian
  const colours = table("attention").map(([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red);
  for (let row = 0, from = 0; row < size; row++) {
    const end = causal ? row + 1 : size;
    for (let column = 0; column < end; column++, from++) pixels[row * size + column] = colours[bytes[from]];
  }
  context.putImageData(image, 0, 0);
}

// where a head may look: [in a word, in a sentence]
const PLACES = [["first", "the first token"], ["previous", "the previous one"], ["itself", "itself"], ["next", "the next one"], ["last", "the last one"]].slice(0, ahead ? 3 : 5);
/** What a head mostly does, where one word says it: over half of its attention goes to one kind of place. */
function habit(layer, head) {
  const before = data.patterns.heads.slice(0, layer).reduce((sum, heads) => sum + heads.length, 0);
  const shares = data.heads[before + head].slice(0, PLACES.length);
  const most = Math.max(...shares);
  return { shares, word: most < 0.5 ? "" : PLACES[shares.indexOf(most)][0] };
}

const headTitle = (layer = state.layer, head = state.head) => `layer ${layer}, head ${head}`;

function headsPanel() {
  $("no-heads").hidden = anyHeads;
  for (const id of ["attention", "attention-explain", "attention-legend"]) $(id).hidden = !anyHeads;
  if (!ahead) $("attention-explain").firstChild.textContent = "To digest a token (row), each head looks at all tokens (columns) and takes a little from each; a stronger colour means more. Click a head to enlarge it. ";
  const buttons = [];
  const widest = Math.max(...data.patterns.heads.map((heads) => heads.length));
  const body = el("tbody");
  data.patterns.heads.forEach((heads, layer) => {
    const row = el("tr", {}, el("th", { scope: "row", title: data.points.pattern[layer] }, `${layer}`));
    heads.forEach((_, head) => {
      const canvas = el("canvas", { class: size > 90 ? "fine" : "" });
      const button = el("button", { type: "button", class: causal ? "head" : "head full", "aria-label": headTitle(layer, head), "data-layer": layer, "data-head": head }, canvas, el("span", {}, habit(layer, head).word));
      button.addEventListener("click", () => select({ layer, head }));
      buttons.push({ layer, head, button, canvas });
      row.append(el("td", {}, button));
    });
    if (heads.length === 0) row.append(el("td", { class: "headless", colspan: widest }, `${data.layers[layer][0]}: a running state, no pattern to draw`));
    body.prepend(row);
  });
  const numbers = Array.from({ length: widest }, (_, head) => el("th", { scope: "col" }, `${head}`));
  const corner = el("th", { "aria-label": "layer" });
  $("heads").replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, corner, ...numbers)), body));
  $("heads").firstChild.style.minWidth = `${30 + 44 * widest}px`;
  if (stride > 1) $("merged").textContent = `To keep this page small, every cell is the strongest of ${stride} × ${stride} tokens.`;
  hover($("heads"), (target) => {
    const button = target.closest(".head");
    if (!button) return null;
    const [layer, head] = [Number(button.dataset.layer), Number(button.dataset.head)];
    const { shares } = habit(layer, head);
    const lines = PLACES.map(([, name], i) => pair(name, percent(shares[i])));
    return [el("b", {}, headTitle(layer, head)), el("div", { class: "dim" }, "looks on average at"), ...lines];
  });
  let drawing = 0;
  return {
    draw() {
      const turn = ++drawing;
      const waiting = [...buttons];
      const some = () => {
        if (turn !== drawing) return; // a newer draw has begun
        waiting.splice(0, 24).forEach(({ canvas, layer, head }) => paint(canvas, layer, head));
        if (waiting.length) requestAnimationFrame(some);
      };
      some();
    },
    select() {
      const focused = $("heads").contains(document.activeElement);
      for (const { layer, head, button } of buttons) {
        const pressed = layer === state.layer && head === state.head;
        button.setAttribute("aria-pressed", pressed);
        button.tabIndex = pressed ? 0 : -1; // the arrow keys lead to the others
        if (!pressed) continue;
        reveal($("heads"), button, [corner.offsetHeight, corner.offsetWidth]);
        if (focused) button.focus({ preventScroll: true });
      }
    },
  };
}

function headPanel() {
  const node = $("head-map");
  const canvas = el("canvas", { role: "img", tabindex: 0 });
  const bitmap = document.createElement("canvas");
  node.replaceChildren(canvas);
  const spans = addTokens($("head-text"));
  let frame = { left: 0, top: 0, cell: 1 };
  let pointed = null;
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - frame.left) / frame.cell);
    const row = Math.floor((event.clientY - box.top - frame.top) / frame.cell);
    return row >= 0 && row < size && column >= 0 && column < size ? [row, column] : null;
  };

  function drawMap() {
    const total = Math.min(node.clientWidth, Math.max(260, 0.66 * innerHeight)); // seen whole beside the bar of the selection
    const margin = Math.min(96, 12 + 7 * Math.max(...data.tokens.map(([, , label]) => Math.min(12, label.length))));
    const cell = Math.min(30, (total - margin - 4) / size);
    frame = { left: margin, top: margin, cell };
    const side = margin + cell * size + 4;
    const scale = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: side * scale, height: side * scale });
    Object.assign(canvas.style, { width: `${side}px`, height: `${side}px` });
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, margin, margin, cell * size, cell * size);
    const step = Math.ceil(11 / cell);
    const selected = groupOf(state.position);
    const [ink, muted, accent] = [css("--ink"), css("--muted"), css("--accent")];
    const lit = pointed ?? [selected, null];
    const write = (group, across) => {
      const strong = group === (across ? lit[1] : lit[0]);
      const close = lit[across ? 1 : 0] !== null && Math.abs(group - lit[across ? 1 : 0]) * cell < 11;
      if (!strong && (group % step || (step > 1 && close))) return;
      const name = groupName(group);
      context.fillStyle = strong ? ink : muted;
      context.font = `${strong ? "700 " : ""}11px ${getComputedStyle($("text")).fontFamily}`;
      context.save();
      const middle = margin + (group + 0.5) * cell;
      context.translate(across ? middle : margin - 6, across ? margin - 6 : middle);
      if (across) context.rotate(-Math.PI / 2);
      context.textAlign = across ? "left" : "right";
      context.textBaseline = "middle";
      context.fillText(name.length > 12 ? `${name.slice(0, 11)}…` : name, 0, 0);
      context.restore();
    };
    for (let group = 0; group < size; group++) [true, false].forEach((across) => write(group, across));
    context.strokeStyle = accent;
    context.lineWidth = 1.5;
    context.strokeRect(margin, margin + selected * cell, cell * (causal ? selected + 1 : size), cell);
    if (pointed) {
      context.strokeStyle = ink;
      context.strokeRect(margin + pointed[1] * cell, margin + pointed[0] * cell, cell, cell);
    }
  }

  canvas.addEventListener("pointermove", (event) => {
    pointed = cellAt(event);
    drawMap();
    if (!pointed) return hideTip();
    const [row, column] = pointed;
    const value = causal && column > row ? "cannot see what comes later" : percent(weight(state.layer, state.head, row, column));
    showTip(event, [el("div", {}, glyph(groupName(row)), " looks at ", glyph(groupName(column))), el("b", {}, value)]);
  });
  canvas.addEventListener("pointerleave", () => {
    pointed = null;
    hideTip();
    drawMap();
  });
  canvas.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at) select({ position: at[0] * stride });
  });
  hover($("head-text"), (target) => {
    if (!target.dataset.position) return null;
    const at = Number(target.dataset.position);
    return [el("div", {}, glyph(labelOf(state.position)), " looks at ", glyph(labelOf(at))), el("b", {}, percent(weight(state.layer, state.head, groupOf(state.position), groupOf(at))))];
  });

  function show() {
    const { layer, head, position } = state;
    paint(bitmap, layer, head);
    const { shares } = habit(layer, head);
    const name = headTitle();
    $("head-title").replaceChildren(`${name[0].toUpperCase()}${name.slice(1)} `, el("code", { class: "muted" }, `${data.points.pattern[layer]}[0, ${head}]`));
    $("head-habit").textContent = `on average ${PLACES.map(([, place], i) => `${percent(shares[i])} to ${place}`).join(", ")}`;
    canvas.setAttribute("aria-label", `${name}: attention of every token (rows) to every token (columns)`);
    $("head-text-title").replaceChildren("Where ", glyph(labelOf(position)), ` (outlined) looks, in ${name}:`);
    spans.forEach((span, at) => {
      const value = Math.sqrt(weight(layer, head, groupOf(position), groupOf(at)));
      const unseen = causal && at > position;
      span.style.background = unseen ? "none" : shade("attention", value);
      span.style.color = unseen ? "var(--muted)" : inkOn("attention", value);
      span.classList.toggle("selected", at === position);
    });
    reveal($("head-text"), spans[position]);
    drawMap();
  }
  return anyHeads ? { select: show } : {};
}
