// The details of what is selected: value, cotangent, operands, consumers, source; for a box, its totals.

function showDetail(page, id) {
  const panel = document.getElementById("detail");
  const item = id && page.childOf(id);
  panel.hidden = !item;
  if (!item) return panel.replaceChildren();
  const close = h(
    "button",
    { class: "tool", "aria-label": "Close details", title: "Close (Esc)", onclick: () => page.select(null) },
    icon(ICONS.close),
  );
  const content = isGroup(item) ? boxDetail(page, item.box) : nodeDetail(page, item.node);
  panel.replaceChildren(
    h(
      "header",
      {},
      h("h2", { tabindex: "-1" }, isGroup(item) ? item.box.name || item.box.path : item.node.name),
      close,
    ),
    ...content.filter(Boolean),
  );
  panel.scrollTop = 0;
}

function nodeDetail(page, node) {
  const { model } = page;
  const tags = [
    KIND_WORDS[node.kind],
    node.active ? null : "no gradient",
    node.taken === 0 ? "branch not taken" : null,
  ].filter(Boolean);
  const isBad = node.outputs.some((output) => bad(output.value) || bad(output.cotangent));
  const expression = expressionOf(node);
  return [
    h(
      "p",
      { class: "facts" },
      h("code", {}, node.main.type || ""),
      node.kind === "op" || node.kind === "loss" ? [" by ", h("code", {}, node.primitive)] : null,
      node.scope ? [" in ", node.scope] : null,
    ),
    expression ? h("code", { class: "expression" }, expression) : null,
    tags.length || isBad
      ? h(
          "div",
          { class: "tags" },
          isBad ? h("span", { class: "bad-tag" }, "⚠ not finite") : null,
          tags.map((tag) => h("span", {}, tag)),
        )
      : null,
    node.bodies.length ? toggleButton(page, node.item.box) : null,
    ...scansAround(page, node.item),
    ...node.outputs
      .filter((output) => output.name || output.value)
      .flatMap((output) => outputDetail(model, node, output)),
    ...operandDetail(page, node),
    ...consumerDetail(page, node),
    ...readDetail(node, page),
    ...sourceDetail(node.source),
  ];
}

function toggleButton(page, box) {
  const isOpen = page.open.has(box.id);
  return h(
    "button",
    { class: "wide", onclick: () => page.toggle(box.item.id) },
    icon(isOpen ? ICONS.fold : ICONS.open),
    isOpen ? "Close" : "Open",
  );
}

function outputDetail(model, node, output) {
  const several = node.outputs.filter((other) => other.name || other.value).length > 1;
  const parts = [];
  const value = valueOf(node, output);
  const cotangent = cotangentOf(node, output);
  if (value)
    parts.push(h("h3", {}, several ? `value of ${output.name}` : "value"), shownDetail(value, "value"));
  if (cotangent)
    parts.push(
      h("h3", {}, several ? `cotangent of ${output.name}` : "cotangent"),
      h(
        "div",
        { class: "facts" },
        h("span", { class: "formula" }, math(derivative(lossOf(model), namesOf(output)))),
      ),
      shownDetail(cotangent, "cotangent"),
    );
  return parts;
}

const STATS = [
  ["norm", "norm"],
  ["mean", "mean"],
  ["std", "std"],
  ["min", "min"],
  ["max", "max"],
];

function shownDetail(shown, word) {
  if (typeof shown.number === "number" || isBad(shown.number))
    return h("div", { class: `big ${bad(shown) ? "bad-number" : ""}` }, number(shown.number, 7));
  const rows = STATS.filter(([key]) => shown[key] !== undefined && shown[key] !== null).map(([key, name]) => [
    name,
    number(shown[key], 5),
  ]);
  if (shown.zeros) rows.push(["zeros", `${number(shown.zeros * 100, 3)} %`]);
  if (shown.nonfinite) rows.push(["⚠ not finite", String(shown.nonfinite)]);
  const stats = h(
    "dl",
    { class: "stats" },
    rows.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]),
  );
  if (!shown.thumb)
    return h(
      "div",
      {},
      h("div", { class: `big ${bad(shown) ? "bad-number" : ""}` }, number(shown.text)),
      stats,
    );
  const { rows: high, cols: wide } = shown.thumb;
  const cell = Math.max(4, Math.min(16, Math.floor(132 / Math.max(high, wide))));
  const picture = h("img", {
    src: heatMap(shown.thumb, cell),
    width: wide * cell,
    height: high * cell,
    alt: `Heat map of the ${word}, ${high} by ${wide} blocks, largest mean ${number(shown.thumb.absmax, 3)}`,
  });
  return h(
    "div",
    {},
    /^‖/.test(shown.text) ? null : h("div", { class: "big" }, number(shown.text)),
    h("div", { class: "shown" }, picture, stats),
  );
}

const link = (page, node) => h("button", { class: "link", onclick: () => page.reveal(node) }, node.name);

