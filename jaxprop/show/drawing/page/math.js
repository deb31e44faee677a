// Formulas: the LaTeX of the scene as MathML, which browsers typeset without fetching fonts. LaTeX that is not
// supported is shown as its source text.

const LATEX_SYMBOLS = {
  partial: "∂",
  cdot: "·",
  times: "×",
  odot: "⊙",
  top: "⊤",
  intercal: "⊤",
  sum: "∑",
  prod: "∏",
  infty: "∞",
  nabla: "∇",
  to: "→",
  rightarrow: "→",
  leftarrow: "←",
  mapsto: "↦",
  le: "≤",
  leq: "≤",
  ge: "≥",
  geq: "≥",
  ne: "≠",
  neq: "≠",
  approx: "≈",
  in: "∈",
  pm: "±",
  dots: "…",
  ldots: "…",
  cdots: "⋯",
  quad: " ",
  ast: "∗",
  mid: "|",
  vert: "|",
  Vert: "‖",
  "|": "‖",
  lbrace: "{",
  rbrace: "}",
  langle: "⟨",
  rangle: "⟩",
  otimes: "⊗",
  lfloor: "⌊",
  rfloor: "⌋",
  lceil: "⌈",
  rceil: "⌉",
  oplus: "⊕",
  circ: "∘",
  colon: ":",
  lnot: "¬",
  wedge: "∧",
  vee: "∨",
  land: "∧",
  lor: "∨",
  equiv: "≡",
  propto: "∝",
  setminus: "∖",
  sim: "∼",
  backslash: "\\",
  div: "÷",
  neg: "¬",
};
const LATEX_LETTERS = {
  alpha: "α",
  beta: "β",
  gamma: "γ",
  delta: "δ",
  epsilon: "ϵ",
  varepsilon: "ε",
  zeta: "ζ",
  eta: "η",
  theta: "θ",
  iota: "ι",
  kappa: "κ",
  lambda: "λ",
  mu: "μ",
  nu: "ν",
  xi: "ξ",
  pi: "π",
  rho: "ρ",
  sigma: "σ",
  tau: "τ",
  upsilon: "υ",
  phi: "ϕ",
  varphi: "φ",
  chi: "χ",
  psi: "ψ",
  omega: "ω",
  Gamma: "Γ",
  Delta: "Δ",
  Theta: "Θ",
  Lambda: "Λ",
  Xi: "Ξ",
  Pi: "Π",
  Sigma: "Σ",
  Phi: "Φ",
  Psi: "Ψ",
  Omega: "Ω",
  ell: "ℓ",
};
const LATEX_FUNCTIONS = new Set(
  "exp log ln sin cos tan sinh cosh tanh coth sec csc cot arcsin arccos arctan max min det tr diag sign sgn erf arg Re Im lim sup".split(
    " ",
  ),
);
const LATEX_ACCENTS = {
  hat: "^",
  widehat: "^",
  bar: "¯",
  overline: "¯",
  tilde: "~",
  widetilde: "~",
  dot: "˙",
  vec: "→",
};
const LATEX_SPACES = {
  ",": "0.17em",
  ":": "0.22em",
  ";": "0.28em",
  " ": "0.25em",
  "!": "0",
  quad: "1em",
  qquad: "2em",
};

function m(tag, attributes, ...children) {
  return fill(document.createElementNS(MATHML, tag), attributes, children);
}

/** LaTeX as a `<math>` element; null if part of it is not supported. */
function latexToMath(latex, display = false) {
  const row = latexToRow(latex);
  return row && m("math", display ? { displaystyle: "true" } : {}, row);
}

/** LaTeX as an `<mrow>` element; null if part of it is not supported. */
function latexToRow(latex) {
  if (!latex) return null;
  const tokens = latex.match(/\\(?:[a-zA-Z]+|.)|\d+(?:\.\d+)?|\s+|[^\s]/g) || [];
  const reader = { tokens, at: 0 };
  try {
    const row = readRow(reader, null);
    return reader.at < reader.tokens.length ? null : row;
  } catch (error) {
    if (error instanceof Unsupported) return null;
    throw error;
  }
}

class Unsupported extends Error {}

/** The next token that is not a space. Spaces matter in words only. */
function peek(reader) {
  while (/^\s+$/.test(reader.tokens[reader.at] || "")) reader.at += 1;
  return reader.tokens[reader.at];
}

function take(reader) {
  const token = peek(reader);
  reader.at += 1;
  return token;
}

function readRow(reader, end) {
  const parts = [];
  while (peek(reader) !== undefined && peek(reader) !== end) parts.push(readScripts(reader, readAtom(reader)));
  if (end !== null && take(reader) !== end) throw new Unsupported(end);
  return m("mrow", {}, parts);
}

function readScripts(reader, base) {
  let below = null;
  let above = null;
  for (;;) {
    const token = peek(reader);
    if (token === "_" && !below) below = (reader.at++, readAtom(reader));
    else if (token === "^" && !above) above = (reader.at++, readAtom(reader));
    else if (token === "'") above = (reader.at++, m("mo", {}, "′"));
    else break;
  }
  if (below && above) return m("msubsup", {}, base, below, above);
  if (below) return m("msub", {}, base, below);
  return above ? m("msup", {}, base, above) : base;
}

