// Elements, and numbers as text. Text enters the page as text nodes only, so that markup in a name, a scope or a
// docstring has no effect.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

/** Create an element: `h("button", {class: "b", onclick: f}, "text", child)`. Nothing is parsed as HTML. */
function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** A stroke icon on a grid of 24. */
function icon(path) {
  return s("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, s("path", { d: path }));
}

const ICONS = {
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M8 5v14M16 5v14",
  next: "M9 6l6 6-6 6",
  back: "M15 6l-6 6 6 6",
  first: "M17 6l-6 6 6 6M7 6v12",
  last: "M7 6l6 6-6 6M17 6v12",
  plus: "M12 6v12M6 12h12",
  minus: "M6 12h12",
  fit: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13M15.5 15.5L20 20",
  theme: "M12 3.5a8.5 8.5 0 1 0 0 17zM12 3.5a8.5 8.5 0 1 1 0 17",
  help: "M9 9.2a3 3 0 1 1 4.4 2.7c-.9.5-1.4 1.1-1.4 2.1M12 17.2v.3",
  close: "M6 6l12 12M18 6L6 18",
  reads: "M7 4.5h10v15l-5-4-5 4z",
  turn: "M7 4v13M7 17l-3-3M7 17l3-3M12 8h8M20 8l-3-3M20 8l-3 3",
  open: "M12 6v12M6 12h12",
  fold: "M6 12h12",
};

/** A number with at most `digits` significant digits and a true minus sign; a word if it is not finite. */
function number(x, digits = 4) {
  if (x === null || x === undefined) return "";
  if (typeof x === "string") return x.replace(/^-/, "−").replace("inf", "∞").replace("nan", "NaN");
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e6) return String(x).replace("-", "−");
  let text = size >= 1e-3 && size < 1e6 ? String(Number(x.toPrecision(digits))) : x.toExponential(digits - 2);
  if (text.includes("e")) {
    const [mantissa, power] = text.split("e");
    text = `${Number(mantissa)}e${Number(power)}`;
  }
  return text.replace(/-/g, "−");
}

const isBad = (x) => typeof x === "string" && /nan|inf/i.test(x);

/** 1 -> "1 operation", 2 -> "2 operations". */
function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

/** Cut a text to `length` characters and end it with an ellipsis. */
function cut(text, length) {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

/** A name cut to `length` characters; a path into nested arguments keeps its last keys. */
function cutName(name, length) {
  if (name.length <= length || !name.endsWith("]")) return cut(name, length);
  const rest = name.slice(1 - length);
  const key = rest.indexOf("[");
  return `…${key >= 0 ? rest.slice(key) : rest}`;
}
