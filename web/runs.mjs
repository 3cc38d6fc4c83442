// @ts-check
// The runs tab in the sidebar: every run of the history, filtered, sorted, compared.
import { fetchCurve, listRuns, onRun } from "./api.mjs";
import { addStyle, make } from "./dom.mjs";
import { Overlay } from "./overlay.mjs";
import { card } from "./run_card.mjs";
import { t } from "./texts.mjs";

const PAGE = 30;
const PATIENCE = 250; // milliseconds after the last key before the list is asked for
const ORDERS = ["newest", "rating", "validation", "loss"];

/** @typedef {import("./api.mjs").RunRecord} RunRecord */

export class RunsTab {
  /** @param {any} app */
  constructor(app) {
    this.app = app;
    /** @type {RunRecord[]} */ this.runs = [];
    this.total = 0;
    /** @type {Map<string, import("./run_card.mjs").Card>} */ this.cards = new Map();
    this.asked = 0; // number of the newest question; answers to older ones are dropped
    /** @type {ReturnType<typeof setTimeout> | undefined} */ this.timer = undefined;

    this.search = make("input", {
      type: "search",
      placeholder: t("filter"),
      "aria-label": t("filter"),
      oninput: () => this.soon(),
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(), // the graph has shortcuts of its own
    });
    this.order = make(
      "select",
      { "aria-label": t("order"), onchange: () => this.load() },
      ...ORDERS.map((value) => make("option", { value, text: t(`order_${value}`) })),
    );
    const canvas = make("canvas", { "aria-label": t("comparison"), title: t("chartHelpShort") });
    this.overlay = new Overlay(canvas);
    this.legend = make("div", { class: "kiln-legend" });
    const clear = make("button", { type: "button", text: t("clearCompare"), onclick: () => this.clearComparison() });
    this.comparison = make("section", { hidden: true, "aria-label": t("comparison") }, canvas, this.legend, clear);
    this.status = make("div", { class: "kiln-faint", role: "status" });
    this.templates = make("button", {
      type: "button",
      "data-kiln": "templates",
      text: t("openTemplates"),
      hidden: true,
      onclick: () => this.app.extensionManager.command.execute("Comfy.BrowseTemplates"),
    });
    this.list = make("ul", {});
    this.more = make("button", { type: "button", text: t("more"), hidden: true, onclick: () => this.load(this.runs.length) });
    this.root = make(
      "div",
      { class: "kiln-runs" },
      make("div", { class: "kiln-row" }, this.search),
      make("div", { class: "kiln-row" }, this.order, make("button", { type: "button", text: t("reload"), onclick: () => this.load() })),
      this.comparison,
      this.status,
      this.templates,
      this.list,
      this.more,
    );
    new ResizeObserver(() => this.overlay.redraw()).observe(canvas);
  }

  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), PATIENCE);
  }

  /** @param {number} offset 0 makes the list anew, else more is appended */
  async load(offset = 0) {
    const question = ++this.asked;
    const words = this.search.value.trim();
    try {
      const found = await listRuns({ words, order: this.order.value, offset, limit: PAGE });
      if (question !== this.asked) return;
      this.runs = offset ? [...this.runs, ...found.runs] : found.runs;
      this.total = found.total;
      this.place(found.runs, offset > 0);
      this.refresh();
    } catch (error) {
      this.status.textContent = /** @type {Error} */ (error).message;
    }
  }

  /**
   * Cards that are there stay, with what the user is doing in them.
   * @param {RunRecord[]} runs
   * @param {boolean} more behind those that are there
   */
  place(runs, more) {
    const focused = /** @type {HTMLElement | null} */ (this.list.contains(document.activeElement) ? document.activeElement : null);
    const kept = more ? this.cards : new Map();
    for (const run of runs) {
      const there = this.cards.get(run.id);
      there?.update(run);
      kept.set(run.id, there ?? this.card(run));
    }
    this.cards = kept;
    const elements = [...kept.values()].map((made) => made.element);
    if (elements.length !== this.list.children.length || elements.some((element, i) => element !== this.list.children[i])) {
      this.list.replaceChildren(...elements);
      if (focused?.isConnected) focused.focus();
    }
  }

  /** A run has gone on. @param {import("./api.mjs").RunState} state */
  follow(state) {
    this.cards.get(state.run)?.follow(state);
  }

  refresh() {
    this.templates.hidden = !!this.total || !!this.search.value.trim();
    const empty = this.search.value.trim() ? t("noneFound") : t("noRuns");
    this.status.textContent = this.total ? `${t("count", this.total)} ${t("compareHelp")}` : empty;
    this.more.hidden = this.runs.length >= this.total;
  }

  /** @param {RunRecord} run */
  card(run) {
    return card(run, {
      app: this.app,
      say: (detail, severity = "info") =>
        this.app.extensionManager.toast.add({ severity, summary: "LoRA Kiln", detail, life: 6000 }),
      compared: this.overlay.runs.some((other) => other.name === run.id),
      compare: (chosen, on) => this.compare(chosen, on),
      gone: (deleted) => {
        this.compare(deleted, false);
        this.runs = this.runs.filter((other) => other.id !== deleted.id);
        this.total--;
        this.cards.get(deleted.id)?.element.remove();
        this.cards.delete(deleted.id);
        this.refresh();
        this.search.focus();
      },
    });
  }

  /** @param {RunRecord} run @param {boolean} on */
  async compare(run, on) {
    if (on) {
      const { points } = await fetchCurve(run.id).catch(() => ({ points: [] }));
      this.overlay.add(run.id, points, run.name);
    } else this.overlay.remove(run.id);
    this.comparison.hidden = !this.overlay.runs.length;
    this.overlay.redraw();
    this.legend.replaceChildren(...this.overlay.runs.map(({ name, label }, place) => this.entry(label || name, place)));
  }

  /** @param {string} name @param {number} place */
  entry(name, place) {
    const { colour, dash } = this.overlay.style(place);
    const line = make("canvas", { width: 48, height: 12, "aria-hidden": "true", style: "width:2rem;height:0.5rem" });
    const context = line.getContext("2d");
    if (context) {
      Object.assign(context, { strokeStyle: colour, lineWidth: 4 });
      context.setLineDash(dash.map((part) => part * 1.5));
      context.beginPath();
      context.moveTo(0, 6);
      context.lineTo(48, 6);
      context.stroke();
    }
    return make("span", {}, line, name);
  }

  clearComparison() {
    this.overlay.runs = [];
    this.comparison.hidden = true;
    this.legend.replaceChildren();
    for (const tick of this.list.querySelectorAll("input[type=checkbox]")) /** @type {HTMLInputElement} */ (tick).checked = false;
  }
}

/** @param {any} app */
export function addRunsTab(app) {
  /** @type {RunsTab | null} */
  let shown = null;
  /** @type {Map<string, string>} */
  const states = new Map();
  onRun((state) => {
    const { run, status } = state;
    shown?.follow(state);
    if (states.get(run) === status) return;
    states.set(run, status);
    shown?.soon(); // a run began, paused or ended
  });
  addStyle();
  app.extensionManager.registerSidebarTab({
    id: "lora-kiln-runs",
    icon: "pi pi-chart-line",
    title: t("runs"),
    tooltip: t("runsHelp"),
    type: "custom",
    render: (/** @type {HTMLElement} */ place) => {
      shown = new RunsTab(app);
      place.replaceChildren(shown.root);
      place.style.height = "100%";
      return void shown.load();
    },
    destroy: () => {
      shown = null;
    },
  });
}
