// The camera: which part of the sheet is in the window, and how pointer, wheel and fingers move it.

const ZOOM = { least: 0.02, most: 4 };
const READABLE = 0.5; // the scale at which a sheet is read,
const LEGIBLE = 0.38; // and the smallest at which its text can be made out

/** A window on a sheet. Subclasses have `layout`, `items`, `direction` and `on`, and draw on `refresh`. */
class Camera {
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

  /** Show the whole sheet; with `readable`, a sheet that is too large to read is shown from its start. */
  fit(animate = true, readable = false) {
    const { width, height } = this.layout;
    let camera = this.cameraFor({ x: 0, y: 0, width, height }, clamp(this.room().width / 1050, 1.35, 2.4));
    if (readable && camera.k < 0.55) camera = this.beginning({ x: 0, y: 0, width, height });
    this.goTo(camera, animate);
  }

  /** The start of a sheet or a frame, at a scale that can be read. */
  beginning({ x, y, width, height }) {
    const room = this.room();
    const across = this.direction === "LR";
    const k = clamp(across ? (room.height - 48) / height : (room.width - 24) / width, 0.55, 0.9);
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

  /** Bring an item to the centre, at a scale that can be read. */
  centre(id, animate = true) {
    const item = this.items.get(id);
    if (!item) return;
    if (item.kind !== "frame") return this.goTo(this.cameraFor(item, clamp(this.camera.k, 0.85, 1.4)), animate);
    const camera = this.cameraFor(item, clamp(this.camera.k, 0.9, 1.1));
    this.goTo(camera.k < 0.45 ? this.beginning(item) : camera, animate);
  }

  /**
   * Move, and zoom out if needed, until the first item is in view, with as many of the others as can be seen with it at a
   * scale that can be read. The scale returns to the one the reader chose as soon as it can.
   */
  keepInView(...ids) {
    const [first, ...others] = ids.map((id) => this.items.get(id)).filter(Boolean);
    if (!first) return;
    const room = this.room();
    if (first.kind === "frame") return this.keepFrameInView(first, room);
    const margin = Math.min(24, room.width / 20);
    const inside = { width: room.width - 2 * margin, height: room.height - 2 * margin };
    const scaleOf = (box) => Math.min(inside.width / box.width, inside.height / box.height);
    const wish = this.chosen >= LEGIBLE ? this.chosen : READABLE;
    const least = Math.min(wish, LEGIBLE);
    let box = unionOf([first]);
    const distance = (item) => Math.hypot(item.x - first.x, item.y - first.y);
    for (const other of others.sort((a, b) => distance(a) - distance(b))) {
      const wider = unionOf([box, other]);
      if (scaleOf(wider) >= least) box = wider;
    }
    const k = Math.min(wish, Math.max(scaleOf(box), least));
    const { x, y } = this.camera;
    const centre = {
      x: (room.x + room.width / 2 - x) / this.camera.k,
      y: (room.y + room.height / 2 - y) / this.camera.k,
    };
    const along = (axis, size) => {
      const start = room[axis] + room[size] / 2 - centre[axis] * k; // at the new scale, with the same centre
      const low = room[axis] + margin - box[axis] * k;
      const high = low + inside[size] - box[size] * k;
      return low <= start && start <= high ? start : (low + high) / 2;
    };
    const camera = { k, x: along("x", "width"), y: along("y", "height") };
    if (Math.abs(camera.x - x) + Math.abs(camera.y - y) > 0.5 || k !== this.camera.k)
      this.goTo(camera, true, false);
  }

  keepFrameInView(item, room) {
    const { x, y, k } = this.camera;
    const [left, top] = [item.x * k + x, item.y * k + y];
    const isSeen =
      left < room.x + room.width &&
      left + item.width * k > room.x &&
      top < room.y + room.height &&
      top + item.height * k > room.y;
    if (!isSeen) this.centre(item.id);
  }

  /** Move the camera; `chosen`: whether the reader chose this scale. */
  goTo(camera, animate, chosen = true) {
    cancelAnimationFrame(this.flight);
    if (chosen) this.chosen = camera.k;
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
      // Positions follow the scale, so that the target is reached along a straight line on the sheet.
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
      this.chosen = k;
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

  // --- pointer and touch ------------------------------------------------------------------------------

  listen() {
    const { svg } = this;
    const fingers = new Map();
    let moved = 0;
    let pressed = null; // what was under the finger: a captured pointer does not tell
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

/** The smallest rectangle around rectangles. */
function unionOf(boxes) {
  const [left, top] = ["x", "y"].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const right = Math.max(...boxes.map((box) => box.x + box.width));
  const bottom = Math.max(...boxes.map((box) => box.y + box.height));
  return { x: left, y: top, width: right - left, height: bottom - top };
}

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const stillPlease = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
