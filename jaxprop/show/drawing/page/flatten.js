// From boxes to the whole sheet: the layouts of all open boxes in absolute coordinates, and how edges end at cards.

function flattenBox(view, placed, x0, y0, depth, out) {
  const { here } = placed;
  const frames = new Map(); // child id -> its item, in absolute coordinates
  for (const child of here.children) {
    const at = placed.places.get(child.id);
    const size = placed.nested.get(child.id) || view.measure(child);
    const item = {
      id: child.id,
      child,
      kind: placed.nested.has(child.id) ? "frame" : isGroup(child) ? "closed" : "node",
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

/** Edges that share a line, apart if a frame has a port for each of their values. */
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

/** Where a line ends at a frame: its port; null at a card, whose border dagre has found. */
function end(view, item, side, value, nested) {
  if (!nested || value === null || !nested.ports[side].has(value)) return null;
  const at = nested.ports[side].get(value);
  if (view.direction === "LR") return { x: side === "in" ? item.x : item.x + item.width, y: item.y + at };
  return { x: item.x + at, y: side === "in" ? item.y : item.y + item.height };
}

/** Points with their ends moved to ports; `fixed` tells which ends have one. */
function attach(points, first, last) {
  const result = [...points];
  if (first) result[0] = first;
  if (last) result[result.length - 1] = last;
  return { points: result, fixed: [Boolean(first), Boolean(last)] };
}

/**
 * Spread the ends of lines along the sides of their cards, straight if possible; dagre points them all at the centre.
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

/** Only the bends a line needs: none between neighbouring ranks, unless it has a label. */
function withoutBends(line) {
  const { points } = line;
  if (line.label || points.length < 3) return points;
  return points.length <= 4 ? [points[0], points[points.length - 1]] : points;
}

/** The carry of an open scan: from the body's result, around the body, to the input it becomes. */
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

/** The lines between a frame's ports and its children. */
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
