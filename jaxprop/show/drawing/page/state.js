// The state of the page: the model, what is open, selected and shown; and how each item looks at this step.

class State {
  constructor(scene) {
    this.model = readScene(scene);
    this.open = new Set();
    this.selected = null;
    this.reads = false;
    this.labels = "auto";
    this.direction = "auto";
    this.children = new Map();
    for (const box of this.model.boxes.values())
      for (const child of box.children) this.children.set(child.id, child);
    this.readOn = readsByEdge(this.model);
  }

  /** Open the boxes that the page opens with; `wish`: `all` or `none` of them instead. */
  openFirst(wish) {
    const boxes = [...this.model.boxes.values()].filter((box) => box.item);
    const first = new Set(JSON.parse(document.body.dataset.open));
    const isWished = (box) => (wish === "all" ? !box.opaque : wish !== "none" && isFirst(box));
    // A node with several bodies (branches) is a box of boxes, which only the page has.
    const isFirst = (box) =>
      first.has(box.id) || box.children.some((child) => child.box && first.has(child.box.id));
    for (const box of boxes) if (isWished(box)) this.open.add(box.id);
  }

  childOf(id) {
    return this.children.get(id);
  }

  look(item) {
    const { script, at, step } = this.player;
    const revealed = (map) => (map.get(item.id) ?? -1) <= at;
    const focus =
      Boolean(step) && (step.item === item.id || Boolean(step.items && step.items.includes(item.id)));
    const box = item.child.box;
    return {
      focus: focus && step.act !== "done",
      value: at === script.steps.length - 1 || revealed(script.value),
      cotangent:
        at === script.steps.length - 1 || (script.cotangent.has(item.id) && revealed(script.cotangent)),
      reads:
        this.reads && item.kind !== "frame"
          ? readWords(isGroup(item.child) ? box.all : [item.child.node])
          : null,
      dim: (item.child.node ? item.child.node.taken === 0 : false) || (box ? box.taken === 0 : false),
    };
  }

  lookLine(line) {
    const { script, at, step } = this.player;
    const end = script.steps.length - 1;
    const source = this.sheetItem(line.edges[0].from);
    const target = this.sheetItem(line.edges[0].to);
    const isAt = (child) => step && step.item === child.id && step.act !== "done";
    const backward =
      at === end || (script.cotangent.get(source.id) ?? script.cotangent.get(line.from) ?? Infinity) <= at;
    const local = at === end || (script.local.get(target.id) ?? Infinity) <= at || step.act === "backward";
    const act = step ? step.act : "";
    const focus =
      (isAt(target) && (act === "forward" || act === "local")) || (isAt(source) && act === "backward");
    return {
      backward,
      local,
      focus,
      flow: focus && act === "forward" ? "flow-forward" : focus && act === "backward" ? "flow-backward" : "",
      touch: this.selected !== null && (line.from === this.selected || line.to === this.selected),
      reads: this.reads ? this.readsOf(line) : null,
    };
  }

  /** The visible item of a node: its own, or the closed box around it. */
  sheetItem(node) {
    let child = node.item;
    for (const box of framesAround(child)) if (!this.open.has(box.id)) child = box.item;
    return child;
  }

  /** The text of the values on a line that the VJP of its consumer reads. */
  readsOf(line) {
    const found = line.edges.map((edge) => this.readOn.get(`${edge.value}>${edge.to.id}`)).filter(Boolean);
    if (!found.length) return null;
    const values = new Set(found.map((read) => read.value));
    return values.size > 1 ? plural(values.size, "value") : found[0].size;
  }

  describe(item) {
    const child = item.child;
    if (isGroup(child) || item.kind === "frame")
      return `${child.box.name || child.box.kind}, ${boxWords(child.box)}, ${item.kind === "frame" ? "open" : "closed"}`;
    const { node } = child;
    const { value: seen, cotangent: back } = this.look(item);
    const value = seen && valueOf(node);
    const cotangent = back && cotangentOf(node);
    return [
      node.name,
      KIND_WORDS[node.kind],
      expressionOf(node),
      typeOf(node),
      value && `value ${number(value.text)}`,
      cotangent && `cotangent ${number(cotangent.text)}`,
      node.active ? "" : "no gradient",
    ]
      .filter(Boolean)
      .join(", ");
  }

  notFinite() {
    const has = (node, part) => node.outputs.some((output) => bad(output[part]));
    const { order } = this.model;
    return [
      ...order.filter((node) => has(node, "cotangent")),
      ...order.filter((node) => !has(node, "cotangent") && has(node, "value")),
    ];
  }
}

/** What VJPs read, by the edge it is on: value > consumer. */
function readsByEdge(model) {
  const found = new Map();
  for (const node of model.order) for (const read of node.reads) found.set(`${read.value}>${node.id}`, read);
  return found;
}

/** The badge of a card: how many of its values VJPs read. */
function readWords(nodes) {
  const values = new Set(nodes.flatMap((node) => node.readBy.map((read) => read.value)));
  if (!values.size) return null;
  return nodes.length > 1 ? `${plural(values.size, "value")} read` : "read";
}
