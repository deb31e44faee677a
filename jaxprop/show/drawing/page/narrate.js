// One step in words: a formula with its numbers, as `explain` writes it, typeset for the eye and as text for the ear.
// Every number comes from the scene; nothing is computed here.

/** A name as a symbol, as a lesson would write it: y_hat with its hat, w1 with its index, alpha as the letter. */
function symbol(name) {
  const repeated = name.match(/^(.+)#(\d+)$/);
  if (repeated)
    return m(
      "msup",
      {},
      symbol(repeated[1]),
      m(
        "mrow",
        {},
        m("mo", { stretchy: "false" }, "("),
        m("mn", {}, repeated[2]),
        m("mo", { stretchy: "false" }, ")"),
      ),
    );
  const accent = name.match(/^([A-Za-z]+)_(hat|bar|tilde|dot|vec)$/);
  if (accent && letterOf(accent[1]))
    return m(
      "mover",
      { accent: "true" },
      m("mi", {}, letterOf(accent[1])),
      m("mo", { stretchy: "false" }, LATEX_ACCENTS[accent[2]]),
    );
  const index = name.match(/^([A-Za-z]+?)_?(\d*)$/);
  if (index && letterOf(index[1]))
    return index[2]
      ? m("msub", {}, m("mi", {}, letterOf(index[1])), m("mn", {}, index[2]))
      : m("mi", {}, letterOf(index[1]));
  const word = name.match(/^([A-Za-z]+)_([A-Za-z0-9]+)$/);
  if (word && letterOf(word[1]))
    return m(
      "msub",
      {},
      m("mi", {}, letterOf(word[1])),
      m("mi", { mathvariant: "normal", class: "word" }, word[2]),
    );
  return m("mi", { mathvariant: "normal", class: /^\w+$/.test(name) ? "word" : "path" }, name);
}

const letterOf = (name) => (name.length === 1 ? name : LATEX_LETTERS[name] || "");

/** `d of / d wrt`. */
function derivative(of, wrt) {
  return m(
    "mfrac",
    {},
    m("mrow", {}, m("mo", { class: "d" }, "∂"), symbol(of)),
    m("mrow", {}, m("mo", { class: "d" }, "∂"), symbol(wrt)),
  );
}

// A long chain may be broken before these signs, so they can stand first: their spaces must be those of the middle.
const equals = () => m("mo", { form: "infix" }, "=");
const dot = () => m("mo", {}, "·");
const plus = () => m("mo", { form: "infix" }, "+");
const numeral = (text) => m("mn", {}, number(text));

/** A factor of a product: negative numbers after the first get brackets. */
function factor(text, first) {
  if (first || !/^[-−]/.test(text)) return numeral(text);
  return m("mrow", {}, m("mo", { stretchy: "false" }, "("), numeral(text), m("mo", { stretchy: "false" }, ")"));
}

/** Python arithmetic as mathematics; null for anything but names, numbers, + - * / ** @ and brackets. */
function expressionMath(source, names = {}) {
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
    else if (token in names) put(factor(names[token], false));
    else
      put(tokens[i + 1] === "(" ? m("mi", { mathvariant: "normal", class: "function" }, token) : symbol(token));
  }
  return stack.length === 1 ? m("mrow", {}, stack[0]) : null;
}

/** The expression with the numbers of its names put in: `s**2` -> `(-1)**2`. Null where a name has no number. */
function substituted(node) {
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
  return { math: expressionMath(source, numbers), text };
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
          math(symbol(node.short), equals(), numeral(valueOf(node).text)),
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
  const typeset = source ? expressionMath(source) : null;
  const filled = typeset && value && typeof value.number === "number" ? substituted(node) : null;
  const isScalar = value && typeof value.number === "number";
  const text = [node.short, source, filled && filled.text, isScalar && value.text].filter(Boolean).join(" = ");
  const parts = typeset
    ? [
        math(symbol(node.short), equals(), typeset),
        filled && filled.math ? math(equals(), filled.math) : null,
        isScalar ? math(equals(), numeral(value.text)) : null,
      ]
    : [
        math(symbol(node.short), equals()),
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
    note: lines.length > 1 ? `of ${node.short} by each of its operands` : "",
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
      known || math(derivative(node.short, edge.short)),
      known ? null : code(right || local.kind || ""),
    );
  const middle = right && right !== value ? latexToMath(rightSide(local.latex)) || m("mtext", {}, right) : null;
  return line(
    text,
    math(derivative(node.short, edge.short)),
    middle ? math(equals(), middle) : null,
    math(equals(), numeral(value)),
  );
}

