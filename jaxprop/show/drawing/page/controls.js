// The controls: bar, zoom, legend, player, sliders of scans, help.

const SPEEDS = [0.5, 1, 2, 4];

class Controls extends State {
  tool(label, path, onclick, more = {}) {
    return h(
      "button",
      {
        class: `tool ${more.class || ""}`,
        type: "button",
        "aria-label": label,
        title: more.title || label,
        onclick,
        ...more.attributes,
      },
      icon(path),
    );
  }

  buildBar() {
    const { scene } = this.model;
    const value = scene.value ? `= ${number(scene.value)}` : "";
    const parameters = this.model.order.filter((node) => node.kind === "parameter").map((node) => node.name);
    const source = this.model.loss && this.model.loss.source;
    const words = [
      value,
      parameters.length && parameters.length <= 4
        ? `w.r.t. ${parameters.join(", ")}`
        : parameters.length
          ? `w.r.t. ${plural(parameters.length, "parameter")}`
          : "",
      plural(this.model.order.length, "node"),
      source ? `${source.file}:${source.line}` : "",
    ]
      .filter(Boolean)
      .join(" · ");
    document
      .getElementById("title")
      .append(h("span", { class: "word" }, this.model.lossName), h("span", { class: "of" }, words));
    const flip = (event, isOn) => event.currentTarget.setAttribute("aria-pressed", String(isOn));
    const tools = [
      this.tool(
        "Values that VJPs read",
        ICONS.reads,
        (event) => ((this.reads = !this.reads), flip(event, this.reads), this.showReads()),
        {
          title: "Values of the forward pass that the VJP of each operation reads (R)",
          attributes: { "aria-pressed": "false", id: "reads", hidden: !(scene.reads || []).length },
        },
      ),
      this.tool("Change the direction", ICONS.turn, () => this.turn(), {
        title: "Down or across (T)",
        class: "only-full",
      }),
      this.tool(
        "Light or dark",
        ICONS.theme,
        () => this.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
        { title: "Light or dark (D)" },
      ),
      this.tool("Help", ICONS.help, () => this.showHelp(), { title: "Help (?)", class: "only-full" }),
    ];
    document.getElementById("tools").append(...tools);
  }

  buildZoom() {
    const tools = [
      this.tool("Zoom in", ICONS.plus, () => this.sheet.zoom(1.4), { title: "Zoom in (+)" }),
      this.tool("Zoom out", ICONS.minus, () => this.sheet.zoom(1 / 1.4), { title: "Zoom out (-)" }),
      this.tool("Show all", ICONS.fit, () => this.sheet.fit(), { title: "Show all (F)" }),
    ];
    document.getElementById("zoom").append(...tools);
  }

  /** A strip under the sheet, so that it never covers anything. */
  buildLegend() {
    const { scale, scene } = this.model;
    const key = (...shapes) => s("svg", { class: "key", viewBox: "0 0 28 14", "aria-hidden": "true" }, shapes);
    const arrow = (kind, line, tip) =>
      key(s("path", { class: kind, d: line }), s("path", { class: `${kind}-tip`, d: tip }));
    const pill = (kind) => key(s("rect", { class: kind, x: 1, y: 1, width: 26, height: 12, rx: 6 }));
    const kinds = new Set(this.model.order.map((node) => node.kind));
    const notFinite = this.notFinite();
    const entries = [
      [arrow("forward", "M1 7h21", "M21 3.5L27 7l-6 3.5z"), "forward: values"],
      [arrow("backward", "M27 7H6", "M7 3.5L1 7l6 3.5z"), "backward: cotangents ∂"],
      kinds.has("parameter") && [pill("given"), "parameter"],
      kinds.has("loss") && [pill("result"), "result"],
      this.model.order.some((node) => !node.active) && [pill("off"), "no gradient"],
      notFinite.length && [
        pill("bad"),
        h(
          "button",
          { class: "link", title: "Show the next one (N)", onclick: () => this.nextNotFinite() },
          `NaN or infinite: ${notFinite.length}`,
        ),
      ],
    ].filter(Boolean);
    const ramp = scale && [
      h("span", {}, "norm of ∂"),
      h("span", {}, number(10 ** scale[0], 2)),
      h(
        "span",
        { class: "ramp", "aria-hidden": "true" },
        Array.from({ length: BINS }, (_, i) => h("span", { class: `swatch c${i}` })),
      ),
      h("span", {}, number(10 ** scale[1], 2)),
    ];
    const notes = (scene.notes || []).join(" ");
    document
      .getElementById("legend")
      .append(
        ...(ramp ? [h("span", { class: "entry scale" }, ramp)] : []),
        ...entries.map((entry) => h("span", { class: "entry" }, entry)),
        h(
          "span",
          { class: "entry reads-entry", hidden: true },
          key(s("path", { class: "reads", d: "M2 7h25" })),
          "read by a VJP",
        ),
        ...(notes ? [h("span", { class: "entry notes", title: notes }, notes)] : []),
      );
  }

  showReads() {
    document.querySelector("#legend .reads-entry").hidden = !this.reads;
    this.sheet.redraw();
  }

