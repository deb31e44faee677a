// One step in words: a formula with its numbers, typeset and as text for screen readers. Names and their LaTeX, numbers
// and local gradients come from the scene.

/** The name of a value as mathematics; `named`: a node, an edge or an output with `short` and `latex`. */
const symbol = ({ short, latex }) =>
  latexToRow(latex) || m("mi", { mathvariant: "normal", class: /^\w+$/.test(short) ? "word" : "path" }, short);

/** The returned value. */
const lossOf = (model) => ({ short: model.lossName, latex: model.scene.latex });

/** `d of / d wrt`. */
function derivative(of, wrt) {
  return m(
    "mfrac",
    {},
    m("mrow", {}, m("mo", { class: "d" }, "∂"), symbol(of)),
    m("mrow", {}, m("mo", { class: "d" }, "∂"), symbol(wrt)),
  );
}

// A long chain may be broken before these signs; their spacing at the start of a line must be that of an infix operator.
const equals = () => m("mo", { form: "infix" }, "=");
const dot = () => m("mo", {}, "·");
const plus = () => m("mo", { form: "infix" }, "+");
const numeral = (text) => m("mn", {}, number(text));

/** A factor of a product: negative numbers after the first get brackets. */
function factor(text, first) {
  if (first || !/^[-−]/.test(text)) return numeral(text);
  return m("mrow", {}, m("mo", { stretchy: "false" }, "("), numeral(text), m("mo", { stretchy: "false" }, ")"));
}

/**
 * Python arithmetic as mathematics; null for anything but names, numbers, + - * / ** @ and brackets. `known`: values by
 * name, for their LaTeX; `numbers`: texts by name that replace it.
 */
function expressionMath(source, known, numbers = {}) {
  const tokens = source.match(/\d+\.?\d*(?:e[-+]?\d+)?|[A-Za-z_]\w*|\*\*|[-+*/()@]|\S/g) || [];
  if (!tokens.length || tokens.some((token) => !/^(\d|[A-Za-z_]|\*\*$|[-+*/()@]$)/.test(token))) return null;
  const stack = [[]];
  let power = false;
  const put = (atom) => {
    const row = stack[stack.length - 1];
    if (power) row.push(m("msup", {}, row.pop() || m("mrow", {}), atom));
    else row.push(atom);
    power = false;
  };
  for (let i = 0; i < tokens.length; i += 1) {
    const token = tokens[i];
    if (token === "(") {
      stack.push([]);
      stack[stack.length - 1].power = power;
      power = false;
    } else if (token === ")") {
      if (stack.length < 2) return null;
      const inner = stack.pop();
      power = inner.power;
      put(m("mrow", {}, m("mo", { stretchy: "false" }, "("), inner, m("mo", { stretchy: "false" }, ")")));
    } else if (token === "**") {
      if (tokens[i + 1] === "-") return null;
      power = true;
    } else if (/^[-+*/@]$/.test(token))
      stack[stack.length - 1].push(m("mo", {}, { "-": "−", "*": "·" }[token] || token));
    else if (/^\d/.test(token)) put(numeral(token));
    else if (token in numbers) put(factor(numbers[token], false));
    else if (tokens[i + 1] === "(") put(m("mi", { mathvariant: "normal", class: "function" }, token));
    else put(symbol(known.get(token) || { short: token }));
  }
  return stack.length === 1 ? m("mrow", {}, stack[0]) : null;
}

/** The expression with numbers for its names: `s**2` -> `(-1)**2`. Null if a name has no number. */
function substituted(model, node) {
  const source = node.label || "";
  const numbers = {};
  for (const edge of node.operands) {
    const shown = shownAt(edge.from, (edge.from.outputs[edge.output] || {}).value);
    if (!shown || typeof shown.number !== "number") return null;
    numbers[edge.short.split("#")[0]] = shown.text;
  }
  const words = source.match(/[A-Za-z_]\w*/g) || [];
  if (!words.length || words.some((word) => !(word in numbers)) || !/^[\w\s+\-*/().]+$/.test(source))
    return null;
  const text = source.replace(/[A-Za-z_]\w*/g, (word) =>
    numbers[word].startsWith("-") ? `(${numbers[word]})` : numbers[word],
  );
  return { math: expressionMath(source, model.known, numbers), text };
}

const code = (text) => h("code", {}, text);
const line = (text, ...parts) => ({ text, parts });
const math = (...parts) => m("math", { displaystyle: "true" }, parts);

// --- the acts ---------------------------------------------------------------------------------------

function narrate(model, step) {
  const said = narrateAct(model, step);
  const scans = Object.keys(step.sets || {}).map((id) => stepWords(model.boxes.get(id)));
  return scans.length ? { ...said, title: `${said.title} · ${scans.join(", ")}` } : said;
}