function readAtom(reader) {
  const token = take(reader);
  if (token === undefined) throw new Unsupported("the end");
  if (token === "{") return readRow(reader, "}");
  if (token.startsWith("\\")) return readCommand(reader, token.slice(1));
  if (/^\d/.test(token)) return m("mn", {}, token);
  if (/^\p{L}$/u.test(token)) return m("mi", {}, token);
  if (token === "-") return m("mo", {}, "−");
  if (token === "*") return m("mo", {}, "·");
  if (/^[+=()[\]|/,.;:<>!?@%'"~&−·×⊙]$/.test(token))
    return m("mo", token.match(/[()[\]|]/) ? { stretchy: "false" } : {}, token);
  if (/^[}_^]$/.test(token)) throw new Unsupported(token);
  return m("mi", { mathvariant: "normal" }, token);
}

function readCommand(reader, name) {
  if (name === "frac" || name === "tfrac" || name === "dfrac")
    return m("mfrac", {}, readAtom(reader), readAtom(reader));
  if (name === "sqrt") return readRoot(reader);
  if (name === "begin") return readCases(reader);
  if (/^(mathrm|mathit|mathsf|mathbf|mathtt|text|textit|textrm|texttt|operatorname)$/.test(name))
    return readWord(reader, name);
  if (name in LATEX_ACCENTS)
    return m("mover", { accent: "true" }, readAtom(reader), m("mo", {}, LATEX_ACCENTS[name]));
  if (name === "left" || name === "right" || /^[bB]igg?[lr]?$/.test(name)) return readFence(reader);
  if (name in LATEX_SPACES) return m("mspace", { width: LATEX_SPACES[name] });
  if (name in LATEX_LETTERS) return m("mi", {}, LATEX_LETTERS[name]);
  if (LATEX_FUNCTIONS.has(name)) return m("mi", { mathvariant: "normal", class: "function" }, name);
  if (name in LATEX_SYMBOLS) return m("mo", {}, LATEX_SYMBOLS[name]);
  if (/^[{}_#$%&]$/.test(name)) return m("mo", { stretchy: "false" }, name);
  throw new Unsupported(name);
}

function readRoot(reader) {
  if (peek(reader) !== "[") return m("msqrt", {}, readAtom(reader));
  take(reader);
  const degree = readRow(reader, "]");
  return m("mroot", {}, readAtom(reader), degree);
}

/** `\begin{cases} a & \text{if } b \\ ... \end{cases}`. */
function readCases(reader) {
  if (readWord(reader, "text").textContent !== "cases") throw new Unsupported("begin");
  const rows = [[[]]];
  for (;;) {
    const token = peek(reader);
    if (token === undefined) throw new Unsupported("cases");
    const row = rows[rows.length - 1];
    if (token === "\\end") break;
    if (token === "&") row.push((take(reader), []));
    else if (token === "\\\\") rows.push((take(reader), [[]]));
    else row[row.length - 1].push(readScripts(reader, readAtom(reader)));
  }
  take(reader);
  readWord(reader, "text");
  const table = m(
    "mtable",
    { class: "cases" },
    rows.map((row) =>
      m(
        "mtr",
        {},
        row.map((cell) => m("mtd", {}, cell)),
      ),
    ),
  );
  return m("mrow", {}, m("mo", { stretchy: "true", form: "prefix" }, "{"), table);
}

function readFence(reader) {
  let token = take(reader);
  if (token === ".") return m("mrow", {});
  if (token && token.startsWith("\\")) token = LATEX_SYMBOLS[token.slice(1)] || token.slice(1);
  return m("mo", { stretchy: "true" }, token || "");
}

/** A word of several letters, `\mathrm{y\_hat}`: its braces hold text, in which `\_` is `_`. */
function readWord(reader, kind) {
  if (take(reader) !== "{") throw new Unsupported(kind);
  let text = "";
  let depth = 0;
  for (;;) {
    const token = reader.tokens[reader.at++];
    if (token === undefined) throw new Unsupported(kind);
    if (token === "}" && depth === 0) break;
    if (token === "{") depth += 1;
    else if (token === "}") depth -= 1;
    else if (/^\\[a-zA-Z]/.test(token))
      text +=
        LATEX_LETTERS[token.slice(1)] ||
        LATEX_SYMBOLS[token.slice(1)] ||
        (token === "\\textbackslash"
          ? "\\"
          : token === "\\textasciicircum"
            ? "^"
            : token === "\\textasciitilde"
              ? "~"
              : token);
    else text += token.replace(/^\\/, "");
  }
  const upright = /rm|text|tt|operatorname|sf/.test(kind);
  const style = { mathbf: "bold", mathtt: "path", texttt: "path" }[kind] || "word";
  return m("mi", { mathvariant: upright ? "normal" : null, class: style }, text);
}
