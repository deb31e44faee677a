// Positions of cards, frames and edges. Each open box is laid out by itself, inner boxes first; results are cached by
// shape and shared by boxes of equal shape. Opening one scope of a large model thus lays out that scope and those around
// it only. An edge is drawn in the innermost box that holds both its ends; where it crosses a border there is a port.

const GAP = { node: 26, rank: 46, labelled: 30, frame: 18, head: 34, port: 26 };
const MANY = 60; // boxes with more children use a cheaper ranking

/**
 * Lay out the visible part of a model.
 *
 * `view`: {model, open: Set of box ids, direction: "TB" | "LR", measure(item) -> {width, height},
 * label(edges) -> {width, height} | null, cache: Map}. Returns {items, edges, width, height} in absolute coordinates:
 * items [{id, kind: "node" | "closed" | "frame", child, x, y, width, height, depth, ports}], edges
 * [{id, edges, points, from, to}].
 */
function layout(view) {
  const shown = visibleTree(view);
  const placed = layoutBox(view, shown, view.model.root, 0);
  const out = { items: [], edges: [], width: placed.width, height: placed.height, lanes: new Map() };
  flattenBox(view, placed, 0, 0, 0, out);
  const items = new Map(out.items.map((item) => [item.id, item]));
  spreadEnds(out.edges, items, view.direction === "LR");
  for (const line of out.edges) line.points = withoutBends(line);
  for (const carry of view.model.carries) addCarry(carry, shown.itemOf, items, view, out);
  return out;
}

/** The visible item of each node, and for each open box its children and the edges drawn in it. */
function visibleTree(view) {
  const { model, open } = view;
  const itemOf = new Map(); // node id -> its visible item
  const inside = new Map(); // box id -> {children, edges, entering, leaving}
  const walk = (box) => {
    inside.set(box.id, { children: box.children, edges: new Map(), entering: new Map(), leaving: new Map() });
    for (const child of box.children) {
      if (child.box && open.has(child.box.id)) {
        if (child.box.node) itemOf.set(child.box.node.id, child);
        walk(child.box);
      } else {
        for (const node of child.box ? child.box.all : [child.node]) itemOf.set(node.id, child);
      }
    }
  };
  walk(model.root);
  for (const wire of drawnWires(model, open, itemOf)) liftEdge(wire, itemOf, inside);
  return { itemOf, inside };
}

/**
 * The edges as they are drawn: what enters an open body goes to its inputs, and what leaves it comes from its results.
 * The body of an opaque node is not connected: its edges end at its frame. Each is {edge, from, to, value}; its ends are
 * nodes that are visible or inside closed boxes.
 */
function* drawnWires(model, open, itemOf) {
  const isOpen = (node) =>
    node.bodies.length > 0 &&
    !node.item.box.opaque &&
    itemOf.get(node.id) === node.item &&
    open.has(node.item.box.id);
  function* producers(node, output) {
    const results = isOpen(node) ? node.leaves.filter((edge) => edge.position === output) : [];
    if (!results.length) yield node;
    for (const edge of results) yield* producers(edge.from, edge.output);
  }
  const entered = new Set();
  for (const edge of model.entering) {
    const body = framesAround(edge.to.item).find((box) => box.ofNode !== null);
    const node = body && model.nodes.get(body.ofNode);
    if (!node || !isOpen(node)) continue;
    entered.add(node);
    for (const from of producers(edge.from, edge.output)) yield { edge, from, to: edge.to, value: edge.value };
  }
  for (const edge of model.edges) {
    if (isOpen(edge.to) && entered.has(edge.to)) continue;
    for (const from of producers(edge.from, edge.output)) yield { edge, from, to: edge.to, value: edge.value };
  }
}

function liftEdge({ edge, from: source, to: target, value }, itemOf, inside) {
  const from = itemOf.get(source.id);
  const to = itemOf.get(target.id);
  if (!from || !to || from === to) return;
  const up = chain(from);
  const down = chain(to);
  while (up.length && down.length && up[up.length - 1] === down[down.length - 1]) {
    up.pop();
    down.pop();
  }
  if (!up.length || !down.length) return; // a value and the frame it is in
  const top = up[up.length - 1];
  const bottom = down[down.length - 1];
  const meeting = inside.get(top.parent.id);
  const key = `${top.id}>${bottom.id}`;
  if (!meeting.edges.has(key)) meeting.edges.set(key, { top, bottom, edges: [] });
  meeting.edges.get(key).edges.push({ edge, value });
  for (let i = 1; i < up.length; i += 1) crossing(inside.get(up[i].box.id).leaving, edge, value, up[i - 1]);
  for (let i = 1; i < down.length; i += 1)
    crossing(inside.get(down[i].box.id).entering, edge, value, down[i - 1]);
}