function narrateAct(model, step) {
  if (step.act === "given") return sayGiven(model, step);
  if (step.act === "done") return sayDone(model, step);
  if (step.box) return sayBox(model, step);
  return { forward: sayForward, local: sayLocal, backward: sayBackward }[step.act](model, step.node);
}

function sayGiven(model, step) {
  const shown = step.nodes.slice(0, 6);
  const lines = [];
  const scalars = shown.filter((node) => valueOf(node) && typeof valueOf(node).number === "number");
  if (scalars.length) {
    const text = scalars.map((node) => `${node.short} = ${valueOf(node).text}`).join(", ");
    lines.push(
      line(
        text,
        ...scalars.flatMap((node, i) => [
          i ? h("span", { class: "comma" }, ",") : null,
          math(symbol(node), equals(), numeral(valueOf(node).text)),
        ]),
      ),
    );
  }
  const rest = shown.filter((node) => !scalars.includes(node));
  if (rest.length) {
    const text = rest.map((node) => `${node.short} ${node.main.type}`).join(", ");
    const more = step.nodes.length > shown.length ? ` and ${step.nodes.length - shown.length} more` : "";
    lines.push(line(text + more, code(text), more));
  }
  const parameters = step.nodes.filter((node) => node.kind === "parameter").length;
  return {
    title: "Given",
    lines,
    note: [
      parameters && plural(parameters, "parameter"),
      step.nodes.length - parameters && plural(step.nodes.length - parameters, "other argument"),
    ]
      .filter(Boolean)
      .join(", "),
  };
}

function sayForward(model, node) {
  const value = valueOf(node);
  const source = expressionOf(node);
  const typeset = source ? expressionMath(source, model.known) : null;
  const filled = typeset && value && typeof value.number === "number" ? substituted(model, node) : null;
  const isScalar = value && typeof value.number === "number";
  const text = [node.short, source, filled && filled.text, isScalar && value.text].filter(Boolean).join(" = ");
  const parts = typeset
    ? [
        math(symbol(node), equals(), typeset),
        filled && filled.math ? math(equals(), filled.math) : null,
        isScalar ? math(equals(), numeral(value.text)) : null,
      ]
    : [
        math(symbol(node), equals()),
        code(cut(source, 90)),
        isScalar ? math(equals(), numeral(value.text)) : null,
      ];
  const lines = [line(text, ...parts)];
  return {
    title: "Forward",
    lines,
    note: value && !isScalar ? `${node.main.type}, ${number(value.text)}` : node.primitive,
  };
}

function sayLocal(model, node) {
  const lines = node.operands.filter((edge) => edge.active && edge.local).map((edge) => localLine(node, edge));
  return {
    title: "Local gradient",
    lines: uniqueLines(lines),
    note: lines.length > 1 ? `of ${node.short} w.r.t. each of its operands` : "",
  };
}

function localLine(node, edge) {
  const { local } = edge;
  const ratio = `d${node.short}/d${edge.short}`;
  const value = local.number === undefined || local.number === null ? null : numberText(local.number);
  const known = local.latex ? latexToMath(local.latex, true) : null;
  const right = rightSide(local.text);
  const text = [ratio, right, value !== right ? value : null].filter(Boolean).join(" = ");
  if (value === null)
    return line(
      local.text || `${ratio}: ${local.kind}`,
      known || math(derivative(node, edge)),
      known ? null : code(right || local.kind || ""),
    );
  const middle = right && right !== value ? latexToMath(rightSide(local.latex)) || m("mtext", {}, right) : null;
  return line(
    text,
    math(derivative(node, edge)),
    middle ? math(equals(), middle) : null,
    math(equals(), numeral(value)),
  );
}

const numberText = (x) => (typeof x === "string" ? x : number(x, 5).replace(/−/g, "-"));
/** The right side of a formula. */
const rightSide = (text) => (text && text.includes(" = ") ? text.slice(text.indexOf(" = ") + 3) : "");

function uniqueLines(lines) {
  return [...new Map(lines.map((each) => [each.text, each])).values()];
}

/** What contributes to the cotangent of a node: its consumers, and what leaves the body it is in. */
function termsOf(node) {
  const leaving = node.leaving.filter((edge) => edge.active);
  const carries = leaving.filter((edge) => edge.kind === "carry");
  const scan = carries.length ? framesAround(node.item).find((box) => box.kind === "scan") : null;
  const isLast = scan && scan.steps && scan.step === scan.steps.length - 1;
  const results = leaving.filter((edge) => edge.kind !== "carry");
  // A carry is read by the next step; it leaves the scan after the last one.
  const after = !scan ? results : isLast ? results : [...carries, ...results.slice(carries.length)];
  return { consumers: node.consumers.filter((edge) => edge.active), leaving: after };
}

