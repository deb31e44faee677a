// What a node, a closed box, a frame and the label of an edge look like. A card is drawn when it comes into view, and
// again when the step or a slider changes what it shows.

const BINS = 9;
const CARD = {
  pad: 12,
  title: 20,
  label: 17,
  cell: 26,
  tall: 34,
  thumb: 24,
  gap: 6,
  toggle: 26,
  most: 270,
  least: 84,
};
const FONTS = { title: "600 13px ", label: "11px ", cell: "12px ", tag: "600 9px ", chip: "11px " };

/** Widths of texts, cached. */
const measureText = (() => {
  const context = document.createElement("canvas").getContext("2d");
  const known = new Map();
  return (text, font) => {
    const key = font + text;
    if (!known.has(key)) {
      context.font =
        FONTS[font] +
        getComputedStyle(document.documentElement).getPropertyValue(
          font === "label" || font === "cell" || font === "chip" ? "--mono" : "--sans",
        );
      known.set(key, context.measureText(text).width);
    }
    return known.get(key);
  };
})();

const KIND_WORDS = {
  parameter: "parameter",
  data: "data",
  const: "constant",
  loss: "loss",
  constant: "loop constant",
  carry: "carry",
  slice: "slice",
  operand: "operand",
};
const BOX_WORDS = {
  scope: "scope",
  function: "function",
  range: "consecutive operations",
  scan: "scan",
  cond: "cond",
  checkpoint: "checkpoint",
  while: "while loop",
  custom: "differentiated as one operation",
};

const expressionOf = (node) =>
  node.kind === "op" || node.kind === "loss" || node.label ? node.label || node.call || node.primitive : "";
const typeOf = (node) => ((node.main.shape || []).length ? node.main.type : "");

/** The longest text of a cell at any step. */
function longest(shown) {
  if (!shown.steps) return brief(shown);
  return shown.steps.text
    .map((text, i) => brief({ text, norm: shown.steps.norm[i] }))
    .reduce((a, b) => (b.length > a.length ? b : a));
}

/** A value as a card shows it: long vectors by their norm. */
const brief = (shown) =>
  shown.text.length > 20 && shown.norm !== undefined ? `‖·‖ ${number(shown.norm)}` : number(shown.text);

const hasThumb = (shown) =>
  Boolean(shown) && Boolean(shown.steps ? (shown.steps.thumbs || []).length : shown.thumb);

/** Widths in multiples of 16, so that similar boxes have cards of equal size and share a layout. */
const grid = (width) => Math.ceil(width / 16) * 16;

function planCard(model, node) {
  if (node.plan) return node.plan;
  const title = cutName(node.short, 30);
  const tag = KIND_WORDS[node.kind] || "";
  const type = typeOf(node);
  const label = cut(expressionOf(node), 36);
  const value = node.main.value;
  const cotangent = node.main.cotangent;
  const tall = hasThumb(value) || hasThumb(cotangent);
  const toggle = node.bodies.length ? CARD.toggle : 0;
  const cellWidth = (shown, sign) =>
    shown ? grid(measureText(sign + longest(shown), "cell") + 16) + (hasThumb(shown) ? CARD.thumb + 6 : 0) : 0;
  const cells = [cellWidth(value, ""), cellWidth(cotangent, "∂ ")];
  const gap = cells[0] && cells[1] ? CARD.gap : 0;
  const top =
    measureText(title, "title") +
    (tag ? measureText(tag.toUpperCase(), "tag") * 1.1 + 16 : 0) +
    (type ? measureText(type, "label") + 12 : 0) +
    toggle;
  const inner = Math.max(top, measureText(label, "label"), cells[0] + cells[1] + gap);
  const width = grid(Math.max(CARD.least, inner + 2 * CARD.pad));
  const row = cells[0] || cells[1] ? (tall ? CARD.tall : CARD.cell) + 6 : 0;
  const height = CARD.pad + CARD.title + (label ? CARD.label : 0) + row + CARD.pad - 4;
  node.plan = { title, tag, type, label, cells, gap, row, tall, toggle, width, height };
  return node.plan;
}

