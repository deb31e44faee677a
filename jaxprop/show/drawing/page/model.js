// The scene as a model: nodes with their operands and consumers, boxes as a tree. The scene itself, documented at
// `jaxprop.show.Scene`, is not changed.

/**
 * Read a scene. A *child* is an item of a box, `{id, node, box, parent}`: a node, or a box. If the box is the body of a
 * node, the child has both.
 */
function readScene(scene) {
  const boxes = new Map();
  const root = newBox({ id: "", name: scene.title, path: "", kind: "root" });
  boxes.set("", root);
  for (const box of scene.boxes || []) boxes.set(box.id, newBox(box));
  const nodes = new Map(scene.nodes.map((node, at) => [node.id, newNode(node, at, scene)]));
  const model = { scene, boxes, root, nodes, order: [...nodes.values()], edges: [], entering: [], carries: [] };
  for (const edge of scene.edges) addEdge(model, edge);
  for (const read of scene.reads || []) addRead(model, read);
  growTree(model);
  countInside(model.root);
  model.losses = new Set(scene.loss.map(([id]) => id));
  model.loss = nodes.get(scene.loss.length ? scene.loss[0][0] : undefined);
  model.lossName = scene.title;
  model.known = new Map(); // values by their short names, for expressions
  for (const node of model.order)
    for (const names of node.outputs.map(namesOf))
      if (!model.known.has(names.short)) model.known.set(names.short, names);
  model.scale = scene.scale || null;
  return model;
}

function newBox(box) {
  const ofNode = box.node ?? null;
  return { ...box, ofNode, children: [], all: [], inside: [], item: null, node: null, step: 0, steps: null };
}

function newNode(node, at, scene) {
  const outputs = node.outputs || [];
  const main =
    outputs.find((output) => output.cotangent) || outputs.find((output) => output.name) || outputs[0] || {};
  return {
    ...node,
    at, // in program order
    short: node.name,
    latex: "",
    ...namesOf(outputs.find((output) => output.name === node.name)),
    label: node.label || "",
    call: node.call || "",
    outputs,
    main,
    source: node.source === undefined || node.source === null ? null : scene.sources[node.source],
    operands: [], // data edges into it
    consumers: [], // data edges out of it
    entered: [], // of an input of a body: where its value comes from
    leaves: [], // of a node with a body: results of the body, by output
    leaving: [], // out of the body it is in: to an output, or to the next step
    reads: [], // what its VJP reads
    readBy: [], // whose VJP reads its values
    bodies: [], // boxes that are its body
    item: null,
  };
}

/** The name of an output without its scope, as text and as LaTeX. */
const namesOf = (output) => (output ? { short: output.short || output.name, latex: output.latex || "" } : {});

function addEdge(model, data) {
  const from = model.nodes.get(data.source[0]);
  const to = model.nodes.get(data.target[0]);
  if (!from || !to) return;
  const edge = {
    ...data,
    from,
    to,
    ...namesOf(from.outputs[data.source[1]] || { name: data.name }),
    output: data.source[1],
    position: data.target[1],
    value: `${from.id}.${data.source[1]}`,
    active: Boolean(data.active),
  };
  if (edge.kind === "carry") {
    model.carries.push(edge);
    from.leaving.push(edge);
  } else if (edge.kind === "enter") {
    to.entered.push(edge);
    model.entering.push(edge);
  } else if (edge.kind === "leave") {
    to.leaves.push(edge);
    from.leaving.push(edge);
  } else {
    model.edges.push(edge);
    to.operands.push(edge);
    from.consumers.push(edge);
  }
}

function addRead(model, data) {
  const from = model.nodes.get(data.source[0]);
  const to = model.nodes.get(data.target);
  if (!from || !to) return;
  const read = { ...data, from, to, value: `${from.id}.${data.source[1]}` };
  to.reads.push(read);
  from.readBy.push(read);
}

/** Children in program order. A node with one body is that body's box; with several (branches), a box of boxes. */
function growTree(model) {
  for (const box of model.boxes.values()) if (box.ofNode !== null) model.nodes.get(box.ofNode).bodies.push(box);
  for (const node of model.order) {
    const parent = model.boxes.get(node.box || "");
    if (node.bodies.length) growBodies(model, node, parent);
    else node.item = adopt(parent, { id: `n${node.id}`, node, box: null, at: node.at });
  }
  for (const box of model.boxes.values()) {
    if (!box.item && box !== model.root)
      box.item = adopt(model.boxes.get(box.parent || ""), { id: `b${box.id}`, node: null, box, at: Infinity });
  }
  settleOrder(model.root);
}

function growBodies(model, node, parent) {
  let box = node.bodies[0];
  if (node.bodies.length > 1) {
    box = newBox({
      id: `of${node.id}`,
      name: node.name,
      path: node.scope || "",
      kind: box.kind,
      opaque: box.opaque,
      parent: node.box,
      active: node.active,
    });
    model.boxes.set(box.id, box);
    for (const body of node.bodies)
      body.item = adopt(box, { id: `b${body.id}`, node: null, box: body, at: Infinity });
  }
  box.node = node;
  box.item = node.item = adopt(parent, { id: `b${box.id}`, node, box, at: node.at });
}