const numberText = (x) => (typeof x === "string" ? x : number(x, 5).replace(/−/g, "-"));
/** What stands right of the first equals sign of a formula. */
const rightSide = (text) => (text && text.includes(" = ") ? text.slice(text.indexOf(" = ") + 3) : "");

function uniqueLines(lines) {
  return [...new Map(lines.map((each) => [each.text, each])).values()];
}

/** Who sends a share back to a node's value: readers in its body, and what leaves the body. */
function termsOf(node) {
  const leaving = node.leaving.filter((edge) => edge.active);
  const carries = leaving.filter((edge) => edge.kind === "carry");
  const scan = carries.length ? framesAround(node.item).find((box) => box.kind === "scan") : null;
  const isLast = scan && scan.steps && scan.step === scan.steps.length - 1;
  const results = leaving.filter((edge) => edge.kind !== "carry");
  // What is carried goes on to the next step; only after the last step does it leave.
  const after = !scan ? results : isLast ? results : [...carries, ...results.slice(carries.length)];
  return { readers: node.readers.filter((edge) => edge.active), leaving: after };
}

function sayBackward(model, node) {
  const loss = model.lossName;
  const cotangent = cotangentOf(node);
  const total = cotangent ? cotangent.text : "";
  const isScalar = cotangent && typeof cotangent.number === "number";
  const left = `d${loss}/d${node.short}`;
  const { readers, leaving } = termsOf(node);
  const title = node.kind === "parameter" ? "Gradient" : "Backward";
  if (!readers.length && !leaving.length) {
    const seed = model.losses.has(node.id);
    const text = `${left} = ${total}`;
    return {
      title,
      lines: [
        line(
          text,
          math(
            derivative(loss, node.short),
            equals(),
            isScalar ? numeral(total) : m("mtext", {}, number(total)),
          ),
        ),
      ],
      note: seed ? "the backward pass begins here" : `${node.main.type}, ${number(total)}`,
    };
  }
  const products = isScalar && !leaving.length ? readers.map(productOf) : [null];
  if (products.includes(null) || !addUp(products, cotangent.number))
    return { title, ...sayArray(model, node, readers, leaving, cotangent) };
  const chainText = readers
    .map((edge) => `d${loss}/d${edge.to.short} * d${edge.to.short}/d${node.short}`)
    .join(" + ");
  const numbersText = products.map(([a, b], i) => `${i ? bracket(a) : a} * ${bracket(b)}`).join(" + ");
  const chainMath = readers.map((edge, i) =>
    math(i ? plus() : equals(), derivative(loss, edge.to.short), dot(), derivative(edge.to.short, node.short)),
  );
  const numbersMath = products.map(([a, b], i) =>
    math(i ? plus() : equals(), factor(a, i === 0), dot(), factor(b, false)),
  );
  const sum =
    readers.length > 1
      ? `${readers.length} readers: their shares ${readers
          .map((edge) => (shareOf(edge) ? number(shareOf(edge).text) : ""))
          .filter(Boolean)
          .join(" and ")} add up`
      : "";
  return {
    title,
    lines: [
      line(
        `${left} = ${chainText} = ${numbersText} = ${total}`,
        math(derivative(loss, node.short)),
        ...chainMath,
        ...numbersMath,
        math(equals(), numeral(total)),
      ),
    ],
    note: sum,
  };
}

