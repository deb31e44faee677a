// The sheet: the layout, and the part of it that is in the document. Only what is in or near the window is there; at a
// small scale everything is a few paths.

const FAR = 0.27; // below this scale cards are drawn as plain coloured rectangles
const FEW_LABELS = 40; // edges are labelled if at most this many are visible,
const SMALL = 150; // in graphs of at most this many nodes
const TURNED = 400; // both directions are tried for at most this many visible items

class Sheet extends Camera {
  /** `svg` fills the window; `state` is the page's state; `on` has the callbacks: select, toggle, moved, laidOut, insets. */
  constructor(svg, state, on) {
    super();
    Object.assign(this, { svg, state, on });
    this.camera = { x: 0, y: 0, k: 1 };
    this.chosen = 1; // the scale the reader chose
    this.cache = new Map();
    this.shown = new Map(); // id -> {group, item or edge}
    this.world = svg.querySelector("#world");
    this.layers = Object.fromEntries(
      ["frames", "far", "edges", "heads", "cards"].map((name) => [name, svg.querySelector(`#${name}`)]),
    );
    this.frame = 0;
    this.listen();
  }

  // --- layout -----------------------------------------------------------------------------------------

  /** Lay out what is open now. `anchor`: the id of an item that stays at its position on the screen. */
  relayout(anchor) {
    const before = anchor && this.placeOf(anchor);
    const { model, open } = this.state;
    const direction = this.state.direction === "auto" ? this.bestDirection() : this.state.direction;
    this.layout = this.layoutIn(direction, this.wantsLabels());
    this.direction = direction;
    this.items = new Map(this.layout.items.map((item) => [item.id, item]));
    this.lines = new Map(this.layout.edges.map((line) => [line.id, line]));
    for (const line of this.layout.edges) line.bounds = boundsOf(line.points);
    this.clear();
    const after = anchor && this.placeOf(anchor);
    if (before && after) {
      this.camera.x += (before.x - after.x) * this.camera.k;
      this.camera.y += (before.y - after.y) * this.camera.k;
    }
    this.on.laidOut(this.layout, open, model);
    this.refresh();
  }

  layoutIn(direction, labels) {
    const { model, open } = this.state;
    return layout({
      model,
      open,
      direction,
      cache: this.cache,
      measure: (child) => measureChild(model, child),
      headWidth: (box) => grid(measureText(frameTitle(box), "title") + 62),
      label: (edges) => (labels ? chipSize(chipLines(model, edges)) : null),
    });
  }

  wantsLabels() {
    if (this.state.labels !== "auto") return this.state.labels === "on";
    if (this.state.model.order.length > SMALL) return false;
    const edges = this.visibleChildren().flatMap((child) => (isGroup(child) ? [] : child.node.operands));
    return edges.filter((edge) => edge.local).length <= FEW_LABELS;
  }

  /** The children that are drawn as cards. */
  visibleChildren() {
    return [...leaves(this.state.model.root, (child) => child.box && this.state.open.has(child.box.id))];
  }

  /**
   * Down or across: the direction that shows the graph at the larger scale, or, if it cannot be read as a whole, the one
   * that shows more of it at a scale that can be read.
   */
  bestDirection() {
    if (this.visibleChildren().length > TURNED) return "TB";
    const labels = this.wantsLabels();
    const room = this.room();
    const [down, across] = ["TB", "LR"].map((direction) => {
      const { width, height } = this.layoutIn(direction, labels);
      const part = (scale) =>
        Math.min(1, room.width / (width * scale)) * Math.min(1, room.height / (height * scale));
      return { scale: Math.min((room.width - 56) / width, (room.height - 56) / height, 1), part: part(0.7) };
    });
    if (Math.max(down.scale, across.scale) >= READABLE) return across.scale >= down.scale * 0.92 ? "LR" : "TB";
    return across.part > down.part ? "LR" : "TB";
  }

  placeOf(id) {
    const item = this.items && this.items.get(id);
    return item ? { x: item.x, y: item.y } : null;
  }

  // --- what is in the document ------------------------------------------------------------------------

  clear() {
    for (const entry of this.shown.values()) takeOut(entry);
    this.shown.clear();
    this.layers.far.replaceChildren();
    this.farDrawn = null;
    this.window = null;
  }

  /** Redraw everything in view, after a change of the step, a slider or the theme. */
  redraw() {
    this.farDrawn = null;
    for (const [id, entry] of this.shown) this.fillGroup(id, entry);
    if (this.isFar()) this.drawFar();
  }

  refresh() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  isFar() {
    return this.camera.k < FAR;
  }

