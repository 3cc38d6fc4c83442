// @ts-check
// The live panel on a training node: chart, figures, buttons. One panel per node, filled by run.
//
// A node shows a run only if it is its own: the server says which node of which graph started it. The newest is kept in
// node.properties.kiln_run (saved with the workflow), so that it is found again when the server has been restarted.
// Points missed while the page was away are fetched; see `attach`.
import { command, fetchRun, fetchRuns, onOffer, onProgressText, onReconnected, onRun } from "./api.mjs";
import { Chart } from "./chart.mjs";
import { make } from "./dom.mjs";
import { Filmstrip } from "./filmstrip.mjs";
import { allNodes, findNode, nodeOf } from "./find_node.mjs";
import { HOSTS_TEXT } from "./progress_texts.mjs";
import { clock } from "./series.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

const HEIGHT = 220;
const ONE_LINE = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis";
const BUTTON =
  "padding:2px 8px;border-radius:4px;cursor:pointer;border:1px solid var(--border-color);" +
  "background:var(--comfy-input-bg);color:var(--input-text);font-size:11px";
const ACTIVE = new Set(["starting", "running", "paused", "aside"]);

/** @param {string} tag @param {string} css */
function element(tag, css) {
  const made = document.createElement(tag);
  made.style.cssText = css;
  return made;
}

