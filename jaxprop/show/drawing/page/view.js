// The sheet: camera, and what of it is in the document. Only what lies in or near the window is there; seen from
// far off, everything is a few paths.

const FAR = 0.27; // below this scale cards are drawn as plain coloured rectangles
const ZOOM = { least: 0.02, most: 4 };
const FEW_LABELS = 40; // with at most so many edges in sight, local gradients stand on them,
const SMALL = 150; // in graphs of at most so many nodes

class Sheet {
  /** `svg` fills the window; `state` is the page's state; `on` holds what to call: select, toggle, moved. */
  constructor(svg, state, on) {
    Object.assign(this, { svg, state, on });
    this.camera = { x: 0, y: 0, k: 1 };
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

  /** Lay out what is open now. `anchor`: id of an item that is to stay where it is on the screen. */
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
    let count = 0;
    const walk = (box) => {
      for (const child of box.children) {
        if (!child.box) count += child.node.operands.filter((edge) => edge.local).length;
        else if (this.state.open.has(child.box.id)) walk(child.box);
      }
    };
    walk(this.state.model.root);
    return count <= FEW_LABELS;
  }

  /** Across or down, whichever shows a small graph larger; large ones go down. */
  bestDirection() {
    const labels = this.wantsLabels();
    if (!labels || this.state.model.order.length > 200) return "TB";
    const room = this.room();
    const scale = (direction) => {
      const { width, height } = this.layoutIn(direction, labels);
      return Math.min((room.width - 56) / width, (room.height - 56) / height, 1);
    };
    const wide = scale("LR");
    return room.width > room.height && wide > 0.6 && wide >= scale("TB") * 0.92 ? "LR" : "TB";
  }

  placeOf(id) {
    const item = this.items && this.items.get(id);
    return item ? { x: item.x + (item.kind === "frame" ? 0 : 0), y: item.y } : null;
  }

  // --- camera -----------------------------------------------------------------------------------------

  /** The part of the window that no panel covers. */
  room() {
    const { width, height } = this.svg.getBoundingClientRect();
    const inset = this.on.insets();
    return {
      x: inset.left,
      y: inset.top,
      width: Math.max(80, width - inset.left - inset.right),
      height: Math.max(80, height - inset.top - inset.bottom),
    };
  }

  cameraFor(box, most, margin = 28) {
    const room = this.room();
    const k = clamp(
      Math.min((room.width - 2 * margin) / box.width, (room.height - 2 * margin) / box.height),
      ZOOM.least,
      most,
    );
    return {
      k,
      x: room.x + room.width / 2 - (box.x + box.width / 2) * k,
      y: room.y + room.height / 2 - (box.y + box.height / 2) * k,
    };
  }

  /** Show all of it; a sheet much too tall to read is shown from its top. */
  fit(animate = true, readable = false) {
    const { width, height } = this.layout;
    let camera = this.cameraFor({ x: 0, y: 0, width, height }, clamp(this.room().width / 1050, 1.35, 2.4));
    if (readable && camera.k < 0.45) camera = this.beginning({ x: 0, y: 0, width, height });
    this.goTo(camera, animate);
  }

  /** Where reading a sheet or a frame begins, at a size that can be read. */
  beginning({ x, y, width, height }) {
    const room = this.room();
    const across = this.direction === "LR";
    const k = clamp(across ? (room.height - 48) / height : (room.width - 24) / width, 0.4, 0.9);
    const inside = this.layout.items.filter(
      (item) => item.x >= x && item.x < x + width && item.y >= y && item.y < y + height && item.width < width,
    );
    const first = inside.reduce(
      (least, item) => ((across ? item.x < least.x : item.y < least.y) ? item : least),
      inside[0],
    );
    const middle = (along, start, all, size, free) =>
      room[along] + free / 2 - k * (all * k <= free ? start + all / 2 : first[along] + first[size] / 2);
    return across
      ? { k, x: room.x + 24 - x * k, y: middle("y", y, height, "height", room.height) }
      : { k, x: middle("x", x, width, "width", room.width), y: room.y + 24 - y * k };
  }

