// The page: its state, its controls, its keys. `#embed`, `#theme=dark`, `#step=3`, `#node=h`, `#open=all`,
// `#direction=LR` in the address choose how it opens; several are joined by `&`.

const OPEN_UP_TO = 60; // a graph of so few operations opens whole
const SPEEDS = [0.5, 1, 2, 4];

class Page {
  constructor(scene) {
    this.model = readScene(scene);
    this.open = new Set();
    this.selected = null;
    this.kept = false;
    this.labels = "auto";
    this.direction = "auto";
    this.children = new Map();
    for (const box of this.model.boxes.values()) for (const child of box.children) this.children.set(child.id, child);
    this.residuals = keptOnEdges(this.model);
    this.player = new Player(() => this.played());
  }

  start(hash) {
    const wish = new URLSearchParams(hash.replace(/^#/, ""));
    document.body.classList.toggle("embed", wish.has("embed"));
    this.setTheme(wish.get("theme"));
    if (["LR", "TB"].includes(wish.get("direction"))) this.direction = wish.get("direction");
    this.openFirst(wish.get("open"));
    document.title = this.model.lossName;
    this.buildBar();
    this.buildZoom();
    this.buildLegend();
    this.buildPlayer();
    this.buildHelp();
    setUpSearch(this);
    const call = { select: (id) => this.select(id), toggle: (id) => this.toggle(id), moved: () => this.placeSliders(), laidOut: () => this.laidOut(), insets: () => this.insets() };
    this.sheet = new Sheet(document.getElementById("sheet"), this, call);
    this.sheet.relayout();
    if (wish.has("step")) this.player.go(Number(wish.get("step")) || 0);
    this.sheet.fit(false, true);
    if (wish.has("node") && this.model.order.some((node) => node.name === wish.get("node"))) this.reveal(this.model.order.find((node) => node.name === wish.get("node")), false);
    this.openLegend();
    this.played();
    document.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.themeChosen || this.setTheme(null));
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
    for (let box = model.root; box.children.filter((child) => child.box).length === 1 && box.children.length <= 6; ) {
      box = box.children.find((child) => child.box).box;
      this.open.add(box.id);
    }
  }

  childOf(id) {
    return this.children.get(id);
  }

  laidOut() {
    this.player.load(writeScript(this.model, this.open));
    this.buildSliders();
    if (this.actButtons) this.showPlayer();
  }

  // --- how things look at this step -------------------------------------------------------------------

  look(item) {
    const { script, at, step } = this.player;
    const revealed = (map) => (map.get(item.id) ?? -1) <= at;
    const focus = Boolean(step) && (step.item === item.id || Boolean(step.items && step.items.includes(item.id)));
    const box = item.child.box;
    return {
      focus: focus && step.act !== "done",
      value: at === script.steps.length - 1 || revealed(script.value),
      cotangent: at === script.steps.length - 1 || (script.cotangent.has(item.id) && revealed(script.cotangent)),
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
    const backward = at === end || (script.cotangent.get(source.id) ?? script.cotangent.get(line.from) ?? Infinity) <= at;
    const local = at === end || (script.local.get(target.id) ?? Infinity) <= at || step.act === "backward";
    const act = step ? step.act : "";
    const focus = (isAt(target) && (act === "forward" || act === "local")) || (isAt(source) && act === "backward");
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
    const size = [...new Map(found.map((residual) => [residual.value, residual.bytes])).values()].reduce((a, b) => a + b, 0);
    return found.every((residual) => residual.recomputed) ? "computed again" : bytes(size);
  }

  describe(item) {
    const child = item.child;
    if (child.box) return `${child.box.name || child.box.kind}, ${boxWords(child.box)}, ${item.kind === "frame" ? "open" : "closed"}`;
    const { node } = child;
    const { value: seen, cotangent: back } = this.look(item);
    const value = seen && valueOf(node);
    const cotangent = back && cotangentOf(node);
    return [node.name, KIND_WORDS[node.kind], expressionOf(node), typeOf(node), value && `value ${number(value.text)}`, cotangent && `cotangent ${number(cotangent.text)}`, node.active ? "" : "no gradient"].filter(Boolean).join(", ");
  }

  // --- doing ------------------------------------------------------------------------------------------

  select(id, show = true) {
    if (this.selected === id && id !== null) id = show ? id : null;
    this.selected = id;
    if (show || id === null) showDetail(this, id);
    this.sheet.redraw();
    if (!id) return;
    this.sheet.keepInSight(id);
    this.say(this.describe(this.sheet.items.get(id)));
  }

  toggle(id) {
    const child = this.childOf(id);
    if (!child) return;
    if (!child.box) return this.select(id);
    const { box } = child;
    if (this.open.has(box.id)) this.open.delete(box.id);
    else this.open.add(box.id);
    this.selected = id;
    this.sheet.relayout(id);
    if (!document.getElementById("detail").hidden) showDetail(this, id);
    this.sheet.keepInSight(id);
    this.say(`${box.name || box.kind} ${this.open.has(box.id) ? "open" : "closed"}`);
  }

  openAll(isOpen) {
    const boxes = [...this.model.boxes.values()].filter((box) => box.item);
    if (isOpen) for (const box of boxes) this.open.add(box.id);
    else this.open.clear();
    if (!isOpen) this.selected = null;
    this.sheet.relayout();
    this.sheet.fit(true, !isOpen);
    this.say(isOpen ? "all boxes open" : "all boxes closed");
  }

  /** Open what lies around a node, select it and bring it into the middle. */
  reveal(node, animate = true) {
    this.revealItem(node.item, animate);
  }

  revealBox(box) {
    this.revealItem(box.item, true);
  }

  revealItem(item, animate) {
    const closed = framesAround(item).filter((box) => !this.open.has(box.id));
    for (const box of closed) this.open.add(box.id);
    if (closed.length) this.sheet.relayout();
    this.select(item.id);
    this.sheet.centre(item.id, animate);
    if (!this.legendChosen) document.querySelector("#legend details").open = false;
  }

  setStep(box, step) {
    box.step = step;
    this.sheet.redraw();
    this.showSteps();
    if (this.selected) {
      const focused = document.activeElement && document.activeElement.closest("#detail") ? document.activeElement.dataset.box : null;
      showDetail(this, document.getElementById("detail").hidden ? null : this.selected);
      if (focused) document.querySelector(`#detail [data-box="${CSS.escape(focused)}"]`)?.focus();
    }
    this.sayStep();
  }

  /** The player has moved. */
  played() {
    const { step } = this.player;
    for (const [id, at] of Object.entries((step && step.sets) || {})) this.model.boxes.get(id).step = at;
    this.sheet.redraw();
    this.showSteps();
    this.showPlayer();
    this.sayStep();
    if (step && step.item) this.sheet.keepInSight(step.item);
  }

  setTheme(theme) {
    this.themeChosen = theme === "dark" || theme === "light";
    const dark = this.themeChosen ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    if (this.sheet) this.sheet.redraw();
    if (this.selected) showDetail(this, document.getElementById("detail").hidden ? null : this.selected);
  }

  say(text) {
    document.getElementById("said").textContent = text;
  }

  // --- building ---------------------------------------------------------------------------------------

  tool(label, path, onclick, more = {}) {
    return h("button", { class: `tool ${more.class || ""}`, type: "button", "aria-label": label, title: more.title || label, onclick, ...more.attributes }, icon(path));
  }

  buildBar() {
    const { scene } = this.model;
    const value = scene.value ? `= ${number(scene.value)}` : "";
    const parameters = this.model.order.filter((node) => node.kind === "parameter").map((node) => node.name);
    const source = this.model.loss && this.model.loss.source;
    const words = [value, parameters.length && parameters.length <= 4 ? `by ${parameters.join(", ")}` : parameters.length ? `by ${plural(parameters.length, "parameter")}` : "", plural(this.model.order.length, "node"), source ? `${source.file}:${source.line}` : ""].filter(Boolean).join(" · ");
    document.getElementById("title").append(h("span", { class: "word" }, this.model.lossName), h("span", { class: "of" }, words));
    const kept = scene.kept_bytes ? ` (${bytes(scene.kept_bytes)} in all)` : "";
    const flip = (event, isOn) => event.currentTarget.setAttribute("aria-pressed", String(isOn));
    const tools = [
      this.tool("What the backward pass keeps", ICONS.kept, (event) => ((this.kept = !this.kept), flip(event, this.kept), this.sheet.redraw()), { title: `What the backward pass keeps${kept} (R)`, attributes: { "aria-pressed": "false", id: "kept", hidden: !(scene.residuals || []).length } }),
      this.tool("Turn the graph", ICONS.turn, () => this.turn(), { title: "Down or across (T)", class: "only-full" }),
      this.tool("Light or dark", ICONS.theme, () => this.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"), { title: "Light or dark (D)" }),
      this.tool("Help", ICONS.help, () => this.showHelp(), { title: "Help (?)", class: "only-full" }),
    ];
    document.getElementById("tools").append(...tools);
  }

  turn() {
    this.direction = this.sheet.direction === "TB" ? "LR" : "TB";
    this.sheet.relayout();
    this.sheet.fit(true, true);
  }

  buildZoom() {
    const tools = [
      this.tool("Zoom in", ICONS.plus, () => this.sheet.zoom(1.4), { title: "Zoom in (+)" }),
      this.tool("Zoom out", ICONS.minus, () => this.sheet.zoom(1 / 1.4), { title: "Zoom out (-)" }),
      this.tool("Show all", ICONS.fit, () => this.sheet.fit(), { title: "Show all (F)" }),
    ];
    document.getElementById("zoom").append(...tools);
  }

  buildLegend() {
    const { scale, scene } = this.model;
    const key = (...shapes) => s("svg", { class: "key", viewBox: "0 0 28 14", "aria-hidden": "true" }, shapes);
    const rows = [
      [key(s("path", { class: "forward", d: "M1 7h21" }), s("path", { class: "forward-tip", d: "M21 3.5L27 7l-6 3.5z" })), "forward: values"],
      [key(s("path", { class: "backward", d: "M27 7H6" }), s("path", { class: "backward-tip", d: "M7 3.5L1 7l6 3.5z" })), "backward: cotangents"],
      [key(s("rect", { class: "given", x: 1, y: 1, width: 26, height: 12, rx: 6 })), "parameter"],
      [key(s("rect", { class: "off", x: 1, y: 1, width: 26, height: 12, rx: 6 })), "no gradient goes there"],
    ];
    if ((scene.residuals || []).length) rows.push([key(s("path", { class: "kept", d: "M2 7h25" })), "kept for the backward pass"]);
    const notFinite = this.notFinite();
    if (notFinite.length) rows.push([key(s("rect", { class: "bad", x: 1, y: 1, width: 26, height: 12, rx: 3 })), h("button", { class: "link", title: "Show the next one (N)", onclick: () => this.nextNotFinite() }, `NaN or infinite: ${notFinite.length}`)]);
    const ramp = scale ? [h("div", {}, "norm of the cotangent"), h("div", { class: "ramp", "aria-hidden": "true" }, Array.from({ length: BINS }, (_, i) => h("span", { class: `swatch c${i}` }))), h("div", { class: "ends" }, h("span", {}, number(10 ** scale[0], 2)), h("span", {}, number(10 ** scale[1], 2)))] : [];
    document.getElementById("legend").append(h("details", {}, h("summary", { onclick: () => (this.legendChosen = true) }, "Legend"), ramp, h("dl", {}, rows.flatMap(([picture, text]) => [h("dt", {}, picture), h("dd", {}, text)])), (scene.notes || []).map((note) => h("p", {}, note))));
  }

  /** Nodes with NaN or infinite numbers: those with such cotangents first, then in program order. */
  notFinite() {
    const has = (node, part) => node.outputs.some((output) => bad(output[part]));
    const { order } = this.model;
    return [...order.filter((node) => has(node, "cotangent")), ...order.filter((node) => !has(node, "cotangent") && has(node, "value"))];
  }

  nextNotFinite() {
    const nodes = this.notFinite();
    if (!nodes.length) return;
    const at = nodes.findIndex((node) => node.item.id === this.selected);
    this.reveal(nodes[(at + 1) % nodes.length]);
  }

  /** The legend lies open where it covers nothing. */
  openLegend() {
    const legend = document.querySelector("#legend details");
    if (this.legendChosen) return;
    legend.open = true;
    const { width, height } = document.getElementById("legend").getBoundingClientRect();
    const stage = document.getElementById("stage").getBoundingClientRect();
    const { x, y, k } = this.sheet.camera;
    const covered = this.sheet.layout.items.some((item) => item.x * k + x < width + 20 && (item.x + item.width) * k + x > 10 && item.y * k + y < height + 20 && (item.y + item.height) * k + y > 10);
    legend.open = !covered && height < stage.height * 0.8 && width < stage.width * 0.4;
  }

  buildPlayer() {
    const { player } = this;
    const go = (by) => () => this.stepBy(by);
    this.playButton = this.tool("Play", ICONS.play, () => player.toggle(), { title: "Play or pause (Space)", attributes: { id: "play" } });
    this.range = h("input", { type: "range", min: 0, max: 1, value: 0, "aria-label": "Step of the play", oninput: (event) => (player.playing && player.pause(), player.go(Number(event.target.value))) });
    this.actButtons = ACTS.map(([act, name, title]) => h("button", { type: "button", title, "aria-label": title, onclick: () => (player.playing && player.pause(), player.go(player.script.starts[act])) }, name));
    this.count = h("span", { id: "count" });
    const speed = h("select", { id: "speed", "aria-label": "Speed", class: "ends-only", onchange: (event) => (player.speed = Number(event.target.value)) }, SPEEDS.map((x) => h("option", { value: x, selected: x === 1 }, `${x}×`)));
    this.line = h("div", { id: "line" });
    const controls = h("div", { id: "controls" },
      this.tool("To the beginning", ICONS.first, go(-Infinity), { title: "To the beginning (Home)", class: "ends-only" }),
      this.tool("Back", ICONS.back, go(-1), { title: "Back (←)" }),
      this.playButton,
      this.tool("Step", ICONS.next, go(1), { title: "Step (→)" }),
      this.tool("To the end", ICONS.last, go(Infinity), { title: "To the end (End)", class: "ends-only" }),
      h("div", { id: "track" }, h("div", { id: "acts" }, this.actButtons), this.range),
      this.count,
      speed,
    );
    document.getElementById("player").append(h("div", { id: "dock" }, this.line, controls));
  }

  stepBy(by) {
    const { player } = this;
    if (player.playing) player.pause();
    player.go(clamp(player.at + by, 0, player.script.steps.length - 1));
  }

  showPlayer() {
    const { player, range } = this;
    const { step, script } = player;
    if (!step) return;
    const last = script.steps.length - 1;
    range.max = last;
    range.value = player.at;
    this.count.textContent = `${player.at + 1} / ${last + 1}`;
    this.playButton.replaceChildren(icon(player.playing ? ICONS.pause : ICONS.play));
    this.playButton.firstChild.classList.toggle("solid", !player.playing);
    this.playButton.setAttribute("aria-label", player.playing ? "Pause" : "Play");
    ACTS.forEach(([act], i) => {
      const starts = ACTS.map(([name]) => script.starts[name]).filter((at) => at !== undefined);
      const next = starts.filter((at) => at > script.starts[act])[0] ?? last + 1;
      this.actButtons[i].hidden = script.starts[act] === next || !script.steps.some((other) => other.act === act);
      this.actButtons[i].style.flexGrow = Math.max(0.12, (next - script.starts[act]) / (last + 1));
      if (step.act === act) this.actButtons[i].setAttribute("aria-current", "step");
      else this.actButtons[i].removeAttribute("aria-current");
    });
    const said = narrate(this.model, step);
    this.spoken = said;
    this.line.dataset.act = step.act;
    this.line.replaceChildren(h("div", { class: "act" }, said.title), h("div", { class: `formulas ${said.lines.length > 1 ? "small" : ""}` }, said.lines.map((each) => h("div", { class: "said", "data-text": each.text }, each.parts.filter(Boolean)))), h("div", { class: "note" }, said.note || ""));
    range.setAttribute("aria-valuetext", `${said.title}, ${said.lines.map((each) => each.text).join("; ")}`);
  }

  sayStep() {
    const { step } = this.player;
    if (!step) return;
    this.showPlayer();
    this.say(`${this.spoken.title}: ${this.spoken.lines.map((each) => each.text).join("; ")}. ${this.spoken.note || ""}`);
  }

  // --- sliders of scans -------------------------------------------------------------------------------

  buildSliders() {
    const boxes = [...this.model.boxes.values()].filter((box) => box.steps && box.steps.length > 1 && this.sheet.items.get(box.item.id)?.kind === "frame");
    this.sliders = boxes.map((box) => {
      const words = h("span", {}, stepWords(box));
      const input = stepInput(this, box);
      return { box, words, input, holder: h("label", { class: "slider" }, input, words) };
    });
    document.getElementById("sliders").replaceChildren(...this.sliders.map(({ holder }) => holder));
  }

  showSteps() {
    for (const { box, words, input } of this.sliders || []) {
      words.textContent = stepWords(box);
      input.value = box.step;
      input.setAttribute("aria-valuetext", stepWords(box));
    }
  }

  /** A slider stands on the upper edge of its frame, and stays in sight as long as the frame is. */
  placeSliders() {
    const { x, y, k } = this.sheet.camera;
    const room = document.getElementById("stage").clientWidth;
    for (const { box, holder } of this.sliders || []) {
      const item = this.sheet.items.get(box.item.id);
      const width = item.width * k;
      holder.hidden = width < 190 || item.height * k < 60;
      if (holder.hidden) continue;
      const top = clamp(item.y * k + y + 6, 6, Math.max(6, (item.y + item.height) * k + y - 34));
      const right = Math.min((item.x + item.width) * k + x - 8, room - 64);
      const left = Math.max(8, right - holder.offsetWidth);
      holder.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
    }
  }

  /** How much of the sheet's lower end lies under the panel, on a small screen. */
  insets() {
    const detail = document.getElementById("detail");
    const over = !detail.hidden && getComputedStyle(detail).position === "fixed";
    const stage = document.getElementById("stage").getBoundingClientRect();
    const zoom = document.getElementById("zoom").getBoundingClientRect();
    return { left: 0, right: stage.right - zoom.left - 8, top: 4, bottom: over ? Math.max(0, stage.bottom - detail.getBoundingClientRect().top) : 0 };
  }

  // --- keys -------------------------------------------------------------------------------------------

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.activeElement;
    const at = focused && focused.closest("dialog:not([open])") ? null : focused; // it may stay in a dialog just closed
    const typing = at && (at.tagName === "INPUT" || at.tagName === "SELECT");
    if (event.key === "Escape") return this.escape();
    if (document.getElementById("help").open) return;
    if (typing && at.id === "query") return;
    if (typing && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", " "].includes(event.key)) return;
    if (at && at.tagName === "BUTTON" && (event.key === " " || event.key === "Enter")) return;
    if (at && at.tagName === "SUMMARY" && (event.key === " " || event.key === "Enter")) return;
    const action = this.actions()[event.key];
    if (!action) return;
    event.preventDefault();
    action(event);
  }

  actions() {
    const pan = (dx, dy) => this.sheet.pan(dx, dy);
    return {
      " ": () => this.player.toggle(),
      ArrowRight: (event) => (event.shiftKey ? pan(-90, 0) : this.stepBy(1)),
      ArrowLeft: (event) => (event.shiftKey ? pan(90, 0) : this.stepBy(-1)),
      ArrowUp: (event) => (event.shiftKey ? pan(0, 90) : this.walk("operands")),
      ArrowDown: (event) => (event.shiftKey ? pan(0, -90) : this.walk("readers")),
      Home: () => this.stepBy(-Infinity),
      End: () => this.stepBy(Infinity),
      "/": () => document.getElementById("query").focus(),
      "+": () => this.sheet.zoom(1.4),
      "=": () => this.sheet.zoom(1.4),
      "-": () => this.sheet.zoom(1 / 1.4),
      f: () => this.sheet.fit(),
      0: () => this.sheet.fit(),
      Enter: () => this.selected && this.toggle(this.selected),
      o: () => this.selected && this.toggle(this.selected),
      e: () => this.openAll(true),
      c: () => this.openAll(false),
      t: () => this.turn(),
      d: () => this.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
      r: () => document.getElementById("kept").click(),
      n: () => this.nextNotFinite(),
      "?": () => this.showHelp(),
    };
  }

  escape() {
    const help = document.getElementById("help");
    if (help.open) help.close();
    else if (this.player.playing) this.player.pause();
    else this.select(null);
  }

  /** Go from the selected item to one it reads, or to one that reads it. */
  walk(side) {
    const item = this.selected && this.childOf(this.selected);
    if (!item) {
      const start = (this.player.step && this.player.step.item) || (this.model.loss && this.sheetItem(this.model.loss).id);
      return start && this.select(start);
    }
    const nodes = item.box ? item.box.all : [item.node];
    for (const node of nodes) {
      for (const edge of node[side]) {
        const next = this.sheetItem(side === "operands" ? edge.from : edge.to);
        if (next !== item && this.sheet.items.has(next.id)) return this.select(next.id);
      }
    }
  }

  buildHelp() {
    const keys = [
      [["Space"], "play or pause"], [["←", "→"], "one step back or on"], [["Home", "End"], "to the beginning, to the end"],
      [["↑", "↓"], "select what the selected node reads, what reads it"], [["Enter"], "open or close the selected box (or double click)"],
      [["E", "C"], "open all boxes, close all"], [["/"], "search"], [["+", "−", "F"], "zoom in, zoom out, show all"],
      [["Shift ←↑↓→"], "move the sheet (or drag it; wheel and pinch zoom)"], [["R"], "show what the backward pass keeps"],
      [["N"], "the next value that is NaN or infinite"],
      [["T"], "turn the graph: down or across"], [["D"], "light or dark"], [["Esc"], "close, clear, pause"],
    ];
    document.getElementById("help").append(
      h("header", {}, h("h2", { id: "help-title" }, "Reading and moving"), h("button", { class: "tool", "aria-label": "Close help", onclick: () => document.getElementById("help").close() }, icon(ICONS.close))),
      h("p", {}, "Each card is a value: its name, the expression it comes from, the value itself, and behind the ∂ its cotangent, the derivative of the result by it. Slate arrows carry values forward; warm ones carry cotangents backward. On an edge stands its local gradient: the cotangent of a value is the sum, over its readers, of the reader's cotangent times that local gradient."),
      h("dl", {}, keys.flatMap(([names, text]) => [h("dt", {}, names.map((name) => [h("kbd", {}, name), " "])), h("dd", {}, text)])),
    );
  }

  showHelp() {
    const help = document.getElementById("help");
    help.addEventListener("close", () => document.getElementById("sheet").focus({ focusVisible: false }), { once: true });
    help.showModal();
  }
}

/** Residuals by the edge they run along: value > reader. */
function keptOnEdges(model) {
  const found = new Map();
  for (const node of model.order) for (const residual of node.kept) found.set(`${residual.value}>${node.id}`, residual);
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

(() => {
  const page = new Page(JSON.parse(document.getElementById("scene").textContent));
  page.start(location.hash);
  window.addEventListener("hashchange", () => {
    const wish = new URLSearchParams(location.hash.replace(/^#/, ""));
    if (wish.has("step")) page.player.go(Number(wish.get("step")) || 0);
    if (wish.has("theme")) page.setTheme(wish.get("theme"));
  });
  window.jaxprop = Object.assign(page, { latexToMath }); // for the console, and for tests
})();