function operandDetail(page, node) {
  const from = [...node.operands, ...node.entered];
  if (!from.length) return [];
  const rows = from.map((edge) => {
    const value = shownAt(edge.from, (edge.from.outputs[edge.output] || {}).value);
    const local = edge.local && edge.active ? localLine(node, edge) : null;
    return h(
      "li",
      {},
      link(page, edge.from),
      h("span", { class: "amount" }, value ? number(value.text) : ""),
      local ? h("div", { class: "under formula" }, local.parts) : null,
    );
  });
  return [
    h(
      "h3",
      {},
      node.entered.length
        ? "from outside"
        : from.length > 1
          ? "operands and local gradients"
          : "operand and local gradient",
    ),
    h("ul", { class: "rows" }, rows),
  ];
}

function consumerDetail(page, node) {
  const out = [
    ...node.consumers.map((edge) => [edge, link(page, edge.to)]),
    ...node.leaving.map((edge) => [
      edge,
      h(
        "span",
        {},
        edge.kind === "carry"
          ? ["the next step, as ", link(page, edge.to)]
          : ["outside, as ", link(page, edge.to)],
      ),
    ]),
  ];
  if (!out.length) return [];
  const rows = out.map(([edge, name]) => {
    const share = shareOf(edge);
    return h(
      "li",
      {},
      name,
      h(
        "span",
        { class: "amount back", title: "its contribution to the cotangent" },
        share ? `∂ ${number(share.text)}` : "",
      ),
    );
  });
  const shares = node.consumers.filter(shareOf).length;
  const cotangent = cotangentOf(node);
  if (shares > 1 && cotangent)
    rows.push(
      h(
        "li",
        { class: "sum" },
        h("span", {}, "sum of the contributions"),
        h("span", { class: "amount back" }, `∂ ${number(cotangent.text)}`),
      ),
    );
  return [
    h("h3", {}, shares ? "consumers and their contributions" : "consumers"),
    h("ul", { class: "rows" }, rows),
  ];
}

/** What the VJP of the node reads of the forward pass, and which VJPs read its values. */
function readDetail(node, page) {
  const amount = ({ size, checkpointed }) =>
    h(
      "span",
      { class: "amount" },
      size,
      checkpointed ? [" ", h("span", { class: "quiet" }, "in checkpoint")] : null,
    );
  const row = (words, read) => h("li", {}, h("span", {}, words), amount(read));
  const rows = [
    ...node.reads.map((read) =>
      row(["reads ", read.from === node ? "its own result" : link(page, read.from)], read),
    ),
    ...node.readBy
      .filter((read) => read.to !== node)
      .map((read) => row(["is read by the VJP of ", link(page, read.to)], read)),
  ];
  return rows.length ? [h("h3", {}, "vector-Jacobian product"), h("ul", { class: "rows" }, rows)] : [];
}

function sourceDetail(source) {
  if (!source) return [];
  const lines = source.context && source.context.length ? source.context : [source.text];
  const first = source.context && source.context.length ? source.first || 1 : source.line;
  const rows = lines.map((text, i) =>
    h(
      "div",
      { class: first + i === source.line ? "here" : null },
      h("span", { class: "n" }, String(first + i)),
      text || " ",
    ),
  );
  return [
    h("h3", {}, `${source.file}:${source.line}`),
    h("p", { class: "facts" }, "in ", h("code", {}, source.function)),
    h("pre", { class: "source", tabindex: "0", "aria-label": "Source" }, rows),
  ];
}

function scansAround(page, child) {
  return framesAround(child)
    .filter((box) => box.steps && box.steps.length > 1)
    .map((box) => h("label", { class: "panel-slider" }, stepWords(box), stepInput(page, box)));
}

function stepInput(page, box) {
  return h("input", {
    type: "range",
    min: 0,
    max: box.steps.length - 1,
    value: box.step,
    "aria-label": `Step of ${box.name}`,
    "aria-valuetext": stepWords(box),
    "data-box": box.id,
    oninput: (event) => page.setStep(box, Number(event.target.value)),
  });
}

const stepWords = (box) => `step ${box.steps[box.step] + 1} of ${box.length}`;

function boxDetail(page, box) {
  const { node } = box;
  return [
    h(
      "p",
      { class: "facts" },
      boxWords(box),
      box.path && box.path !== box.name ? [" · ", h("code", {}, box.path)] : null,
    ),
    toggleButton(page, box),
    box.steps && box.steps.length > 1
      ? h("label", { class: "panel-slider" }, stepWords(box), stepInput(page, box))
      : null,
    ...scansAround(page, box.item),
    ...(box.cotangent !== undefined && box.cotangent !== null
      ? [h("h3", {}, "largest cotangent inside"), h("div", { class: "big" }, `‖·‖ ${number(box.cotangent, 4)}`)]
      : []),
    ...(box.nonfinite
      ? [
          h(
            "div",
            { class: "tags" },
            h("span", { class: "bad-tag" }, `⚠ ${plural(box.nonfinite, "value")} not finite`),
          ),
        ]
      : []),
    ...(node
      ? node.outputs.filter((output) => output.name).flatMap((output) => outputDetail(page.model, node, output))
      : []),
    ...(node ? operandDetail(page, node) : []),
    ...(node ? consumerDetail(page, node) : []),
    ...(node ? readDetail(node, page) : []),
    ...(node ? sourceDetail(node.source) : []),
  ];
}
