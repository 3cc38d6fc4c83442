// @ts-check
// The live panel on a training node: chart, figures, buttons. One panel per node, filled by run.
//
// A node finds its run in node.properties.kiln_run (saved with the workflow), else by its id among the server's runs.
// Points missed while the page was away are fetched; see `attach`.
import { command, fetchRun, fetchRuns, onReconnected, onRun } from "./api.mjs";
import { Chart } from "./chart.mjs";
import { Filmstrip } from "./filmstrip.mjs";
import { clock } from "./series.mjs";
import { t } from "./texts.mjs";

const HEIGHT = 220;
const ONE_LINE = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis";
const BUTTON =
  "padding:2px 8px;border-radius:4px;cursor:pointer;border:1px solid var(--border-color);" +
  "background:var(--comfy-input-bg);color:var(--input-text);font-size:11px";
const ACTIVE = new Set(["starting", "running", "paused", "aside"]);

/**
 * The node that the server means: "3", or "5:3" for node 3 inside subgraph node 5, to any depth. Two subgraph nodes may
 * share what is inside them, so an id is followed down from the root and never made from a node.
 * @param {any} app
 * @param {string} id
 * @returns {any}
 */
function findNode(app, id) {
  const path = id.split(":").map(Number);
  const last = path.pop();
  let graph = app.rootGraph ?? app.graph;
  for (const part of path) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(last);
}

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
    /** @type {Record<string, HTMLButtonElement>} */ this.buttons = {};
    this.chart = new Chart(this.canvas());
    this.figures = element("div", `min-height:1.3em;color:var(--input-text);${ONE_LINE}`);
    this.advice = element("div", "min-height:1.3em;max-height:2.6em;overflow:hidden;color:var(--descrip-text)");
    this.advice.setAttribute("aria-live", "polite");
    const bar = element("div", "display:flex;gap:4px;flex-wrap:wrap");
    bar.append(...["pause", "resume", "save", "sample", "stop", "log"].map((name) => this.button(name)));
    this.root = element("div", "display:flex;flex-direction:column;gap:4px;padding:4px;font-size:11px;overflow:hidden");
    this.root.className = "kiln-panel";
    this.film = new Filmstrip();
    this.root.append(this.chart.canvas, this.film.root, this.figures, this.advice, bar);
    // The graph must not start dragging the node when the panel is used
    this.root.addEventListener("pointerdown", (event) => event.stopPropagation());
    new ResizeObserver(() => this.chart.redraw()).observe(this.chart.canvas);
    this.refresh();
    node.addDOMWidget("kiln_panel", "kiln_panel", this.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => HEIGHT + this.film.height,
      getMaxHeight: () => HEIGHT * 3 + this.film.height,
    }).serialize = false;
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
    made.addEventListener("click", () => this.press(name));
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

  /** @param {import("./api.mjs").RunState} state with the points that follow those already here */
  async show(state) {
    if (this.state?.run !== state.run) {
      this.chart.clear();
      this.film.show(state.run, []);
      this.node.properties.kiln_run = state.run;
    }
    this.state = state;
    const known = this.chart.steps.length;
    if (state.points.length && state.first > 0 && known === 0) {
      await this.attach(state.run); // we came late: the beginning is on the server
      return;
    }
    this.chart.add(state.points);
    this.refresh();
  }

  /** Fetch a run whole. @param {string} run @returns {Promise<boolean>} whether the server knows it */
  async attach(run) {
    const state = await fetchRun(run);
    if (!state) return false;
    this.chart.clear();
    this.node.properties.kiln_run = run;
    this.state = state;
    this.chart.add(state.points);
    this.refresh();
    return true;
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
    const active = !!state && ACTIVE.has(state.status);
    this.buttons.pause.style.display = state?.status === "paused" ? "none" : "";
    this.buttons.resume.style.display = state?.status === "paused" ? "" : "none";
    for (const name of ["pause", "resume", "save", "stop"]) {
      this.buttons[name].disabled = !active;
      this.buttons[name].style.opacity = active ? "1" : "0.5";
    }
    const draws = active && state.draws;
    this.buttons.sample.disabled = !draws;
    this.buttons.sample.style.opacity = draws ? "1" : "0.5";
    this.buttons.sample.title = t(state && !state.draws ? "sampleNeeds" : "sampleHelp");
    if (!state) return;
    const left = (state.total - state.step) * state.seconds;
    const perSecond = `${(1 / state.seconds).toFixed(1)} ${t("perSecond")}`;
    const rate = state.seconds < 1 ? perSecond : `${state.seconds.toFixed(1)} ${t("secondsPer")}`;
    const parts = [
      t(`status_${state.status}`),
      `${state.step}/${state.total}`,
      `${t("epoch")} ${state.epoch.toFixed(1)}`,
      state.seconds ? rate : "",
      active ? `${clock(left)} ${t("left")}` : "",
      state.memory ? `${(state.memory / 2 ** 30).toFixed(1)} GiB` : "",
    ];
    this.figures.textContent = parts.filter(Boolean).join("  ·  ");
    // Read out by screen readers when it changes, so not written again when it has not
    if (this.advice.textContent !== state.text) this.advice.textContent = state.text;
    this.advice.title = state.text;
  }
}

/** @param {any} node @param {any} app */
export function addPanel(node, app) {
  node.kilnPanel = new Panel(node, app);
}

/** Find every panel's run again: after loading a graph, and when the server is back. @param {any} app */
export async function reattach(app) {
  const runs = await fetchRuns();
  const root = app.rootGraph ?? app.graph;
  const all = [root, ...(root?.subgraphs?.values?.() ?? [])].flatMap((g) => g?.nodes ?? g?._nodes ?? []);
  for (const node of all) {
    const panel = node.kilnPanel;
    if (!panel) continue;
    const own = node.properties.kiln_run; // maybe of an earlier server process, or of another machine
    const latest = runs.filter((run) => findNode(app, run.node) === node).at(-1);
    const active = latest && ACTIVE.has(latest.status);
    if (!active && own && (await panel.attach(own))) continue;
    if (latest) await panel.attach(latest.run);
  }
}

/** @param {any} app */
export function listen(app) {
  onRun((state) => findNode(app, state.node)?.kilnPanel?.show(state));
  onReconnected(() => reattach(app));
}
