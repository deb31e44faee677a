// The page: how it opens, what can be done, and with which keys. The fragment of the address controls how it opens:
// `#embed`, `#theme=dark`, `#step=3`, `#node=h`, `#open=all`, `#direction=LR`, joined by `&`.

class Page extends Controls {
  constructor(scene) {
    super(scene);
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
    const call = {
      select: (id) => this.select(id),
      toggle: (id) => this.toggle(id),
      moved: () => this.placeSliders(),
      laidOut: () => this.laidOut(),
      insets: () => this.insets(),
    };
    this.sheet = new Sheet(document.getElementById("sheet"), this, call);
    this.sheet.relayout();
    if (wish.has("step")) this.player.go(Number(wish.get("step")) || 0);
    this.sheet.fit(false, true);
    const node = this.model.order.find(({ name }) => name === wish.get("node"));
    if (node) this.reveal(node, false);
    this.played();
    document.addEventListener("keydown", (event) => this.key(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener(
      "change",
      () => this.themeChosen || this.setTheme(null),
    );
  }

  laidOut() {
    this.player.load(writeScript(this.model, this.open));
    this.buildSliders();
    if (this.actButtons) this.showPlayer();
  }

  select(id) {
    this.selected = id;
    showDetail(this, id);
    this.sheet.redraw();
    if (!id) return;
    this.sheet.keepInView(id);
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
    this.sheet.keepInView(id);
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

  /** Open the boxes around a node, select it and bring it to the centre. */
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
  }

  setStep(box, step) {
    box.step = step;
    this.sheet.redraw();
    this.showSteps();
    if (this.selected) {
      const focused =
        document.activeElement && document.activeElement.closest("#detail")
          ? document.activeElement.dataset.box
          : null;
      showDetail(this, document.getElementById("detail").hidden ? null : this.selected);
      if (focused) document.querySelector(`#detail [data-box="${CSS.escape(focused)}"]`)?.focus();
    }
    this.sayStep();
  }

  /** Bring the card of the step into view, with its sources. */
  showStep() {
    const { step } = this.player;
    if (!step || step.act === "done") return;
    this.sheet.keepInView(...(step.items || [step.item, ...this.sourcesOf(step)]));
  }

  /** What the step reads: operands in the forward pass, consumers in the backward pass. */
  sourcesOf({ act, node }) {
    if (!node) return [];
    const sources =
      act === "backward"
        ? [...node.consumers, ...node.leaving].filter((edge) => edge.active).map((edge) => edge.to)
        : [...node.operands, ...node.entered].map((edge) => edge.from);
    return sources.map((source) => this.sheetItem(source).id);
  }

  /** The player has moved. */
  played() {
    const { step } = this.player;
    for (const [id, at] of Object.entries((step && step.sets) || {})) this.model.boxes.get(id).step = at;
    this.sheet.redraw();
    this.showSteps();
    this.showPlayer();
    this.sayStep();
    this.showStep();
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

  turn() {
    this.direction = this.sheet.direction === "TB" ? "LR" : "TB";
    this.sheet.relayout();
    this.sheet.fit(true, true);
    this.showStep();
  }

  nextNotFinite() {
    const nodes = this.notFinite();
    if (!nodes.length) return;
    const at = nodes.findIndex((node) => node.item.id === this.selected);
    this.reveal(nodes[(at + 1) % nodes.length]);
  }

  stepBy(by) {
    const { player } = this;
    if (player.playing) player.pause();
    player.go(clamp(player.at + by, 0, player.script.steps.length - 1));
  }

  // --- keys -------------------------------------------------------------------------------------------

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = document.activeElement;
    const at = focused && focused.closest("dialog:not([open])") ? null : focused; // it may be in a dialog that was just closed
    const typing = at && (at.tagName === "INPUT" || at.tagName === "SELECT");
    if (event.key === "Escape") return this.escape();
    if (document.getElementById("help").open) return;
    if (typing && at.id === "query") return;
    if (typing && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", " "].includes(event.key))
      return;
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
      ArrowDown: (event) => (event.shiftKey ? pan(0, -90) : this.walk("consumers")),
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
      r: () => document.getElementById("reads").click(),
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

  /** Go from the selected item to one of its operands, or to one of its consumers. */
  walk(side) {
    const item = this.selected && this.childOf(this.selected);
    if (!item) {
      const start =
        (this.player.step && this.player.step.item) || (this.model.loss && this.sheetItem(this.model.loss).id);
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
}

(() => {
  const page = new Page(JSON.parse(document.getElementById("scene").textContent));
  page.start(location.hash);
  window.addEventListener("hashchange", () => {
    const wish = new URLSearchParams(location.hash.replace(/^#/, ""));
    if (wish.has("step")) page.player.go(Number(wish.get("step")) || 0);
    if (wish.has("theme")) page.setTheme(wish.get("theme"));
  });
  window.jaxprop = Object.assign(page, { latexToMath }); // for the console and for tests
})();