export class Panel {
  /** @param {any} node @param {any} app */
  constructor(node, app) {
    this.node = node;
    this.app = app;
    /** @type {import("./api.mjs").RunState | null} */ this.state = null;
    this.wrong = false; // the note is an error
    this.note = ""; // what there is to say before a run has a name, or instead of it
    /** @type {Record<string, HTMLButtonElement>} */ this.buttons = {};
    const names = { raw: t("curve_raw"), smooth: t("curve_smooth"), rate: t("curve_rate"), validation: t("curve_validation") };
    this.chart = new Chart(this.canvas(), names);
    this.figures = element("div", `min-height:1.3em;color:var(--input-text);${ONE_LINE}`);
    this.advice = element("div", "min-height:1.3em;max-height:3.9em;overflow:auto;color:var(--descrip-text)");
    this.advice.setAttribute("aria-live", "polite");
    this.offers = element("div", "display:flex;gap:4px;flex-wrap:wrap");
    this.offer = ""; // what `resume` may be set to instead of what was refused
    this.question = element("div", "");
    this.bar = element("div", "display:flex;gap:4px;flex-wrap:wrap");
    this.bar.append(...["pause", "resume", "save", "sample", "finish", "stop", "log"].map((name) => this.button(name)));
    this.root = element("div", "display:flex;flex-direction:column;gap:4px;padding:4px;font-size:11px;overflow:hidden");
    this.root.className = "kiln-panel";
    this.film = new Filmstrip();
    this.root.append(this.chart.canvas, this.film.root, this.figures, this.advice, this.offers, this.question, this.bar);
    // The graph must not start dragging the node when the panel is used
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation());
    new ResizeObserver(() => this.chart.redraw()).observe(this.chart.canvas);
    this.refresh();
    const widget = node.addDOMWidget("kiln_panel", "kiln_panel", this.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT + this.film.height,
      getMaxHeight: () => HEIGHT * 3 + this.film.height,
    });
    widget.serialize = false;
    followNodeWidth(widget);
  }

  canvas() {
    const canvas = document.createElement("canvas");
    canvas.style.cssText = "flex:1 1 auto;min-height:90px;width:100%;color:var(--input-text)";
    canvas.setAttribute("aria-label", t("chart"));
    canvas.title = t("chartHelp");
    canvas.dataset.empty = t("empty");
    return canvas;
  }

  /** @param {string} name */
  button(name) {
    const made = document.createElement("button");
    made.style.cssText = BUTTON;
    made.textContent = t(name);
    made.type = "button";
    made.title = t(`${name}Help`);
    made.dataset.kiln = name;
    made.addEventListener("click", () => (name === "finish" ? this.askToFinish() : this.press(name)));
    this.buttons[name] = made;
    return made;
  }

  /** @param {string} name */
  async press(name) {
    if (name === "log") {
      this.chart.log = !this.chart.log;
      this.buttons.log.setAttribute("aria-pressed", String(this.chart.log));
      this.chart.redraw();
      return;
    }
    if (!this.state) return;
    const refused = await command(this.state.run, /** @type {any} */ (name));
    if (refused) this.app.extensionManager.toast.add({ severity: "warn", summary: "LoRA Kiln", detail: refused, life: 5000 });
  }

  /** Finishing starts the nodes behind, which may take long: say so first. */
  askToFinish() {
    const state = this.state;
    if (!state) return;
    const leave = () => {
      this.endQuestion();
      this.buttons.finish.focus();
    };
    const choice = (/** @type {string} */ name, /** @type {() => void} */ act) =>
      make("button", { type: "button", style: BUTTON, "data-kiln": name, text: t(name), onclick: act });
    const then = (/** @type {string} */ name) => () => {
      leave();
      void this.press(name);
    };
    const stay = choice("keepTraining", leave);
    const text = t(state.background ? "finishAskBackground" : "finishAsk", state.step, state.total);
    const onkeydown = (/** @type {KeyboardEvent} */ event) => {
      event.stopPropagation(); // the graph has shortcuts of its own
      if (event.key === "Escape") leave();
    };
    this.question.replaceChildren(
      make(
        "div",
        { role: "alertdialog", "aria-label": t("finish"), onkeydown, style: "border:1px solid #d55e00;border-radius:4px;padding:4px" },
        make("div", { text }),
        make("div", { style: "display:flex;gap:4px;flex-wrap:wrap;margin-top:4px" }, choice("reallyFinish", then("finish")), choice("stopInstead", then("stop")), stay),
      ),
    );
    this.bar.style.display = this.advice.style.display = "none"; // the question takes their room
    stay.focus();
  }

  endQuestion() {
    this.question.replaceChildren();
    this.bar.style.display = "flex";
    this.advice.style.display = "";
  }

  /** @param {import("./api.mjs").RunState} state with the points that follow those already here */
  async show(state) {
    if (this.state?.run !== state.run) {
      this.chart.clear();
      this.film.show(state.run, []);
      this.node.properties.kiln_run = state.run;
    }
    this.note = this.offer = "";
    this.wrong = false;
    this.state = state;
    const known = this.chart.steps.length;
    if (state.points.length && state.first > 0 && known === 0) {
      await this.attach(state.run); // we came late: the beginning is on the server
      return;
    }
    this.chart.add(state.points);
    this.refresh();
  }

  /** Fetch a run whole. @param {string} run @returns {Promise<boolean>} whether the server knows it and it is this node's */
  async attach(run) {
    const state = await fetchRun(run);
    // A run of an earlier version of the pack does not say whose it is
    if (!state || (state.workflow && nodeOf(this.app, state) !== this.node)) return false;
    this.chart.clear();
    this.node.properties.kiln_run = run;
    this.state = state;
    this.chart.add(state.points);
    this.refresh();
    return true;
  }

  get active() {
    return !!this.state && ACTIVE.has(this.state.status);
  }

  /** Something to say that is no word of a run. @param {string} text @param {boolean} wrong it is an error */
  say(text, wrong = false) {
    this.note = text;
    this.wrong = wrong;
    this.advice.setAttribute("role", wrong ? "alert" : "status");
    this.refresh();
  }

  /** One click to go on with what is there. */
  showOffers() {
    const { state } = this;
    const steps = Number(this.node.widgets?.find((/** @type {any} */ w) => w.name === "steps")?.value ?? 0);
    const made = [];
    const ended = state && !this.active && state.status !== "done";
    if (ended && state.checkpoint && state.checkpoint <= steps) {
      made.push(["resumeHere", state.run, t("resumeHere", state.checkpoint, steps), t("resumeHereHelp", state.run)]);
    }
    const anyway = this.offer || (this.active ? state?.offer : "");
    if (anyway) made.push(["goOnAnyway", anyway, t("goOnAnyway", anyway.match(/ step (\d+)/)?.[1] ?? ""), t("goOnAnywayHelp", anyway)]);
    const key = JSON.stringify(made);
    if (this.offers.dataset.shown === key) return; // the focus stays
    this.offers.dataset.shown = key;
    this.offers.replaceChildren(
      ...made.map(([name, label, text, title]) =>
        make("button", { type: "button", style: BUTTON, "data-kiln": name, text, title, onclick: () => this.resume(label) }),
      ),
    );
  }

  /**
   * Queue the graph with another choice of `resume`, which is then what it was: the click is meant for this time.
   * @param {string} choice
   */
  async resume(choice) {
    const widget = this.node.widgets.find((/** @type {any} */ w) => w.name === "resume");
    if (this.active) await this.press("stop");
    const before = widget.value;
    const choices = widget.options.values;
    if (Array.isArray(choices) && !choices.includes(choice)) widget.options.values = [...choices, choice];
    widget.value = choice;
    try {
      await this.app.queuePrompt(0);
    } finally {
      widget.value = before;
    }
  }

  /** @param {import("./api.mjs").RunState} state */
  showSamples(state) {
    if (!state.samples) return;
    this.film.show(state.run, state.samples);
    const needed = this.node.computeSize()[1];
    if (this.node.size[1] < needed) this.node.setSize([this.node.size[0], needed]); // the chart keeps its room
  }

  refresh() {
    const state = this.state;
    if (state) this.showSamples(state);
    this.chart.validation = state?.validation ?? [];
    const active = this.active;
    this.buttons.pause.style.display = state?.status === "paused" ? "none" : "";
    this.buttons.resume.style.display = state?.status === "paused" ? "" : "none";
    for (const name of ["pause", "resume", "save", "finish", "stop"]) {
      this.buttons[name].disabled = !active;
      this.buttons[name].style.opacity = active ? "1" : "0.5";
    }
    if (!active) this.endQuestion();
    const draws = !!state && active && state.draws;
    this.buttons.sample.disabled = !draws;
    this.buttons.sample.style.opacity = draws ? "1" : "0.5";
    this.buttons.sample.title = t(state && !state.draws ? "sampleNeeds" : "sampleHelp");
    this.figures.textContent = state ? figures(state, active, this.chart.smooth.at(-1)) : "";
    this.figures.title = this.figures.textContent;
    this.showOffers();
    const text = inUsersLanguage(this.note || [state?.start, state?.text].filter(Boolean).join("\n"));
    // Read out by screen readers when it changes, so not written again when it has not
    if (this.advice.textContent !== text) this.advice.textContent = text;
    this.advice.title = text;
    this.advice.style.color = this.wrong && this.note ? "var(--error-text)" : "var(--descrip-text)";
  }
}