function planBox(box) {
  if (box.plan) return box.plan;
  const title = cut(box.name || box.path || box.kind, 30);
  const sub = boxWords(box);
  const cotangent =
    box.cotangent === undefined || box.cotangent === null ? "" : `max ‖∂‖ ${number(box.cotangent, 3)}`;
  const inner = Math.max(
    measureText(title, "title") + 40,
    measureText(sub, "label"),
    cotangent ? measureText(cotangent, "cell") + 18 : 0,
    120,
  );
  const row = Boolean(cotangent || box.badCotangents);
  box.plan = {
    title,
    sub,
    cotangent,
    width: grid(inner + 2 * CARD.pad),
    row,
    height: CARD.pad + CARD.title + CARD.label + (row ? CARD.cell + 6 : 0) + CARD.pad - 4,
  };
  return box.plan;
}

function boxWords(box) {
  const parts = [plural(box.count, "operation")];
  if (box.kind === "scan" && box.length) parts.unshift(`scan of ${plural(box.length, "step")}`);
  else if (box.kind !== "scope" && box.branch === undefined) parts.unshift(BOX_WORDS[box.kind] || box.kind);
  if (box.taken === 0) parts.push("not taken");
  return parts.join(" · ");
}

/** The size of a child that is drawn as a card. */
function measureChild(model, child) {
  return isGroup(child) ? planBox(child.box) : planCard(model, child.node);
}

// --- colour -----------------------------------------------------------------------------------------

/** The class of a cotangent's colour: `c0` ... `c8` by log10 of its norm, `zero`, `nonfinite`, or "". */
function colourClass(model, norm, nonfinite) {
  if (nonfinite || isBad(norm)) return "nonfinite";
  if (norm === null || norm === undefined) return "";
  if (norm === 0 || !model.scale) return "zero";
  const [low, high] = model.scale;
  const part = (Math.log10(norm) - low) / (high - low);
  return `c${Math.max(0, Math.min(BINS - 1, Math.floor(part * BINS)))}`;
}

const colourOf = (model, shown) => (shown ? colourClass(model, shown.norm, bad(shown)) : "");
const boxColour = (model, box) => colourClass(model, box.cotangent, box.badCotangents);

/** A heat map as an image: blue below zero, amber above, a cross for a block that is not finite. */
function heatMap(thumb, cell = 1) {
  const theme = document.documentElement.dataset.theme;
  const key = `${theme}${cell}`;
  thumb.pictures = thumb.pictures || {};
  if (!thumb.pictures[key]) thumb.pictures[key] = paintHeatMap(thumb, cell);
  return thumb.pictures[key];
}

function paintHeatMap(thumb, cell) {
  const canvas = h("canvas", { width: thumb.cols * cell, height: thumb.rows * cell });
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [below, middle, above, ink] = ["--below", "--middle", "--above", "--ink"].map((name) =>
    rgb(style.getPropertyValue(name)),
  );
  thumb.data.forEach((value, i) => {
    const x = (i % thumb.cols) * cell;
    const y = Math.floor(i / thumb.cols) * cell;
    if (value === null) return crossOut(context, x, y, cell, ink);
    const end = value < 0 ? below : above;
    const part = Math.min(1, Math.abs(value) / 100) ** 0.8;
    context.fillStyle = `rgb(${middle.map((from, c) => Math.round(from + (end[c] - from) * part))})`;
    context.fillRect(x, y, cell, cell);
  });
  return canvas.toDataURL();
}

function crossOut(context, x, y, cell, ink) {
  context.fillStyle = `rgb(${ink})`;
  if (cell < 4) return context.fillRect(x, y, cell, cell);
  context.strokeStyle = context.fillStyle;
  context.lineWidth = Math.max(1, cell / 8);
  context.beginPath();
  context.moveTo(x + 1, y + 1);
  context.lineTo(x + cell - 1, y + cell - 1);
  context.moveTo(x + cell - 1, y + 1);
  context.lineTo(x + 1, y + cell - 1);
  context.stroke();
}

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16));

// --- cards ------------------------------------------------------------------------------------------