  draw() {
    if (!this.layout) return;
    const { x, y, k } = this.camera;
    this.world.setAttribute("transform", `matrix(${k} 0 0 ${k} ${x} ${y})`);
    this.layers.heads.style.fontSize = `${12 / k}px`; // of names that keep their size on the screen
    const far = this.isFar();
    this.svg.classList.toggle("is-far", far);
    this.svg.classList.toggle("is-middle", !far && k < 0.5);
    if (far !== this.wasFar) this.window = null;
    this.wasFar = far;
    if (far && !this.farDrawn) this.drawFar();
    const { width, height } = this.svg.getBoundingClientRect();
    const sight = { left: -x / k, top: -y / k, right: (width - x) / k, bottom: (height - y) / k };
    if (!this.window || !within(sight, this.window)) this.fillWindow(sight, far);
    this.on.moved(this.camera, sight);
    if (!this.drawnOnce) performance.mark("jaxprop: first picture");
    this.drawnOnce = true;
  }

  fillWindow(sight, far) {
    const mx = (sight.right - sight.left) * 0.35;
    const my = (sight.bottom - sight.top) * 0.35;
    this.window = {
      left: sight.left - mx,
      top: sight.top - my,
      right: sight.right + mx,
      bottom: sight.bottom + my,
    };
    const wanted = new Set();
    for (const item of this.layout.items) {
      if (far && item.kind !== "frame") continue;
      if (overlap(item.x, item.y, item.x + item.width, item.y + item.height, this.window))
        wanted.add(`i${item.id}`);
    }
    if (!far)
      for (const line of this.layout.edges)
        if (overlap(line.bounds.left, line.bounds.top, line.bounds.right, line.bounds.bottom, this.window))
          wanted.add(`e${line.id}`);
    for (const [id, entry] of this.shown) {
      if (wanted.has(id)) continue;
      takeOut(entry);
      this.shown.delete(id);
    }
    for (const id of wanted) if (!this.shown.has(id)) this.add(id);
  }

  add(id) {
    const isItem = id[0] === "i";
    const thing = isItem ? this.items.get(id.slice(1)) : this.lines.get(id.slice(1));
    const place = isItem ? { transform: `translate(${round1(thing.x)} ${round1(thing.y)})` } : {};
    const group = s("g", place);
    const head =
      isItem && thing.kind === "frame" ? s("g", { ...place, class: "item head", "data-id": thing.id }) : null;
    const entry = { group, head, thing, isItem };
    this.shown.set(id, entry);
    this.fillGroup(id, entry);
    if (!isItem) this.layers.edges.append(group);
    else if (!head) this.layers.cards.append(group);
    else {
      this.insertFrame(group, thing);
      this.layers.heads.append(head);
    }
  }

  /** Frames are in the order of their depth, inner ones above outer ones. */
  insertFrame(group, item) {
    group.dataset.depth = item.depth;
    const after = [...this.layers.frames.children].find((other) => Number(other.dataset.depth) > item.depth);
    this.layers.frames.insertBefore(group, after || null);
  }

  fillGroup(id, { group, head, thing, isItem }) {
    if (!isItem) return this.fillLine(group, thing);
    const { state } = this;
    const child = thing.child;
    const look = state.look(thing);
    const names = [
      "item",
      thing.kind,
      look.focus && "focus",
      state.selected === thing.id && "selected",
      look.dim && "dim",
    ];
    if (thing.kind === "node") {
      drawNode(state.model, group, child.node, look);
      names.push(child.node.kind, !child.node.active && "inactive");
    } else if (thing.kind === "closed") {
      drawClosed(state.model, group, child.box, look);
      names.push(!child.box.active && "inactive");
    } else {
      drawFrame(group, head, child.box, thing);
      names.push(`kind-${child.box.kind}`, thing.depth % 2 && "odd");
    }
    group.setAttribute("class", names.filter(Boolean).join(" "));
    group.dataset.id = thing.id;
    group.setAttribute("role", "button");
    group.setAttribute("tabindex", state.selected === thing.id ? "0" : "-1");
    group.setAttribute("aria-label", state.describe(thing));
    if (child.box) group.setAttribute("aria-expanded", String(thing.kind === "frame"));
    if (state.selected === thing.id) group.setAttribute("aria-current", "true");
    else group.removeAttribute("aria-current");
  }

  fillLine(group, line) {
    const { state } = this;
    const look = state.lookLine(line);
    const active = line.edges.some((edge) => edge.active);
    group.replaceChildren();
    group.setAttribute(
      "class",
      ["edge", active ? "active" : "inactive", look.focus && "focus", look.flow, look.touch && "touch"]
        .filter(Boolean)
        .join(" "),
    );
    const gap = active ? 3.5 : 0;
    const [forward, back] = line.carry
      ? [line.points, laneSideways(line.points, this.direction === "LR" ? -6 : 6).reverse()]
      : [this.aside(line.points, gap), this.aside([...line.points].reverse(), -gap)];
    const path = (points) =>
      line.carry ? corneredPath(shorten(points, 2)) : pathOf(shorten(points, 2), this.direction === "LR");
    const enters = this.items.get(line.to)?.kind !== "frame";
    const leaves = this.items.get(line.from)?.kind !== "frame";
    group.append(
      s("path", {
        class: `forward ${line.carry ? "carry" : ""}`,
        d: path(forward),
        "marker-end": enters ? "url(#tip-forward)" : null,
      }),
    );
    if (active)
      group.append(
        s("path", {
          class: `backward ${line.carry ? "carry" : ""} ${look.backward ? "" : "waiting"}`,
          d: path(back),
          "marker-end": leaves ? "url(#tip-backward)" : null,
        }),
      );
    if (look.reads) this.drawReads(group, line, look.reads);
    if (line.port && line.port.first) this.drawPort(group, line);
    if (line.label && look.local) this.drawChip(group, line, look);
  }

