// Where everything stands. Each open box is laid out by itself with dagre, its children at the size they have now,
// from the inside out; a result is kept until a child's size changes. So opening one scope of a large model lays
// out that scope and the few around it, and nothing else. An edge is drawn in the box where its two ends first
// meet; where it crosses a border there is a port.

const GAP = { node: 26, rank: 46, frame: 18, head: 34, port: 26 };
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
  const isOpen = (node) => node.bodies.length > 0 && itemOf.get(node.id) === node.item && open.has(node.item.box.id);
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
  for (let i = 1; i < down.length; i += 1) crossing(inside.get(down[i].box.id).entering, edge, value, down[i - 1]);
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
  const key = `${view.direction}|${view.labels}|${sizes.map((size) => `${size.width}x${size.height}`)}|${[...here.edges.keys()]}`;
  const kept = view.cache.get(box.id);
  const plan = kept && kept.key === key ? kept.plan : runDagre(view, here, sizes, box);
  view.cache.set(box.id, { key, plan });
  return { box, here, nested, ...plan };
}

/** One box by dagre: places of its children (top left corners), of its ports, and the lines between them. */
function runDagre(view, here, sizes, box) {
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  const across = view.direction === "LR";
  const large = here.children.length > MANY;
  graph.setGraph({ rankdir: view.direction, nodesep: GAP.node, ranksep: GAP.rank, edgesep: 18, ranker: large ? "tight-tree" : "network-simplex" });
  graph.setDefaultEdgeLabel(() => ({}));
  here.children.forEach((child, i) => graph.setNode(child.id, { width: sizes[i].width, height: sizes[i].height }));
  for (const [key, line] of here.edges) {
    const label = view.label(line.edges.map(({ edge }) => edge)) || {};
    graph.setEdge(line.top.id, line.bottom.id, { ...label, labelpos: "c", weight: line.edges.some(({ edge }) => edge.active) ? 2 : 1 }, key);
  }
  const framed = Boolean(box.item);
  if (framed) addPorts(graph, here, across);
  dagre.layout(graph);
  return readDagre(view, graph, here, box);
}

function addPorts(graph, here, across) {
  const size = { width: across ? 8 : 40, height: across ? 16 : 8 };
  for (const [side, ports] of [["in", here.entering], ["out", here.leaving]]) {
    if (!ports.size) continue;
    graph.setNode(side, { width: 1, height: 1 });
    for (const port of ports.values()) {
      const id = `${side}:${port.key}`;
      graph.setNode(id, { ...size });
      if (side === "in") graph.setEdge(side, id, { weight: 40, minlen: 1 });
      else graph.setEdge(id, side, { weight: 40, minlen: 1 });
      for (const { child } of port.ends.values()) {
        if (side === "in") graph.setEdge(id, child.id, {}, `${id}>${child.id}`);
        else graph.setEdge(child.id, id, {}, `${child.id}>${id}`);
      }
    }
  }
}