  /** Bring an item into the middle, zoomed so that it can be read. */
  centre(id, animate = true) {
    const item = this.items.get(id);
    if (!item) return;
    if (item.kind !== "frame") return this.goTo(this.cameraFor(item, clamp(this.camera.k, 0.85, 1.4)), animate);
    const camera = this.cameraFor(item, clamp(this.camera.k, 0.9, 1.1));
    this.goTo(camera.k < 0.45 ? this.beginning(item) : camera, animate);
  }

  /** Move only if the item is out of sight, or too small to read. */
  keepInSight(id) {
    const item = this.items.get(id);
    if (!item) return;
    const room = this.room();
    const { x, y, k } = this.camera;
    const [left, top, right, bottom] = [
      item.x * k + x,
      item.y * k + y,
      (item.x + item.width) * k + x,
      (item.y + item.height) * k + y,
    ];
    const margin = 24;
    const tall = item.kind === "frame";
    if (k < 0.5 && !tall) return this.centre(id);
    if (tall && bottom > room.y && top < room.y + room.height) return;
    let [dx, dy] = [0, 0];
    if (left < room.x + margin || right > room.x + room.width - margin)
      dx = room.x + room.width / 2 - (left + right) / 2;
    if (top < room.y + margin || bottom > room.y + room.height - margin)
      dy = room.y + room.height / 2 - (top + bottom) / 2;
    if (dx || dy) this.goTo({ x: x + dx, y: y + dy, k }, true);
  }

  goTo(camera, animate) {
    cancelAnimationFrame(this.flight);
    if (!animate || stillPlease() || document.hidden) {
      this.camera = camera;
      this.refresh();
      return;
    }
    const start = performance.now();
    const from = this.camera;
    const fly = (now) => {
      const part = Math.min(1, (now - start) / 320);
      const eased = 1 - (1 - part) ** 3;
      const k = from.k * (camera.k / from.k) ** eased;
      // Places move with the scale, so that the target is reached along a straight line on the sheet.
      const mix = camera.k === from.k ? eased : (k - from.k) / (camera.k - from.k);
      this.camera = { k, x: from.x + (camera.x - from.x) * mix, y: from.y + (camera.y - from.y) * mix };
      this.refresh();
      if (part < 1) this.flight = requestAnimationFrame(fly);
    };
    this.flight = requestAnimationFrame(fly);
  }

  zoom(factor, at) {
    const room = this.room();
    const { x, y } = at || { x: room.x + room.width / 2, y: room.y + room.height / 2 };
    const k = clamp(this.camera.k * factor, ZOOM.least, ZOOM.most);
    const ratio = k / this.camera.k;
    const camera = { k, x: x - (x - this.camera.x) * ratio, y: y - (y - this.camera.y) * ratio };
    if (at) {
      cancelAnimationFrame(this.flight);
      this.camera = camera;
      this.refresh();
    } else {
      this.goTo(camera, true);
    }
  }

  pan(dx, dy) {
    cancelAnimationFrame(this.flight);
    this.camera = { ...this.camera, x: this.camera.x + dx, y: this.camera.y + dy };
    this.refresh();
  }

  // --- what is in the document ------------------------------------------------------------------------

  clear() {
    for (const entry of this.shown.values()) takeOut(entry);
    this.shown.clear();
    this.layers.far.replaceChildren();
    this.farDrawn = null;
    this.window = null;
  }

  /** Draw again whatever is in sight: the step, a slider or the theme has changed. */
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

