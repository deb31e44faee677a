// The script of the play: the arguments, the forward pass, the local gradients, the backward pass. It follows what is
// visible: a closed box is one step, an open scan is played step by step.

const ACTS = [
  ["given", "Given", "Arguments"],
  ["forward", "Forward", "Forward pass"],
  ["local", "Local", "Local gradients"],
  ["backward", "Backward", "Backward pass"],
  ["done", "Result", "The gradient"],
];
const MOST_REPEATED = 240; // an open scan is played step by step if that takes at most this many steps of the script

/** The script for what is open: {steps, value, local, cotangent, starts}; the maps give the step that reveals an item. */
function writeScript(model, open) {
  const script = { steps: [], value: new Map(), local: new Map(), cotangent: new Map(), starts: {} };
  // The body of an opaque node has no values of its own: its node is played, open or closed.
  const isOpen = (child) => isGroup(child) && open.has(child.box.id);
  const add = (step) => script.steps.push(step) - 1;
  const first = (map, id, at) => map.has(id) || map.set(id, at);
  const begin = (act) => (script.starts[act] = script.steps.length);

  begin("given");
  const given = model.order.filter(
    (node) =>
      isArgument(node) && (node.steps || []).length === 0 && ["parameter", "data", "const"].includes(node.kind),
  );
  if (given.length) {
    const at = add({ act: "given", nodes: given, items: given.map((node) => node.item.id) });
    for (const node of given) first(script.value, node.item.id, at);
  }

  begin("forward");
  playBox(model.root, false, {});
  begin("local");
  for (const child of leaves(model.root, isOpen)) {
    if (
      isGroup(child) ||
      child.node.taken === 0 ||
      !child.node.operands.some((edge) => edge.active && edge.local)
    )
      continue;
    first(script.local, child.id, add({ act: "local", node: child.node, item: child.id }));
  }
  begin("backward");
  playBox(model.root, true, {});
  begin("done");
  const gradients = model.order.filter((node) => node.kind === "parameter" && node.main.cotangent);
  add({ act: "done", nodes: gradients, items: [] });
  return script;

  function playBox(box, back, sets) {
    const children = back
      ? [
          ...box.children.filter((child) => !isArgument(child.node) || child.box).reverse(),
          ...box.children.filter((child) => isArgument(child.node) && !child.box),
        ]
      : box.children;
    const opening = script.steps.length;
    for (const child of children) {
      if ((child.box || child.node).taken === 0) continue; // a branch that was not taken
      if (isOpen(child)) playOpen(child.box, back, sets);
      else if (isGroup(child)) playClosed(child, back, sets);
      else if (back) playBack(child, sets);
      else if (!isArgument(child.node))
        first(script.value, child.id, add({ act: "forward", node: child.node, item: child.id, sets }));
      else first(script.value, child.id, opening);
    }
  }

  function playOpen(box, back, sets) {
    const seen = [...leaves(box, isOpen)].length;
    if (!box.steps || seen * box.steps.length > MOST_REPEATED) return playBox(box, back, sets);
    const order = box.steps.map((_, i) => i);
    for (const i of back ? order.reverse() : order) playBox(box, back, { ...sets, [box.id]: i });
  }

  function playClosed(child, back, sets) {
    if (back && !child.box.active) return;
    const at = add({ act: back ? "backward" : "forward", box: child.box, item: child.id, sets });
    first(back ? script.cotangent : script.value, child.id, at);
  }

  function playBack(child, sets) {
    const { node } = child;
    if (!node.active || (!node.main.cotangent && model.scene.numbers && model.scene.numbers !== "none")) return;
    first(script.cotangent, child.id, add({ act: "backward", node, item: child.id, sets }));
  }
}

/** The children that are visible as cards, in program order. */
function* leaves(box, isOpen) {
  for (const child of box.children) {
    if (isOpen(child)) yield* leaves(child.box, isOpen);
    else yield child;
  }
}

class Player {
  constructor(changed) {
    this.changed = changed;
    this.script = { steps: [] };
    this.at = 0;
    this.speed = 1;
    this.timer = null;
  }

  /** Take a new script, after boxes were opened or closed, and stay at the step of the same node if there is one. */
  load(script) {
    const old = this.script.steps[this.at];
    const atEnd = !old || old.act === "done";
    this.script = script;
    const same = atEnd
      ? -1
      : script.steps.findIndex(
          (step) => step.act === old.act && step.item === old.item && sameSets(step.sets, old.sets),
        );
    const close = script.steps.findIndex((step) => old && step.act === old.act);
    this.at = atEnd ? script.steps.length - 1 : same >= 0 ? same : Math.max(0, close);
  }

  get step() {
    return this.script.steps[this.at];
  }

  get playing() {
    return this.timer !== null;
  }

  go(at) {
    const next = clamp(at, 0, this.script.steps.length - 1);
    if (next === this.at) return;
    this.at = next;
    this.changed();
  }

  play() {
    if (this.at >= this.script.steps.length - 1) this.at = 0;
    this.timer = setTimeout(() => this.tick(), 1600 / this.speed);
    this.changed();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
    this.changed();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  tick() {
    const last = this.script.steps.length - 1;
    this.at = Math.min(this.at + 1, last);
    if (this.at === last) this.timer = null;
    else this.timer = setTimeout(() => this.tick(), 1600 / this.speed);
    this.changed();
  }
}

const sameSets = (a, b) => JSON.stringify(a || {}) === JSON.stringify(b || {});
