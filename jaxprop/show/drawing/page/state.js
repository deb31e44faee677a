// What the page knows: the model, what is open, selected and shown; and how each thing looks at this step.

const OPEN_UP_TO = 60; // a graph of so few operations opens whole

class State {
  constructor(scene) {
    this.model = readScene(scene);
    this.open = new Set();
    this.selected = null;
    this.kept = false;
    this.labels = "auto";
    this.direction = "auto";
    this.children = new Map();
    for (const box of this.model.boxes.values())
      for (const child of box.children) this.children.set(child.id, child);
    this.residuals = keptOnEdges(this.model);
  }

  openFirst(wish) {
    const { model } = this;
    const openAll = (box) => {
      for (const child of box.children) if (child.box) (this.open.add(child.box.id), openAll(child.box));
    };
    const chosen = document.body.dataset.open;
    if (chosen !== undefined && !wish) {
      for (const id of JSON.parse(chosen)) if (model.boxes.has(id)) this.open.add(id);
      return;
    }
    if (wish === "all" || (wish !== "none" && model.order.length <= OPEN_UP_TO)) openAll(model.root);
    else if (wish === "none") return;
    // A sheet with one box on it opens that box: there is nothing else to look at.
    for (
      let box = model.root;
      box.children.filter((child) => child.box).length === 1 && box.children.length <= 6;
    ) {
      box = box.children.find((child) => child.box).box;
      this.open.add(box.id);
    }
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
      kept: this.kept && item.kind !== "frame" ? keptWords(box ? box.all : [item.child.node], !box) : null,
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
      kept: this.kept ? this.keptOf(line) : null,
    };
  }

  /** What is seen of a node: itself, or the closed box it lies in. */
  sheetItem(node) {
    let child = node.item;
    for (const box of framesAround(child)) if (!this.open.has(box.id)) child = box.item;
    return child;
  }

  keptOf(line) {
    const found = line.edges.map((edge) => this.residuals.get(`${edge.value}>${edge.to.id}`)).filter(Boolean);
    if (!found.length) return null;
    const size = [...new Map(found.map((residual) => [residual.value, residual.bytes])).values()].reduce(
      (a, b) => a + b,
      0,
    );
    return found.every((residual) => residual.recomputed) ? "computed again" : bytes(size);
  }

  describe(item) {
    const child = item.child;
    if (child.box)
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

  /** The legend lies open where it covers nothing. */
}

/** Residuals by the edge they run along: value > reader. */
function keptOnEdges(model) {
  const found = new Map();
  for (const node of model.order)
    for (const residual of node.kept) found.set(`${residual.value}>${node.id}`, residual);
  return found;
}

/** What is kept of these nodes' values, each once. */
function keptWords(nodes, own) {
  const sizes = new Map();
  for (const node of nodes) {
    for (const residual of node.keptFor) if (!residual.recomputed) sizes.set(residual.value, residual.bytes);
    if (node.keeps) sizes.set(`own${node.id}`, node.keeps);
  }

  const total = [...sizes.values()].reduce((a, b) => a + b, 0);
  return total ? `${own ? "kept" : "keeps"} ${bytes(total)}` : null;
}