/** An item and the frames around it, innermost first. */
function chain(item) {
  const found = [item];
  for (let box = item.parent; box && box.item; box = box.item.parent) found.push(box.item);
  return found;
}

function crossing(ports, edge, key, child) {
  if (!ports.has(key)) ports.set(key, { key, name: edge.name, active: false, ends: new Map() });
  const port = ports.get(key);
  port.active = port.active || edge.active;
  if (!port.ends.has(child.id)) port.ends.set(child.id, { child, edges: [] });
  port.ends.get(child.id).edges.push(edge);
}

function layoutBox(view, shown, box, depth) {
  const here = shown.inside.get(box.id);
  const nested = new Map();
  const sizes = here.children.map((child) => {
    if (!child.box || !view.open.has(child.box.id)) return view.measure(child);
    const placed = layoutBox(view, shown, child.box, depth + 1);
    nested.set(child.id, placed);
    return placed;
  });
  const sketch = sketchOf(view, here, sizes, box);
  const key = JSON.stringify(sketch);
  if (!view.cache.has(key)) view.cache.set(key, placeSketch(sketch));
  return { box, here, nested, ...named(view.cache.get(key), here) };
}

/** One box as numbers only: boxes of equal shape, such as the layers of a model, share a sketch and its layout. */
function sketchOf(view, here, sizes, box) {
  const place = new Map(here.children.map((child, i) => [child.id, i]));
  const ends = (ports) =>
    [...ports.values()].map((port) => [...port.ends.values()].map(({ child }) => place.get(child.id)));
  return {
    direction: view.direction,
    sizes: sizes.map(({ width, height }) => [width, height]),
    edges: [...here.edges.values()].map(({ top, bottom, edges }) => {
      const label = view.label(edges.map(({ edge }) => edge));
      return [
        place.get(top.id),
        place.get(bottom.id),
        edges.some(({ edge }) => edge.active) ? 2 : 1,
        label ? label.width : 0,
        label ? label.height : 0,
      ];
    }),
    in: ends(here.entering),
    out: ends(here.leaving),
    head: box.item ? view.headWidth(box) : null,
    lanes:
      box.kind === "scan" ? 10 + 12 * view.model.carries.filter((carry) => carry.to.box === box.id).length : 0,
  };
}

/** Lay out a sketch: positions of its children (top left corners), of its ports, and of the lines between them. */
function placeSketch(sketch) {
  const items = sketch.sizes.map(([width, height], i) => ({ id: `${i}`, width, height }));
  const edges = sketch.edges.map(([from, to, weight, width, height]) => ({
    from: `${from}`,
    to: `${to}`,
    weight,
    labelpos: "c",
    ...(width ? { width, height } : {}),
  }));
  const stubs = { in: [], out: [] }; // indices of the edges between the ports of a side and the children
  if (sketch.head !== null) for (const side of ["in", "out"]) addPorts(side, sketch, items, edges, stubs[side]);
  const options = {
    rankdir: sketch.direction,
    nodesep: GAP.node,
    ranksep: sketch.edges.some(([, , , width]) => width) ? GAP.labelled : GAP.rank,
    edgesep: 18,
    ranker: sketch.sizes.length > MANY ? "tight-tree" : "network-simplex",
  };
  return readPlaces(layered({ options, items, edges }), sketch, stubs);
}

/** The ports of a side share a rank at the border, held there by edges to an invisible item. */
function addPorts(side, sketch, items, edges, stubs) {
  if (!sketch[side].length) return;
  const across = sketch.direction === "LR";
  const join = (port, other, label) =>
    edges.push(side === "in" ? { from: port, to: other, ...label } : { from: other, to: port, ...label }) - 1;
  items.push({ id: side, width: 1, height: 1 });
  sketch[side].forEach((children, i) => {
    const id = `${side}${i}`;
    items.push({ id, width: across ? 8 : 40, height: across ? 16 : 8 });
    join(side, id, { weight: 40 });
    stubs.push(children.map((child) => join(id, `${child}`, {})));
  });
}