function readDagre(view, graph, here, box) {
  const framed = Boolean(box.item);
  const across = view.direction === "LR";
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  const places = new Map();
  for (const child of here.children) {
    const { x, y, width, height } = graph.node(child.id);
    places.set(child.id, { x: x - width / 2, y: y - height / 2 });
    left = Math.min(left, x - width / 2);
    right = Math.max(right, x + width / 2);
    top = Math.min(top, y - height / 2);
    bottom = Math.max(bottom, y + height / 2);
  }
  const lines = [];
  for (const [key, line] of here.edges) {
    const { points, x, y, width, height } = graph.edge(line.top.id, line.bottom.id, key);
    for (const point of points) {
      left = Math.min(left, point.x - 8);
      right = Math.max(right, point.x + 8);
      top = Math.min(top, point.y);
      bottom = Math.max(bottom, point.y);
    }
    if (width) {
      left = Math.min(left, x - width / 2);
      right = Math.max(right, x + width / 2);
    }
    lines.push({ key, points, label: width ? { x, y, width, height } : null });
  }
  const ports = { in: new Map(), out: new Map() };
  const stubs = [];
  for (const [side, list] of [["in", here.entering], ["out", here.leaving]]) {
    for (const port of list.values()) {
      const id = `${side}:${port.key}`;
      const place = graph.node(id);
      ports[side].set(port.key, across ? place.y : place.x);
      left = Math.min(left, place.x - 20);
      right = Math.max(right, place.x + 20);
      for (const { child } of port.ends.values()) {
        const name = side === "in" ? `${id}>${child.id}` : `${child.id}>${id}`;
        const { points } = side === "in" ? graph.edge(id, child.id, name) : graph.edge(child.id, id, name);
        stubs.push({ side, port, child, points });
      }
    }
  }
  if (!Number.isFinite(left)) [left, top, right, bottom] = [0, 0, 0, 0];
  const pad = framed ? GAP.frame : 0;
  const lanes = box.kind === "scan" ? 10 + 12 * view.model.carries.filter((carry) => carry.to.box === box.id).length : 0;
  const before = { x: pad + (across ? 0 : lanes) + (framed && across && here.entering.size ? GAP.port : 0), y: pad + (framed ? GAP.head : 0) + (framed && !across && here.entering.size ? GAP.port : 0) };
  const after = { x: pad + (framed && across && here.leaving.size ? GAP.port : 0), y: pad + (across ? lanes : 0) + (framed && !across && here.leaving.size ? GAP.port - 8 : 0) };
  const spare = Math.max(0, (framed ? view.headWidth(box) : 0) - (right - left + before.x + after.x));
  before.x += spare / 2;
  after.x += spare / 2;
  const move = ({ x, y }) => ({ x: x - left + before.x, y: y - top + before.y });
  const shiftPort = (at) => at - (across ? top - before.y : left - before.x);
  return {
    width: right - left + before.x + after.x,
    height: bottom - top + before.y + after.y,
    places: new Map([...places].map(([id, place]) => [id, move(place)])),
    lines: lines.map((line) => ({ ...line, points: line.points.map(move), label: line.label && { ...line.label, ...move(line.label) } })),
    ports: { in: new Map([...ports.in].map(([k, at]) => [k, shiftPort(at)])), out: new Map([...ports.out].map(([k, at]) => [k, shiftPort(at)])) },
    stubs: stubs.map((stub) => ({ ...stub, points: stub.points.map(move) })),
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
        ...attach(points, end(view, frames.get(top.id), "out", group.value, placed.nested.get(top.id)), end(view, frames.get(bottom.id), "in", group.value, placed.nested.get(bottom.id))),
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
  if (!placed.nested.has(top.id) && !placed.nested.has(bottom.id)) return [{ key: "", value: null, edges: edges.map(({ edge }) => edge) }];
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
    for (const [which, id, at, next, side] of [[0, line.from, 0, 1, 1], [1, line.to, count - 1, count - 2, 0]]) {
      const item = items.get(id);
      if (line.fixed[which] || !item) continue;
      const key = `${id}|${side}`;
      if (!ends.has(key)) ends.set(key, { item, side, list: [] });
      const other = items.get(which ? line.from : line.to);
      const far = line.fixed[1 - which] || !other ? line.points[at ? 0 : count - 1][along] : other[along] + other[size] / 2;
      ends.get(key).list.push({ line, at, wish: direct ? far : line.points[next][along], wide: line.edges.some((edge) => edge.active) ? 22 : 14 });
    }
  }
  for (const { item, side, list } of ends.values()) {
    list.sort((a, b) => a.wish - b.wish);
    const margin = Math.min(18, item[size] / 3);
    const [low, high] = [item[along] + margin, item[along] + item[size] - margin];
    const gap = Math.min(1, (high - low) / Math.max(1, list.slice(1).reduce((sum, each) => sum + each.wide, 0)));
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
    for (const each of list) each.line.points[each.at] = { [along]: each.place, [main]: item[main] + (side ? item[length] : 0) };
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
  const points = view.direction === "LR"
    ? [[from.x + from.width / 2, from.y + from.height], [from.x + from.width / 2, frame.y + frame.height - lane], [to.x - 16, frame.y + frame.height - lane], [to.x - 16, to.y + to.height - 14], [to.x, to.y + to.height - 14]]
    : [[from.x, from.y + from.height / 2], [frame.x + lane, from.y + from.height / 2], [frame.x + lane, to.y - 16], [to.x + 14, to.y - 16], [to.x + 14, to.y]];
  out.edges.push({ id: `carry${carry.id}`, edges: [carry], points: points.map(([x, y]) => ({ x, y })), carry: true, label: null, from: from.id, to: to.id, depth: frame.depth + 1 });
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