/**
 * The one line that says how far a run is.
 * @param {import("./api.mjs").RunState} state
 * @param {boolean} active
 * @param {number | undefined} loss smoothed
 */
function figures(state, active, loss) {
  const left = (state.total - state.step) * state.seconds;
  const perSecond = `${(1 / state.seconds).toFixed(1)} ${t("perSecond")}`;
  const rate = state.seconds < 1 ? perSecond : `${state.seconds.toFixed(1)} ${t("secondsPer")}`;
  const parts = [
    state.name,
    t(`status_${state.status}`),
    `${state.step}/${state.total}`,
    loss === undefined ? "" : t("loss", loss.toFixed(3)),
    active && state.seconds ? t("left", clock(left)) : "",
    state.seconds ? rate : "",
    state.epoch ? `${t("epoch")} ${state.epoch.toFixed(1)}` : "",
  ];
  return parts.filter(Boolean).join("  ·  ");
}

/**
 * Let a widget always be as wide as its node. Frontends 1.49 and 1.58 list the widgets of a selected node in a side panel,
 * too, and write that panel's width into `widget.width`, where it stays and wins over the node's.
 * @param {any} widget
 */
export function followNodeWidth(widget) {
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set: () => {} });
}

/** @param {any} node @param {any} app */
export function addPanel(node, app) {
  node.kilnPanel = new Panel(node, app);
}

/** Find every panel's run again: after loading a graph, and when the server is back. @param {any} app */
export async function reattach(app) {
  const runs = await fetchRuns();
  for (const node of allNodes(app)) {
    const panel = node.kilnPanel;
    if (!panel) continue;
    const own = node.properties.kiln_run; // maybe of an earlier server process, or of another machine
    const latest = runs.filter((run) => nodeOf(app, run) === node).at(-1);
    const active = latest && ACTIVE.has(latest.status);
    if (!active && own && (await panel.attach(own))) continue;
    if (latest) await panel.attach(latest.run);
  }
}

/** @param {any} app */
export function listen(app) {
  onRun((state) => nodeOf(app, state)?.kilnPanel?.show(state));
  onReconnected(() => reattach(app));
  onOffer((refused) => {
    const panel = nodeOf(app, refused)?.kilnPanel;
    if (!panel) return;
    panel.offer = refused.offer;
    panel.say(refused.text, true);
  });
  onProgressText((id, text) => {
    const node = findNode(app, id);
    if (!node?.kilnPanel) return;
    // The panel says it: the host's own text would be the same once more
    const widget = node.widgets.find((/** @type {any} */ w) => w.name === HOSTS_TEXT);
    if (widget && !widget.hidden) {
      widget.hidden = true;
      widget.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 }); // 1.32.9 keeps room for it
    }
    if (!node.kilnPanel.active) node.kilnPanel.say(text);
  });
}