  /** Frames lie in the order of their depth: the inner above the outer. */
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
    if (thing.kind !== "node") group.setAttribute("aria-expanded", String(thing.kind === "frame"));
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
      ? [line.points, laneBeside(line.points, this.direction === "LR" ? -6 : 6).reverse()]
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
    if (look.kept) this.drawKept(group, line, look.kept);
    if (line.port && line.port.first) this.drawPort(group, line);
    if (line.label && look.local) this.drawChip(group, line, look);
  }

  aside(points, distance) {
    return beside(points, distance, this.direction === "LR");
  }

  drawKept(group, line, kept) {
    const points = this.aside(line.points, -10);
    group.append(
      s("path", {
        class: "kept",
        d: line.carry ? corneredPath(points) : pathOf(points, this.direction === "LR"),
      }),
    );
    if (line.port || line.label || line.carry) return; // the badge of the card says how much
    const at = points[Math.floor(points.length / 2)];
    const other = points[Math.floor(points.length / 2) - 1];
    const [x, y] = [(at.x + other.x) / 2, (at.y + other.y) / 2];
    const width = measureText(kept, "chip") + 12;
    group.append(
      s(
        "g",
        { class: "chip kept-chip", transform: `translate(${round1(x - width / 2)} ${round1(y - 8)})` },
        s("rect", { width, height: 16, rx: 8 }),
        s("text", { x: 6, y: 12 }, kept),
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

  // --- hands ------------------------------------------------------------------------------------------

  listen() {
    const { svg } = this;
    const fingers = new Map();
    let moved = 0;
    let pressed = null; // what lay under the finger: a captured pointer no longer tells
    let last = { time: 0, id: null };
    svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const line = event.deltaMode === 1 ? 16 : 1;
        if (event.ctrlKey || event.metaKey || !event.shiftKey)
          this.zoom(
            Math.exp(-clamp(event.deltaY * line, -240, 240) * (event.ctrlKey ? 0.01 : 0.0016)),
            this.pointer(event),
          );
        else this.pan(-(event.deltaX || event.deltaY) * line, 0);
      },
      { passive: false },
    );
    svg.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      fingers.set(event.pointerId, this.pointer(event));
      if (fingers.size === 1) [moved, pressed] = [0, event.target];
      cancelAnimationFrame(this.flight);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!fingers.has(event.pointerId)) return;
      const before = [...fingers.values()];
      const old = fingers.get(event.pointerId);
      const now = this.pointer(event);
      moved += Math.hypot(now.x - old.x, now.y - old.y);
      if (moved > 4 && !svg.hasPointerCapture(event.pointerId)) svg.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, now);
      if (fingers.size === 1) return this.pan(now.x - old.x, now.y - old.y);
      if (fingers.size === 2) this.pinch(before, [...fingers.values()]);
    });
    const lift = (event) => {
      if (!fingers.delete(event.pointerId) || fingers.size || event.type === "pointercancel" || moved > 4)
        return;
      const group = pressed.closest(".item");
      const id = group ? group.dataset.id : null;
      const twice = id !== null && last.id === id && event.timeStamp - last.time < 350;
      last = { time: event.timeStamp, id };
      if (id === null) return this.on.select(null);
      if (pressed.closest("[data-toggle]") || twice) return this.on.toggle(id);
      this.on.select(id);
    };
    svg.addEventListener("pointerup", lift);
    svg.addEventListener("pointercancel", lift);
    new ResizeObserver(() => {
      this.window = null;
      this.refresh();
    }).observe(svg);
  }

  pinch([a, b], [c, d]) {
    const before = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    const after = { x: (c.x + d.x) / 2, y: (c.y + d.y) / 2 };
    this.pan(after.x - before.x, after.y - before.y);
    this.zoom(Math.hypot(c.x - d.x, c.y - d.y) / (Math.hypot(a.x - b.x, a.y - b.y) || 1), after);
  }

  pointer(event) {
    const { left, top } = this.svg.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }
}

const takeOut = ({ group, head }) => (group.remove(), head && head.remove());
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const within = (a, b) => a.left >= b.left && a.top >= b.top && a.right <= b.right && a.bottom <= b.bottom;
const overlap = (left, top, right, bottom, box) =>
  left <= box.right && right >= box.left && top <= box.bottom && bottom >= box.top;
const stillPlease = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

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