  buildPlayer() {
    const { player } = this;
    const go = (by) => () => this.stepBy(by);
    this.playButton = this.tool("Play", ICONS.play, () => player.toggle(), {
      title: "Play or pause (Space)",
      attributes: { id: "play" },
    });
    this.range = h("input", {
      type: "range",
      min: 0,
      max: 1,
      value: 0,
      "aria-label": "Step of the play",
      oninput: (event) => (player.playing && player.pause(), player.go(Number(event.target.value))),
    });
    this.actButtons = ACTS.map(([act, name, title]) =>
      h(
        "button",
        {
          type: "button",
          title,
          "aria-label": title,
          onclick: () => (player.playing && player.pause(), player.go(player.script.starts[act])),
        },
        name,
      ),
    );
    this.count = h("span", { id: "count" });
    const speed = h(
      "select",
      {
        id: "speed",
        "aria-label": "Speed",
        class: "ends-only",
        onchange: (event) => (player.speed = Number(event.target.value)),
      },
      SPEEDS.map((x) => h("option", { value: x, selected: x === 1 }, `${x}×`)),
    );
    this.line = h("div", { id: "line" });
    const controls = h(
      "div",
      { id: "controls" },
      this.tool("To the start", ICONS.first, go(-Infinity), {
        title: "To the start (Home)",
        class: "ends-only",
      }),
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
      this.actButtons[i].hidden =
        script.starts[act] === next || !script.steps.some((other) => other.act === act);
      this.actButtons[i].style.flexGrow = Math.max(0.12, (next - script.starts[act]) / (last + 1));
      if (step.act === act) this.actButtons[i].setAttribute("aria-current", "step");
      else this.actButtons[i].removeAttribute("aria-current");
    });
    const said = narrate(this.model, step);
    this.spoken = said;
    this.line.dataset.act = step.act;
    this.line.replaceChildren(
      h("div", { class: "act" }, said.title),
      h(
        "div",
        { class: `formulas ${said.lines.length > 1 ? "small" : ""}` },
        said.lines.map((each) =>
          h("div", { class: "said", "data-text": each.text }, each.parts.filter(Boolean)),
        ),
      ),
      h("div", { class: "note" }, said.note || ""),
    );
    range.setAttribute("aria-valuetext", `${said.title}, ${said.lines.map((each) => each.text).join("; ")}`);
  }

  sayStep() {
    const { step } = this.player;
    if (!step) return;
    this.showPlayer();
    this.say(
      `${this.spoken.title}: ${this.spoken.lines.map((each) => each.text).join("; ")}. ${this.spoken.note || ""}`,
    );
  }

  buildSliders() {
    const boxes = [...this.model.boxes.values()].filter(
      (box) => box.steps && box.steps.length > 1 && this.sheet.items.get(box.item.id)?.kind === "frame",
    );
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

  /** A slider is at the upper edge of its frame, and stays in view as long as the frame does. */
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

  /** How much of each side of the sheet is covered: by the zoom buttons, and by the panel on a small screen. */
  insets() {
    const detail = document.getElementById("detail");
    const over = !detail.hidden && getComputedStyle(detail).position === "fixed";
    const stage = document.getElementById("stage").getBoundingClientRect();
    const zoom = document.getElementById("zoom").getBoundingClientRect();
    return {
      left: 0,
      right: stage.right - zoom.left - 8,
      top: 4,
      bottom: over ? Math.max(0, stage.bottom - detail.getBoundingClientRect().top) : 0,
    };
  }

  buildHelp() {
    const keys = [
      [["Space"], "play or pause"],
      [["←", "→"], "previous step, next step"],
      [["Home", "End"], "first step, last step"],
      [["↑", "↓"], "select an operand, a consumer of the selected node"],
      [["Enter"], "open or close the selected box (or double-click it)"],
      [["E", "C"], "open all boxes, close all boxes"],
      [["/"], "search"],
      [["+", "−", "F"], "zoom in, zoom out, show all"],
      [["Shift ←↑↓→"], "move the sheet (or drag it; zoom with the wheel or two fingers)"],
      [["R"], "mark the values that the VJP of each operation reads"],
      [["N"], "go to the next value that is NaN or infinite"],
      [["T"], "change the direction: down or across"],
      [["D"], "light or dark theme"],
      [["Esc"], "close, deselect, pause"],
    ];
    document.getElementById("help").append(
      h(
        "header",
        {},
        h("h2", { id: "help-title" }, "How to read this page"),
        h(
          "button",
          { class: "tool", "aria-label": "Close help", onclick: () => document.getElementById("help").close() },
          icon(ICONS.close),
        ),
      ),
      h(
        "p",
        {},
        "Each card is a value: its name, its expression in the source, the value itself and, after ∂, its cotangent: the derivative of the result with respect to it. Slate arrows carry values in the forward pass, amber arrows carry cotangents in the backward pass. An edge is labelled with its local gradient. The cotangent of a value is the sum, over its consumers, of the consumer's cotangent times the local gradient.",
      ),
      h(
        "dl",
        {},
        keys.flatMap(([names, text]) => [
          h(
            "dt",
            {},
            names.map((name) => [h("kbd", {}, name), " "]),
          ),
          h("dd", {}, text),
        ]),
      ),
    );
  }

  showHelp() {
    const help = document.getElementById("help");
    help.addEventListener("close", () => document.getElementById("sheet").focus({ focusVisible: false }), {
      once: true,
    });
    help.showModal();
  }
}