/** Draw the card of a node. `state`: {value, cotangent: whether they are revealed, reads: the text of a badge}. */
function drawNode(model, group, node, state) {
  const plan = planCard(model, node);
  const value = valueOf(node);
  const cotangent = cotangentOf(node);
  const warn = (state.value && bad(value)) || (state.cotangent && bad(cotangent));
  const whole = [node.name, expressionOf(node)].filter(Boolean).join(" = ");
  group.replaceChildren(
    ...(plan.title === node.name && plan.label === expressionOf(node) ? [] : [s("title", {}, whole)]),
  );
  if (node.kind === "loss")
    group.append(
      s("rect", { class: "halo", x: -4, y: -4, width: plan.width + 8, height: plan.height + 8, rx: 13 }),
    );
  const round = ARGUMENTS.has(node.kind) ? Math.min(18, plan.height / 2) : 9;
  group.append(s("rect", { class: "body", width: plan.width, height: plan.height, rx: round }));
  const base = CARD.pad + 13 - 4;
  group.append(s("text", { class: "name", x: CARD.pad, y: base }, plan.title));
  let right = plan.width - CARD.pad - plan.toggle;
  if (plan.toggle) group.append(toggleSign(plan.width - 27, 6, ICONS.open));
  if (warn) {
    group.append(warningSign(right - 12, base - 11));
    right -= 18;
  }
  if (plan.tag)
    group.append(s("text", { class: "tag", x: right, y: base - 1, "text-anchor": "end" }, plan.tag));
  if (plan.tag) right -= measureText(plan.tag.toUpperCase(), "tag") * 1.1 + 10;
  if (plan.type) group.append(s("text", { class: "type", x: right, y: base, "text-anchor": "end" }, plan.type));
  if (plan.label) group.append(s("text", { class: "label", x: CARD.pad, y: base + CARD.label }, plan.label));
  if (plan.row) drawCells(model, group, plan, state, value, cotangent);
  if (state.reads) group.append(readBadge(plan, state.reads));
}

function drawCells(model, group, plan, state, value, cotangent) {
  const free = plan.width - 2 * CARD.pad - plan.cells[0] - plan.cells[1] - plan.gap;
  const both = plan.cells[0] && plan.cells[1];
  const y = plan.height - CARD.pad + 3 - plan.row + 3;
  const height = plan.row - 6;
  const widths = plan.cells.map((width) => (width ? width + free / (both ? 2 : 1) : 0));
  if (widths[0]) drawCell(group, "cell value", CARD.pad, y, widths[0], height, state.value ? value : null, "");
  if (widths[1]) {
    const colour = state.cotangent ? colourOf(model, cotangent) : "waiting";
    drawCell(
      group,
      `cell cotangent ${colour}`,
      CARD.pad + widths[0] + plan.gap,
      y,
      widths[1],
      height,
      state.cotangent ? cotangent : null,
      "∂ ",
    );
  }
}

function drawCell(group, style, x, y, width, height, shown, sign) {
  const cell = s("g", { class: style, transform: `translate(${x} ${y})` });
  cell.append(s("rect", { width, height, rx: 5 }));
  if (style.includes("nonfinite")) cell.append(s("rect", { class: "hatch", width, height, rx: 5 }));
  if (!shown) {
    cell.append(s("text", { class: "none", x: width / 2, y: height / 2 + 4, "text-anchor": "middle" }, "·"));
  } else {
    let left = 9;
    if (shown.thumb) {
      cell.append(thumbImage(shown.thumb, 5, (height - CARD.thumb) / 2));
      left = CARD.thumb + 11;
    }
    const text = s(
      "text",
      { x: left, y: height / 2 + 4 },
      sign ? s("tspan", { class: "sign" }, sign) : null,
      brief(shown),
    );
    cell.append(text);
  }
  group.append(cell);
}

function thumbImage(thumb, x, y) {
  const flat = thumb.rows === 1;
  const size = flat
    ? { width: CARD.thumb, height: 10, y: y + 7 }
    : { width: CARD.thumb, height: CARD.thumb, y };
  const image = s("image", { class: "thumb", x, preserveAspectRatio: "none", ...size });
  image.setAttribute("href", heatMap(thumb));
  return s("g", {}, image, s("rect", { class: "thumb-edge", x, ...size, rx: 1 }));
}

function warningSign(x, y) {
  return s(
    "g",
    { class: "warning", transform: `translate(${x} ${y})` },
    s("path", { d: "M6 0.5L12.5 12h-13z" }),
    s("path", { class: "mark", d: "M6 4.2v4M6 9.6v.6" }),
  );
}