function sayBackward(model, node) {
  const loss = lossOf(model);
  const cotangent = cotangentOf(node);
  const total = cotangent ? cotangent.text : "";
  const isScalar = cotangent && typeof cotangent.number === "number";
  const left = `d${loss.short}/d${node.short}`;
  const { consumers, leaving } = termsOf(node);
  const title = node.kind === "parameter" ? "Gradient" : "Backward";
  if (!consumers.length && !leaving.length) {
    const seed = model.losses.has(node.id);
    const text = `${left} = ${total}`;
    return {
      title,
      lines: [
        line(
          text,
          math(derivative(loss, node), equals(), isScalar ? numeral(total) : m("mtext", {}, number(total))),
        ),
      ],
      note: seed ? "the backward pass starts here" : `${node.main.type}, ${number(total)}`,
    };
  }
  const products = isScalar && !leaving.length ? consumers.map(productOf) : [null];
  if (products.includes(null) || !addUp(products, cotangent.number))
    return { title, ...sayArray(model, node, consumers, leaving, cotangent) };
  const chainText = consumers
    .map((edge) => `d${loss.short}/d${edge.to.short} * d${edge.to.short}/d${node.short}`)
    .join(" + ");
  const numbersText = products.map(([a, b], i) => `${i ? bracket(a) : a} * ${bracket(b)}`).join(" + ");
  const chainMath = consumers.map((edge, i) =>
    math(i ? plus() : equals(), derivative(loss, edge.to), dot(), derivative(edge.to, node)),
  );
  const numbersMath = products.map(([a, b], i) =>
    math(i ? plus() : equals(), factor(a, i === 0), dot(), factor(b, false)),
  );
  const sum =
    consumers.length > 1
      ? `${consumers.length} consumers: their contributions ${consumers
          .map((edge) => (shareOf(edge) ? number(shareOf(edge).text) : ""))
          .filter(Boolean)
          .join(" and ")} add up`
      : "";
  return {
    title,
    lines: [
      line(
        `${left} = ${chainText} = ${numbersText} = ${total}`,
        math(derivative(loss, node)),
        ...chainMath,
        ...numbersMath,
        math(equals(), numeral(total)),
      ),
    ],
    note: sum,
  };
}

const bracket = (text) => (/^-/.test(text) ? `(${text})` : text);

/** Whether the products sum to the cotangent. They do not if a rule of the user changes what is propagated. */
function addUp(products, total) {
  const terms = products.map(([a, b]) => Number(a) * Number(b));
  const size = terms.reduce((sum, term) => sum + Math.abs(term), Math.abs(total));
  return Math.abs(terms.reduce((sum, term) => sum + term, 0) - total) <= 2e-3 * size;
}

/** The numbers of one term: the cotangent of the consumer, and the local gradient. Null if one is not a number. */
function productOf(edge) {
  const outer = cotangentOf(edge.to);
  const local = edge.local && edge.local.number;
  if (!outer || typeof outer.number !== "number" || local === undefined || local === null) return null;
  return [outer.text, numberText(local)];
}

function sayArray(model, node, consumers, leaving, cotangent) {
  const loss = lossOf(model);
  const lines = [];
  const terms = [
    ...consumers.map((edge) => ({ edge, from: edge.to.short })),
    ...leaving.map((edge) => ({
      edge,
      from: edge.kind === "carry" ? "the next step" : `outside, as ${edge.to.short}`,
    })),
  ];
  for (const edge of consumers.slice(0, 3)) {
    const { local } = edge;
    if (!local) continue;
    const known = local.latex ? latexToMath(local.latex, true) : null;
    if (known) lines.push(line(local.text, known));
    else if (local.text || local.kind)
      lines.push(
        line(
          local.text || local.kind,
          math(derivative(edge.to, node)),
          h("span", { class: "colon" }, ":"),
          code(local.text || local.kind),
        ),
      );
  }
  const unknown = terms.filter(({ edge }) => !shareOf(edge)).length;
  const texts = terms.map(({ edge, from }) => {
    const share = shareOf(edge);
    if (terms.length === 1 || unknown === terms.length) return `from ${from}`;
    return `${share ? number(share.text) : unknown === 1 ? "the rest" : "some"} from ${from}`;
  });
  const total = cotangent ? number(cotangent.text) : "";
  const text = `d${loss.short}/d${node.short}${total ? `: ${total}` : ""}`;
  lines.unshift(
    line(
      text,
      math(derivative(loss, node)),
      h("span", { class: "colon" }, cotangent && typeof cotangent.number === "number" ? "=" : ":"),
      h("span", { class: "total" }, total || node.main.type || ""),
    ),
  );
  return {
    lines: uniqueLines(lines),
    note: texts.join(", ") + (terms.length > 1 ? "; the contributions add up" : ""),
  };
}