  aside(points, distance) {
    return sideways(points, distance, this.direction === "LR");
  }

  drawReads(group, line, text) {
    const points = this.aside(line.points, -10);
    group.append(
      s("path", {
        class: "reads",
        d: line.carry ? corneredPath(points) : pathOf(points, this.direction === "LR"),
      }),
    );
    if (line.port || line.label || line.carry) return; // the badge of the card has the text
    const at = points[Math.floor(points.length / 2)];
    const other = points[Math.floor(points.length / 2) - 1];
    const [x, y] = [(at.x + other.x) / 2, (at.y + other.y) / 2];
    const width = measureText(text, "chip") + 12;
    group.append(
      s(
        "g",
        { class: "chip read-chip", transform: `translate(${round1(x - width / 2)} ${round1(y - 8)})` },
        s("rect", { width, height: 16, rx: 8 }),
        s("text", { x: 6, y: 12 }, text),
      ),
    );
  }

  drawPort(group, line) {
    const { at, side, name } = line.port;
    const across = this.direction === "LR";
    const text = cut(name, 16);
    group.append(s("circle", { class: "port", cx: round1(at.x), cy: round1(at.y), r: 3 }));
    const outside = side === "in" ? -1 : 1;
    const place = across
      ? { x: at.x + outside * 8, y: at.y - 8, "text-anchor": side === "in" ? "end" : "start" }
      : { x: at.x + 9, y: at.y + (side === "in" ? -6 : 14) };
    group.append(s("text", { class: "port-name", ...place }, text));
  }

  drawChip(group, line, look) {
    const lines = chipLines(this.state.model, line.edges);
    if (!lines.length) return;
    const { x, y, width, height } = line.label;
    const chip = s(
      "g",
      { class: "chip", transform: `translate(${round1(x - width / 2)} ${round1(y - height / 2)})` },
      s("rect", { width, height, rx: 7 }),
    );
    lines.forEach(({ kind, text }, i) => {
      const hidden = kind === "share" && !look.backward;
      chip.append(
        s("text", { class: kind, x: width / 2, y: 14 + 15 * i, "text-anchor": "middle" }, hidden ? "·" : text),
      );
    });
    group.append(chip);
  }

  /** All cards as one path for each colour, all edges as two. */
  drawFar() {
    this.farDrawn = true;
    const { model } = this.state;
    const rects = new Map();
    for (const item of this.layout.items) {
      if (item.kind === "frame") continue;
      const look = this.state.look(item);
      const colour =
        item.kind === "node" ? colourOf(model, cotangentOf(item.child.node)) : boxColour(model, item.child.box);
      const name = look.focus ? "focus" : look.cotangent && colour ? colour : "plain";
      if (!rects.has(name)) rects.set(name, "");
      rects.set(
        name,
        `${rects.get(name)}M${Math.round(item.x)} ${Math.round(item.y)}h${Math.round(item.width)}v${Math.round(item.height)}h-${Math.round(item.width)}z`,
      );
    }
    const lines = ["", ""];
    for (const line of this.layout.edges)
      lines[line.edges.some((edge) => edge.active) ? 1 : 0] += line.carry
        ? corneredPath(line.points)
        : pathOf(line.points, this.direction === "LR");
    this.layers.far.replaceChildren(
      s("path", { class: "far-edge inactive", d: lines[0] }),
      s("path", { class: "far-edge", d: lines[1] }),
      ...[...rects].map(([name, d]) => s("path", { class: `far-card ${name}`, d })),
    );
  }
}

const takeOut = ({ group, head }) => (group.remove(), head && head.remove());
const within = (a, b) => a.left >= b.left && a.top >= b.top && a.right <= b.right && a.bottom <= b.bottom;
const overlap = (left, top, right, bottom, box) =>
  left <= box.right && right >= box.left && top <= box.bottom && bottom >= box.top;

function boundsOf(points) {
  const xs = points.map(({ x }) => x);
  const ys = points.map(({ y }) => y);
  return {
    left: Math.min(...xs) - 12,
    top: Math.min(...ys) - 12,
    right: Math.max(...xs) + 12,
    bottom: Math.max(...ys) + 12,
  };
}