function readBadge(plan, text) {
  const width = measureText(text, "chip") + 24;
  return s(
    "g",
    { class: "read-badge", transform: `translate(${plan.width - width - 8} ${plan.height - 8})` },
    s("rect", { width, height: 17, rx: 8.5 }),
    s("path", { d: "M8 4.5h6v8l-3-2.4-3 2.4z" }),
    s("text", { x: 18, y: 12.5 }, text),
  );
}

/** Draw the card of a closed box. */
function drawClosed(model, group, box, state) {
  const plan = planBox(box);
  group.replaceChildren();
  group.append(s("rect", { class: "sheet", x: 6, y: 6, width: plan.width, height: plan.height, rx: 9 }));
  group.append(s("rect", { class: "sheet", x: 3, y: 3, width: plan.width, height: plan.height, rx: 9 }));
  group.append(s("rect", { class: "body", width: plan.width, height: plan.height, rx: 9 }));
  const base = CARD.pad + 9;
  group.append(s("text", { class: "name", x: CARD.pad, y: base }, plan.title));
  group.append(s("text", { class: "label", x: CARD.pad, y: base + CARD.label }, plan.sub));
  if (box.badCotangents) group.append(warningSign(plan.width - CARD.pad - 34, base - 11));
  if (plan.row) {
    const shown = state.cotangent ? { text: plan.cotangent || "not finite" } : null;
    drawCell(
      group,
      `cell cotangent ${state.cotangent ? boxColour(model, box) : "waiting"}`,
      CARD.pad,
      plan.height - CARD.pad - CARD.cell + 6,
      plan.width - 2 * CARD.pad,
      CARD.cell,
      shown,
      "",
    );
  }
  group.append(toggleSign(plan.width - 27, 6, ICONS.open));
}

function toggleSign(x, y, path) {
  return s(
    "g",
    { class: "toggle", transform: `translate(${x} ${y})`, "data-toggle": "" },
    s("rect", { width: 21, height: 21, rx: 5 }),
    s("path", { transform: "translate(2.5 2.5) scale(0.667)", d: path }),
  );
}

/** Draw an open box: its ground, under the edges, and its head, above them. */
function drawFrame(ground, head, box, item) {
  ground.replaceChildren(s("rect", { class: "frame-body", width: item.width, height: item.height, rx: 12 }));
  const title = frameTitle(box);
  const words = boxWords(box);
  const rest = 48 + measureText(title, "title");
  const fits = item.width > rest + measureText(words, "label") + 20;
  head.replaceChildren(
    ...[
      toggleSign(9, 8, ICONS.fold),
      s("text", { class: "name", x: 38, y: 23 }, title),
      fits ? s("text", { class: "label", x: rest, y: 23 }, words) : null,
      item.depth ? null : s("text", { class: "far-name", x: item.width, y: 0, dx: "0.6em", dy: "1em" }, title),
    ].filter(Boolean),
  );
}

const frameTitle = (box) => cut(box.name || box.path || box.kind, 40);

// --- edges ------------------------------------------------------------------------------------------

/** The label of an edge: its local gradient, and the contribution if the value has several consumers. */
function chipLines(model, edges) {
  const lines = [];
  for (const edge of edges) {
    const local = edge.local;
    if (!local) continue;
    const text = chipText(edge, local);
    if (text) lines.push({ kind: "local", text });
    const consumers = edge.from.consumers.filter((other) => other.share).length;
    if (shareOf(edge) && consumers > 1) lines.push({ kind: "share", text: `∂ ${brief(edge.share)}` });
  }
  return lines.length > 4 ? [] : lines;
}

function chipText(edge, local) {
  const names = `∂${cut(edge.to.short, 14)}/∂${cut(edge.short, 14)}`;
  if (local.number !== undefined && local.number !== null) return `${names} = ${number(local.number)}`;
  const [left, right] = [(local.text || "").split(" = ")[0], rightSide(local.text)];
  const text = /^d.+\/d/.test(left) && right ? `${names} = ${right}` : local.text || "";
  return text && text.length <= 36 ? text : local.kind || "";
}

function chipSize(lines) {
  if (!lines.length) return null;
  return {
    width: Math.max(...lines.map(({ text }) => measureText(text, "chip"))) + 14,
    height: 15 * lines.length + 5,
  };
}