function sayBox(model, { act, box }) {
  const words = boxWords(box);
  if (act === "forward")
    return {
      title: "Forward",
      lines: [
        line(
          `${box.name}: ${words}`,
          h("span", { class: "box-name" }, box.name),
          h("span", { class: "quiet" }, words),
        ),
      ],
      note: "open it to see its steps",
    };
  const most =
    box.cotangent === undefined || box.cotangent === null
      ? ""
      : `largest cotangent ‖·‖ ${number(box.cotangent, 3)}`;
  return {
    title: "Backward",
    lines: [
      line(
        `${box.name}: ${words}; ${most}`,
        h("span", { class: "box-name" }, box.name),
        h("span", { class: "quiet" }, most || words),
      ),
    ],
    note: "open it to see its steps",
  };
}

function sayDone(model, step) {
  const loss = lossOf(model);
  const gradients = step.nodes;
  const value = model.scene.value;
  const parts = value
    ? [math(symbol(loss), equals(), numeral(value))]
    : [h("span", { class: "box-name" }, loss.short)];
  if (!gradients.length)
    return {
      title: "The graph",
      lines: [line(value ? `${loss.short} = ${value}` : loss.short, parts)],
      note: plural(model.order.length, "node"),
    };
  if (gradients.length <= 2)
    return {
      title: "The gradient",
      lines: gradients.map((node) => gradientLine(model, loss, node, roomForFactors())),
      note: value ? `at ${loss.short} = ${number(value)}` : "",
    };
  const largest = gradients.reduce((a, b) => ((cotangentOf(b).norm ?? 0) > (cotangentOf(a).norm ?? 0) ? b : a));
  return {
    title: "The gradient",
    lines: [line(`${loss.short} = ${value}`, parts)],
    note: `${gradients.length} gradients, the largest that of ${largest.short}: ‖·‖ ${number(cotangentOf(largest).norm)}`,
  };
}

/** How many factors of a product fit into a line. */
const roomForFactors = () => clamp(Math.floor(document.getElementById("line").clientWidth / 115), 2, 8);

/** The whole gradient with respect to one argument: the product of the local gradients along each path, if they are few. */
function gradientLine(model, loss, node, most) {
  const cotangent = cotangentOf(node);
  const left = `d${loss.short}/d${node.short}`;
  if (typeof cotangent.number !== "number")
    return line(
      `${left}: ${cotangent.text}`,
      math(derivative(loss, node)),
      h("span", { class: "colon" }, ":"),
      h("span", { class: "total" }, number(cotangent.text)),
    );
  const paths = pathsFrom(model, node, most).filter((path) => path.length > 1);
  const terms = paths.map((path) => path.map((edge) => numberText(edge.local.number)).reverse());
  const products = terms.map((numbers) => [numbers.map(Number).reduce((a, b) => a * b, 1), 1]);
  if (!paths.length || !addUp(products, cotangent.number))
    return line(`${left} = ${cotangent.text}`, math(derivative(loss, node), equals(), numeral(cotangent.text)));
  const ratio = (edge) => `d${edge.to.short}/d${edge.short}`;
  const chainText = paths.map((path) => [...path].reverse().map(ratio).join(" * ")).join(" + ");
  const numbersText = terms
    .map((numbers, i) => numbers.map((text, j) => (i || j ? bracket(text) : text)).join(" * "))
    .join(" + ");
  const sign = (i, j) => (j ? dot() : i ? plus() : equals());
  return line(
    `${left} = ${chainText} = ${numbersText} = ${cotangent.text}`,
    math(derivative(loss, node)),
    ...paths.flatMap((path, i) =>
      [...path].reverse().map((edge, j) => math(sign(i, j), derivative(edge.to, edge))),
    ),
    ...terms.flatMap((numbers, i) => numbers.map((text, j) => math(sign(i, j), factor(text, !i && !j)))),
    math(equals(), numeral(cotangent.text)),
  );
}

/** The paths from a node to the returned value, as lists of edges with known local gradients; none if there are many. */
function pathsFrom(model, node, most) {
  const found = [];
  const growing = [{ end: node, path: [] }];
  while (growing.length) {
    const { end, path } = growing.pop();
    const next = end.consumers.filter((edge) => edge.active);
    if (
      end.leaving.some((edge) => edge.active) ||
      next.some(({ local }) => typeof (local || {}).number !== "number")
    )
      return [];
    if (!next.length) found.push(path);
    for (const edge of next) growing.push({ end: edge.to, path: [...path, edge] });
    const factors = [...found, ...growing.map((each) => each.path)].reduce((sum, each) => sum + each.length, 0);
    if (factors > most) return [];
  }
  return found.reverse();
}
