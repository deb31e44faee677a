// Search by name, scope, primitive, expression and source. The best results first: a name that equals the query, starts
// with it, contains it; then everything else.

const MOST_HITS = 60;

function findNodes(model, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return [];
  const hits = [];
  const things = [
    ...[...model.boxes.values()].filter((box) => box.item && !box.node).map((box) => ({ box })),
    ...model.order.map((node) => ({ node })),
  ];
  things.forEach((thing, at) => {
    const { name, rest } = wordsOf(thing);
    let score = 0;
    for (const word of words) {
      const found =
        name === word ? 8 : name.startsWith(word) ? 5 : name.includes(word) ? 3 : rest.includes(word) ? 1 : 0;
      if (!found) return;
      score += found;
    }
    hits.push({ ...thing, score, at });
  });
  return hits.sort((a, b) => b.score - a.score || a.at - b.at);
}

function wordsOf(thing) {
  if (!thing.words) {
    const { node, box } = thing;
    const rest = node
      ? [
          node.primitive,
          node.scope,
          node.label,
          node.kind === "op" ? "" : KIND_WORDS[node.kind],
          node.source ? `${node.source.file}:${node.source.line} ${node.source.function}` : "",
          ...node.outputs.map((output) => `${output.name} ${output.type}`),
        ]
      : [box.path, box.kind];
    thing.words = {
      name: (node ? node.name : box.name || "").toLowerCase(),
      rest: rest.join(" ").toLowerCase(),
    };
  }
  return thing.words;
}

/** The search box: a combobox over a list of results. */
function setUpSearch(page) {
  const input = document.getElementById("query");
  const list = document.getElementById("results");
  let hits = [];
  let chosen = 0;
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const choose = (i) => {
    chosen = (i + hits.length) % Math.max(1, hits.length);
    [...list.children].forEach((row, j) => row.setAttribute("aria-selected", String(j === chosen)));
    const row = list.children[chosen];
    if (row && hits.length) {
      input.setAttribute("aria-activedescendant", row.id);
      row.scrollIntoView({ block: "nearest" });
    }
  };
  const take = (i) => {
    if (!hits[i]) return;
    close();
    input.blur();
    if (hits[i].node) page.reveal(hits[i].node);
    else page.revealBox(hits[i].box);
  };
  const search = () => {
    const all = findNodes(page.model, input.value);
    hits = all.slice(0, MOST_HITS);
    const rows = hits.map((hit, i) =>
      h(
        "li",
        {
          id: `hit${i}`,
          role: "option",
          "aria-selected": "false",
          onpointerdown: (event) => (event.preventDefault(), take(i)),
          onpointermove: () => chosen !== i && choose(i),
        },
        hitRow(hit, input.value),
      ),
    );
    if (!hits.length && input.value.trim()) rows.push(h("li", { class: "none" }, "No results."));
    if (all.length > hits.length) rows.push(h("li", { class: "none" }, `and ${all.length - hits.length} more`));
    list.replaceChildren(...rows);
    list.hidden = !rows.length;
    input.setAttribute("aria-expanded", String(Boolean(hits.length)));
    choose(0);
  };
  input.addEventListener("input", search);
  input.addEventListener("focus", () => input.value && search());
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") choose(chosen + 1);
    else if (event.key === "ArrowUp") choose(chosen - 1);
    else if (event.key === "Enter") take(chosen);
    else if (event.key === "Escape") (list.hidden ? (input.value = "") : close(), input.blur());
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function hitRow({ node, box }, query) {
  const what = !node
    ? BOX_WORDS[box.kind] || box.kind
    : node.kind === "op" || node.kind === "loss"
      ? node.primitive
      : KIND_WORDS[node.kind];
  const where = node
    ? [node.scope, node.source ? `${node.source.file}:${node.source.line}` : ""].filter(Boolean).join(" · ")
    : boxWords(box);
  const name = node ? node.name : box.name || box.path;
  return [
    // The end of a long name tells results apart, so its start is cut: text that runs from right to left, in which the
    // name itself is isolated.
    h("span", { class: "hit", title: name }, h("bdi", {}, marked(name, query))),
    h("span", { class: "what" }, what),
    where ? h("span", { class: "where" }, where) : null,
  ];
}

function marked(text, query) {
  const word = query.toLowerCase().split(/\s+/).filter(Boolean)[0] || "";
  const at = text.toLowerCase().indexOf(word);
  if (!word || at < 0) return text;
  return [text.slice(0, at), h("mark", {}, text.slice(at, at + word.length)), text.slice(at + word.length)];
}
