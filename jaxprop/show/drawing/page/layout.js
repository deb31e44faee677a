// Where everything stands. Each open box is laid out by itself with dagre, its children at the size they have now,
// from the inside out; results are kept by shape, and shared by boxes of one shape. So opening one scope of a large
// model lays out that scope and the few around it, and nothing else. An edge is drawn in the box where its two ends first
// meet; where it crosses a border there is a port.

const GAP = { node: 26, rank: 46, labelled: 30, frame: 18, head: 34, port: 26 };
const MANY = 60; // beyond so many children a cheaper ranking is used

/**
 * Lay out the visible part of a model.
 *
 * `view`: {model, open: Set of box ids, direction: "TB" | "LR", measure(item) -> {width, height},
 * label(edges) -> {width, height} | null, cache: Map}. Returns {items, edges, width, height} in absolute places:
 * items [{id, kind: "node" | "closed" | "frame", of, x, y, width, height, depth, ports}], edges
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

/** Which items are seen, and for each box drawn open: its children and the edges that meet in it. */
function visibleTree(view) {
  const { model, open } = view;
  const itemOf = new Map(); // node id -> the item that stands for it
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
 * The edges as they are drawn: at an open body what goes in goes on to its heads, and what comes out comes from its
 * results. Each is {edge, from, to, value}, its ends nodes that are seen or lie in closed boxes.
 */
function* drawnWires(model, open, itemOf) {
  const isOpen = (node) =>
    node.bodies.length > 0 && itemOf.get(node.id) === node.item && open.has(node.item.box.id);
  function* makers(node, output) {
    const results = isOpen(node) ? node.leaves.filter((edge) => edge.position === output) : [];
    if (!results.length) yield node;
    for (const edge of results) yield* makers(edge.from, edge.output);
  }
  const entered = new Set();
  for (const edge of model.entering) {
    const body = framesAround(edge.to.item).find((box) => box.ofNode !== null);
    const node = body && model.nodes.get(body.ofNode);
    if (!node || !isOpen(node)) continue;
    entered.add(node);
    for (const from of makers(edge.from, edge.output)) yield { edge, from, to: edge.to, value: edge.value };
  }
  for (const edge of model.edges) {
    if (isOpen(edge.to) && entered.has(edge.to)) continue;
    for (const from of makers(edge.from, edge.output)) yield { edge, from, to: edge.to, value: edge.value };
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
  if (!up.length || !down.length) return; // a value and the frame it lies in
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

/** One box as numbers only: boxes of one shape (the layers of a model) have one sketch, and are laid out once. */
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

/** Lay out a sketch by dagre: places of its children (top left corners), of its ports, and the lines between. */
function placeSketch(sketch) {
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  const large = sketch.sizes.length > MANY;
  graph.setGraph({
    rankdir: sketch.direction,
    nodesep: GAP.node,
    ranksep: sketch.edges.some(([, , , width]) => width) ? GAP.labelled : GAP.rank,
    edgesep: 18,
    ranker: large ? "tight-tree" : "network-simplex",
  });
  graph.setDefaultEdgeLabel(() => ({}));
  sketch.sizes.forEach(([width, height], i) => graph.setNode(`${i}`, { width, height }));
  sketch.edges.forEach(([from, to, weight, width, height], i) =>
    graph.setEdge(`${from}`, `${to}`, { weight, labelpos: "c", ...(width ? { width, height } : {}) }, `${i}`),
  );
  if (sketch.head !== null) for (const side of ["in", "out"]) addPorts(graph, side, sketch);
  dagre.layout(graph);
  return readPlaces(graph, sketch);
}

/** Ports stand in a rank of their own at the border, held there by a node that is not drawn. */
function addPorts(graph, side, sketch) {
  if (!sketch[side].length) return;
  const across = sketch.direction === "LR";
  const join = (port, other, label, name) =>
    side === "in" ? graph.setEdge(port, other, label, name) : graph.setEdge(other, port, label, name);
  graph.setNode(side, { width: 1, height: 1 });
  sketch[side].forEach((children, i) => {
    const id = `${side}${i}`;
    graph.setNode(id, { width: across ? 8 : 40, height: across ? 16 : 8 });
    join(side, id, { weight: 40 });
    for (const child of children) join(id, `${child}`, {}, id);
  });
}

function readPlaces(graph, sketch) {
  const across = sketch.direction === "LR";
  const edge = new Bounds();
  const places = sketch.sizes.map(([width, height], i) => {
    const { x, y } = graph.node(`${i}`);
    edge.take(x - width / 2, y - height / 2, x + width / 2, y + height / 2);
    return { x: x - width / 2, y: y - height / 2 };
  });
  const lines = sketch.edges.map(([from, to, , width, height], i) => {
    const { points, x, y } = graph.edge(`${from}`, `${to}`, `${i}`);
    for (const point of points) edge.take(point.x - 8, point.y, point.x + 8, point.y);
    if (width) edge.take(x - width / 2, y, x + width / 2, y);
    return { points, label: width ? { x, y, width, height } : null };
  });
  const ports = { in: [], out: [] };
  const stubs = { in: [], out: [] };
  for (const side of ["in", "out"]) {
    (sketch.head === null ? [] : sketch[side]).forEach((children, i) => {
      const id = `${side}${i}`;
      const { x, y } = graph.node(id);
      if (across) edge.take(edge.left, y - 10, edge.right, y + 10);
      else edge.take(x - 20, edge.top, x + 20, edge.bottom);
      ports[side].push(across ? y : x);
      stubs[side].push(
        children.map(
          (child) => (side === "in" ? graph.edge(id, `${child}`, id) : graph.edge(`${child}`, id, id)).points,
        ),
      );
    });
  }
  return moved(sketch, edge.orNothing(), { places, lines, ports, stubs });
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

/** Everything moved so that the box begins at (0, 0), with room for its head, its ports and what it carries. */
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

/** A plan of numbers for a box of names. */
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

// --- from boxes to the whole sheet ------------------------------------------------------------------

function flattenBox(view, placed, x0, y0, depth, out) {
  const { here } = placed;
  const frames = new Map(); // child id -> what was placed for it, with its absolute place
  for (const child of here.children) {
    const at = placed.places.get(child.id);
    const size = placed.nested.get(child.id) || view.measure(child);
    const item = {
      id: child.id,
      child,
      kind: placed.nested.has(child.id) ? "frame" : child.box ? "closed" : "node",
      x: x0 + at.x,
      y: y0 + at.y,
      width: size.width,
      height: size.height,
      depth,
    };
    out.items.push(item);
    frames.set(child.id, item);
    if (item.kind === "frame") {
      flattenBox(view, placed.nested.get(child.id), item.x, item.y, depth + 1, out);
      item.ports = placed.nested.get(child.id).ports;
    }
  }
  for (const line of placed.lines) {
    const { top, bottom, edges } = here.edges.get(line.key);
    const points = line.points.map(({ x, y }) => ({ x: x + x0, y: y + y0 }));
    const label = line.label && { ...line.label, x: line.label.x + x0, y: line.label.y + y0 };
    for (const group of byPorts(edges, placed, top, bottom)) {
      out.edges.push({
        id: `${line.key}:${group.key}`,
        edges: group.edges,
        ...attach(
          points,
          end(view, frames.get(top.id), "out", group.value, placed.nested.get(top.id)),
          end(view, frames.get(bottom.id), "in", group.value, placed.nested.get(bottom.id)),
        ),
        label,
        from: top.id,
        to: bottom.id,
        depth,
      });
    }
  }
  flattenStubs(view, placed, x0, y0, depth, frames, out);
}

/** Edges that share a line, told apart where a frame gives each value a port of its own. */
function byPorts(edges, placed, top, bottom) {
  if (!placed.nested.has(top.id) && !placed.nested.has(bottom.id))
    return [{ key: "", value: null, edges: edges.map(({ edge }) => edge) }];
  const groups = new Map();
  for (const { edge, value } of edges) {
    if (!groups.has(value)) groups.set(value, { key: value, value, edges: [] });
    groups.get(value).edges.push(edge);
  }
  return [...groups.values()];
}

/** Where a line ends at a frame: its port; null at a card, where dagre has found the border. */
function end(view, item, side, value, nested) {
  if (!nested || value === null || !nested.ports[side].has(value)) return null;
  const at = nested.ports[side].get(value);
  if (view.direction === "LR") return { x: side === "in" ? item.x : item.x + item.width, y: item.y + at };
  return { x: item.x + at, y: side === "in" ? item.y : item.y + item.height };
}

/** Points with their ends at ports, where there are any; `fixed` says at which. */
function attach(points, first, last) {
  const result = [...points];
  if (first) result[0] = first;
  if (last) result[result.length - 1] = last;
  return { points: result, fixed: [Boolean(first), Boolean(last)] };
}

/**
 * Let lines meet their cards on the side they come from, straight where they can, next to one another: dagre aims
 * them all at the middle.
 */
function spreadEnds(edges, items, across) {
  const [along, main, size, length] = across ? ["y", "x", "height", "width"] : ["x", "y", "width", "height"];
  const ends = new Map(); // item and side -> the ends of lines there
  for (const line of edges) {
    const count = line.points.length;
    const direct = withoutBends(line).length === 2;
    for (const [which, id, at, next, side] of [
      [0, line.from, 0, 1, 1],
      [1, line.to, count - 1, count - 2, 0],
    ]) {
      const item = items.get(id);
      if (line.fixed[which] || !item) continue;
      const key = `${id}|${side}`;
      if (!ends.has(key)) ends.set(key, { item, side, list: [] });
      const other = items.get(which ? line.from : line.to);
      const far =
        line.fixed[1 - which] || !other
          ? line.points[at ? 0 : count - 1][along]
          : other[along] + other[size] / 2;
      ends.get(key).list.push({
        line,
        at,
        wish: direct ? far : line.points[next][along],
        wide: line.edges.some((edge) => edge.active) ? 22 : 14,
      });
    }
  }
  for (const { item, side, list } of ends.values()) {
    list.sort((a, b) => a.wish - b.wish);
    const margin = Math.min(18, item[size] / 3);
    const [low, high] = [item[along] + margin, item[along] + item[size] - margin];
    const gap = Math.min(
      1,
      (high - low) /
        Math.max(
          1,
          list.slice(1).reduce((sum, each) => sum + each.wide, 0),
        ),
    );
    let least = low;
    for (const each of list) {
      each.place = Math.max(least, Math.min(high, each.wish));
      least = each.place + each.wide * gap;
    }
    let most = high;
    for (const each of [...list].reverse()) {
      each.place = Math.min(most, each.place);
      most = each.place - each.wide * gap;
    }
    for (const each of list)
      each.line.points[each.at] = { [along]: each.place, [main]: item[main] + (side ? item[length] : 0) };
  }
}

/** Only the bends a line needs: none where it goes from one rank to the next, unless a label stands in it. */
function withoutBends(line) {
  const { points } = line;
  if (line.label || points.length < 3) return points;
  return points.length <= 4 ? [points[0], points[points.length - 1]] : points;
}

/** What goes on to the next step of an open scan: from the body's result, around the outside, to where it enters. */
function addCarry(carry, itemOf, items, view, out) {
  const [source, target] = [itemOf.get(carry.from.id), itemOf.get(carry.to.id)];
  const [from, to] = [items.get(source.id), items.get(target.id)];
  const body = framesAround(carry.to.item).find((box) => box.kind === "scan");
  const frame = body && items.get(body.item.id);
  if (!from || !to || !frame || frame.kind !== "frame" || from === to) return;
  const lane = 13 + 12 * (out.lanes.get(frame.id) || 0);
  out.lanes.set(frame.id, (out.lanes.get(frame.id) || 0) + 1);
  const points =
    view.direction === "LR"
      ? [
          [from.x + from.width / 2, from.y + from.height],
          [from.x + from.width / 2, frame.y + frame.height - lane],
          [to.x - 16, frame.y + frame.height - lane],
          [to.x - 16, to.y + to.height - 14],
          [to.x, to.y + to.height - 14],
        ]
      : [
          [from.x, from.y + from.height / 2],
          [frame.x + lane, from.y + from.height / 2],
          [frame.x + lane, to.y - 16],
          [to.x + 14, to.y - 16],
          [to.x + 14, to.y],
        ];
  out.edges.push({
    id: `carry${carry.id}`,
    edges: [carry],
    points: points.map(([x, y]) => ({ x, y })),
    carry: true,
    label: null,
    from: from.id,
    to: to.id,
    depth: frame.depth + 1,
  });
}

/** The lines between a frame's ports and what lies in it. */
function flattenStubs(view, placed, x0, y0, depth, frames, out) {
  const across = view.direction === "LR";
  for (const { side, port, child, points } of placed.stubs) {
    const at = placed.ports[side].get(port.key);
    const border = across
      ? { x: x0 + (side === "in" ? 0 : placed.width), y: y0 + at }
      : { x: x0 + at, y: y0 + (side === "in" ? 0 : placed.height) };
    const moved = points.map(({ x, y }) => ({ x: x + x0, y: y + y0 }));
    const inner = end(view, frames.get(child.id), side, port.key, placed.nested.get(child.id));
    out.edges.push({
      id: `${placed.box.id}:${side}:${port.key}:${child.id}`,
      edges: port.ends.get(child.id).edges,
      ...(side === "in" ? attach([...moved], border, inner) : attach([...moved], inner, border)),
      label: null,
      port: { side, name: port.name, at: border, first: [...port.ends.keys()][0] === child.id },
      from: side === "in" ? placed.box.id : child.id,
      to: side === "in" ? child.id : placed.box.id,
      depth,
    });
  }
}