const bracket = (text) => (/^-/.test(text) ? `(${text})` : text);

/** Whether the products make the cotangent. They do not where a rule of the user's changes what flows back. */
function addUp(products, total) {
  const terms = products.map(([a, b]) => Number(a) * Number(b));
  const size = terms.reduce((sum, term) => sum + Math.abs(term), Math.abs(total));
  return Math.abs(terms.reduce((sum, term) => sum + term, 0) - total) <= 2e-3 * size;
}

/** The numbers of one term: the cotangent of the reader, and its local gradient. Null where either is no number. */
function productOf(edge) {
  const outer = cotangentOf(edge.to);
  const local = edge.local && edge.local.number;
  if (!outer || typeof outer.number !== "number" || local === undefined || local === null) return null;
  return [outer.text, numberText(local)];
}

function sayArray(model, node, readers, leaving, cotangent) {
  const loss = model.lossName;
  const lines = [];
  const terms = [
    ...readers.map((edge) => ({ edge, from: edge.to.short })),
    ...leaving.map((edge) => ({
      edge,
      from: edge.kind === "carry" ? "the next step" : `outside, where it is ${edge.to.short}`,
    })),
  ];
  for (const edge of readers.slice(0, 3)) {
    const { local } = edge;
    if (!local) continue;
    const known = local.latex ? latexToMath(local.latex, true) : null;
    if (known) lines.push(line(local.text, known));
    else if (local.text || local.kind)
      lines.push(
        line(
          local.text || local.kind,
          math(derivative(edge.to.short, node.short)),
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
  const text = `d${loss}/d${node.short}${total ? `: ${total}` : ""}`;
  lines.unshift(
    line(
      text,
      math(derivative(loss, node.short)),
      h("span", { class: "colon" }, cotangent && typeof cotangent.number === "number" ? "=" : ":"),
      h("span", { class: "total" }, total || node.main.type || ""),
    ),
  );
  return {
    lines: uniqueLines(lines),
    note: texts.join(", ") + (terms.length > 1 ? "; the shares add up" : ""),
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
      note: "closed: open it to see its steps",
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
    note: "closed: open it to see its steps",
  };
}

function sayDone(model, step) {
  const loss = model.lossName;
  const gradients = step.nodes;
  const value = model.scene.value;
  const parts = value
    ? [math(symbol(loss), equals(), numeral(value))]
    : [h("span", { class: "box-name" }, loss)];
  if (!gradients.length)
    return {
      title: "The graph",
      lines: [line(value ? `${loss} = ${value}` : loss, parts)],
      note: plural(model.order.length, "node"),
    };
  if (gradients.length <= 2)
    return {
      title: "The gradient",
      lines: [
        line(
          gradients.map((node) => gradientText(loss, node)).join(", "),
          ...gradients.flatMap((node, i) => [
            i ? h("span", { class: "between" }) : null,
            ...gradientParts(loss, node),
          ]),
        ),
      ],
      note: value ? `at ${loss} = ${number(value)}` : "",
    };
  const largest = gradients.reduce((a, b) => ((cotangentOf(b).norm ?? 0) > (cotangentOf(a).norm ?? 0) ? b : a));
  return {
    title: "The gradient",
    lines: [line(`${loss} = ${value}`, parts)],
    note: `${gradients.length} gradients, the largest that of ${largest.short}: ‖·‖ ${number(cotangentOf(largest).norm)}`,
  };
}

const isNumber = (shown) => typeof shown.number === "number";
const gradientText = (loss, node) =>
  `d${loss}/d${node.short} ${isNumber(cotangentOf(node)) ? "= " : ": "}${cotangentOf(node).text}`;

function gradientParts(loss, node) {
  const cotangent = cotangentOf(node);
  if (isNumber(cotangent)) return [math(derivative(loss, node.short), equals(), numeral(cotangent.text))];
  return [
    math(derivative(loss, node.short)),
    h("span", { class: "colon" }, ":"),
    h("span", { class: "total" }, number(cotangent.text)),
  ];
}