function readPlaces(plan, sketch, stubs) {
  const across = sketch.direction === "LR";
  const edge = new Bounds();
  const pointsOf = (i) => plan.edges[i].points.map(([x, y]) => ({ x, y }));
  const places = sketch.sizes.map(([width, height], i) => {
    const [x, y] = plan.items[`${i}`];
    edge.take(x, y, x + width, y + height);
    return { x, y };
  });
  const lines = sketch.edges.map(([, , , width, height], i) => {
    const points = pointsOf(i);
    const [x, y] = plan.edges[i].label;
    for (const point of points) edge.take(point.x - 8, point.y, point.x + 8, point.y);
    if (width) edge.take(x - width / 2, y, x + width / 2, y);
    return { points, label: width ? { x, y, width, height } : null };
  });
  const ports = { in: [], out: [] };
  const ends = { in: [], out: [] };
  for (const side of ["in", "out"]) {
    stubs[side].forEach((indices, i) => {
      const [left, top, width, height] = plan.items[`${side}${i}`];
      const [x, y] = [left + width / 2, top + height / 2];
      if (across) edge.take(edge.left, y - 10, edge.right, y + 10);
      else edge.take(x - 20, edge.top, x + 20, edge.bottom);
      ports[side].push(across ? y : x);
      ends[side].push(indices.map(pointsOf));
    });
  }
  return moved(sketch, edge.orNothing(), { places, lines, ports, stubs: ends });
}

class Bounds {
  constructor() {
    Object.assign(this, { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity });
  }

  take(left, top, right, bottom) {
    this.left = Math.min(this.left, left);
    this.top = Math.min(this.top, top);
    this.right = Math.max(this.right, right);
    this.bottom = Math.max(this.bottom, bottom);
  }

  orNothing() {
    return Number.isFinite(this.left) ? this : { left: 0, top: 0, right: 0, bottom: 0 };
  }
}

/** Move everything so that the box starts at (0, 0), with room for its head, its ports and its carries. */
function moved(sketch, { left, top, right, bottom }, { places, lines, ports, stubs }) {
  const across = sketch.direction === "LR";
  const framed = sketch.head !== null;
  const pad = framed ? GAP.frame : 0;
  const room = (side) => (framed && sketch[side].length ? GAP.port : 0);
  const before = {
    x: pad + (across ? room("in") : sketch.lanes),
    y: pad + (framed ? GAP.head : 0) + (across ? 0 : room("in")),
  };
  const after = {
    x: pad + (across ? room("out") : 0),
    y: pad + (across ? sketch.lanes : Math.max(0, room("out") - 8)),
  };
  const spare = Math.max(0, (sketch.head || 0) - (right - left + before.x + after.x)) / 2;
  before.x += spare;
  after.x += spare;
  const move = ({ x, y }) => ({ x: x - left + before.x, y: y - top + before.y });
  const movePort = (at) => at - (across ? top - before.y : left - before.x);
  return {
    width: right - left + before.x + after.x,
    height: bottom - top + before.y + after.y,
    places: places.map(move),
    lines: lines.map(({ points, label }) => ({
      points: points.map(move),
      label: label && { ...label, ...move(label) },
    })),
    ports: { in: ports.in.map(movePort), out: ports.out.map(movePort) },
    stubs: {
      in: stubs.in.map((list) => list.map((points) => points.map(move))),
      out: stubs.out.map((list) => list.map((points) => points.map(move))),
    },
  };
}

/** The layout of a sketch, for the children and ports of one box. */
function named(plan, here) {
  const keys = [...here.edges.keys()];
  const sides = { in: [...here.entering.values()], out: [...here.leaving.values()] };
  const stubs = ["in", "out"].flatMap((side) =>
    plan.stubs[side].flatMap((list, i) =>
      [...sides[side][i].ends.values()].map(({ child }, j) => ({
        side,
        port: sides[side][i],
        child,
        points: list[j],
      })),
    ),
  );
  return {
    width: plan.width,
    height: plan.height,
    places: new Map(here.children.map((child, i) => [child.id, plan.places[i]])),
    lines: plan.lines.map((line, i) => ({ key: keys[i], ...line })),
    ports: Object.fromEntries(
      ["in", "out"].map((side) => [side, new Map(plan.ports[side].map((at, i) => [sides[side][i].key, at]))]),
    ),
    stubs,
  };
}