function adopt(box, child) {
  child.parent = box;
  box.children.push(child);
  return child;
}

/** A box is ordered by its first node that is not an argument. */
function settleOrder(box) {
  for (const child of box.children) {
    if (!child.box) continue;
    const first = settleOrder(child.box);
    if (!child.node) child.at = first;
  }
  box.children.sort((a, b) => a.at - b.at);
  return box.children.reduce(
    (least, child) => (isArgument(child.node) && !child.box ? least : Math.min(least, child.at)),
    Infinity,
  );
}

const ARGUMENTS = new Set(["parameter", "data", "const", "constant", "carry", "slice", "operand"]);
const isArgument = (node) => Boolean(node) && ARGUMENTS.has(node.kind);

/** All nodes in each box; `inside` leaves out the node whose body it is. */
function countInside(box) {
  for (const child of box.children) {
    if (child.box) {
      countInside(child.box);
      box.all.push(...child.box.all);
      box.inside.push(...child.box.inside);
      if (child.node) box.inside.push(child.node);
    } else {
      box.all.push(child.node);
      box.inside.push(child.node);
    }
  }
  if (box.node) box.all.push(box.node);
  box.count = box.inside.length;
  box.badCotangents = box.inside.filter((node) => node.outputs.some((output) => bad(output.cotangent))).length;
  box.length = box.length || null;
  box.steps = box.kind === "scan" ? shownSteps(box) : null;
}

/** The steps of a scan that can be shown: indices along its own axis, of those its nodes hold. */
function shownSteps(box) {
  for (const node of box.inside) {
    const depth = (node.steps || []).length;
    for (const output of node.outputs) {
      const steps = (output.value && output.value.steps) || (output.cotangent && output.cotangent.steps);
      if (!steps || !depth) continue;
      const axis = scanDepth(box);
      if (axis >= depth) continue;
      const after = node.steps.slice(axis + 1).reduce((a, b) => a * b, 1);
      return [...new Set(steps.at.map((at) => Math.floor(at / after) % node.steps[axis]))].sort(
        (a, b) => a - b,
      );
    }
  }
  return null;
}

/** The number of scans around this one. */
function scanDepth(box) {
  return framesAround(box.item).filter((outer) => outer.kind === "scan").length;
}

/** Boxes around a child, innermost first, without the sheet. */
function framesAround(child) {
  const found = [];
  for (let box = child.parent; box && box.item; box = box.item.parent) found.push(box);
  return found;
}

/** Whether a child is drawn as a box with totals when closed, and not as the card of its one operation. */
const isGroup = (child) => Boolean(child.box) && !(child.box.opaque && child.node);

// --- what is shown of a value ----------------------------------------------------------------------

/** A value or cotangent at the chosen steps of the scans around it. */
function shownAt(node, shown) {
  if (!shown || !shown.steps || !(node.steps || []).length) return shown || null;
  const scans = framesAround(node.item)
    .filter((box) => box.kind === "scan" && box.steps)
    .reverse();
  if (!scans.length || scans.length > node.steps.length) return shown;
  let flat = 0;
  node.steps.forEach((length, axis) => {
    const box = scans[axis];
    flat = flat * length + (box ? box.steps[Math.min(box.step, box.steps.length - 1)] : 0);
  });
  const steps = shown.steps;
  let best = 0;
  steps.at.forEach((at, i) => {
    if (Math.abs(at - flat) < Math.abs(steps.at[best] - flat)) best = i;
  });
  const bad = steps.nonfinite ? steps.nonfinite[best] : 0;
  const thumb = steps.thumbs && steps.thumbs[best];
  const value = Number(steps.text[best]);
  return {
    text: steps.text[best],
    norm: steps.norm[best],
    number: thumb || Number.isNaN(value) ? undefined : value,
    nonfinite: bad,
    thumb: thumb || null,
    at: steps.at[best],
  };
}

/** The value of a node; for an input of a body that has none of its own, the value it is given. */
function valueOf(node, output = node.main) {
  if (!output.value && node.entered.length === 1 && node.kind !== "slice") {
    const [edge] = node.entered;
    return valueOf(edge.from, edge.from.outputs[edge.output]);
  }
  return shownAt(node, output.value);
}

const cotangentOf = (node, output = node.main) => shownAt(node, output.cotangent);

/** The contribution of a consumer. Inside scans only the total over all steps is known, so it is not shown. */
const shareOf = (edge) => ((edge.to.steps || []).length ? null : edge.share || null);

/** Whether something shown holds NaN or an infinity. */
const bad = (shown) => Boolean(shown) && (Boolean(shown.nonfinite) || isBad(shown.number) || isBad(shown.norm));
