// @ts-check
// What the runs tab does to the graph on the canvas: open a run's graph, fill a training node, let it resume.
import { t } from "./texts.mjs";

// Widgets of the training node, by their place in a run's settings
export const ON_TRAINER = {
  steps: ["steps"],
  batch_size: ["batch_size"],
  seed: ["seed"],
  checkpoint_every: ["checkpoint_every"],
  keep_checkpoints: ["keep_checkpoints"],
  learning_rate: ["optimizer", "learning_rate"],
  text_encoder_learning_rate: ["optimizer", "text_encoder_learning_rate"],
  rank: ["adapter", "rank"],
  alpha: ["adapter", "alpha"],
};
export const SETTINGS_NODES = {
  adapter: "KilnAdapterSettings",
  optimizer: "KilnOptimizerSettings",
  objective: "KilnObjectiveSettings",
  validation: "KilnValidationSettings",
  guards: "KilnGuardSettings",
  memory: "KilnMemorySettings",
};

/** @typedef {import("./api.mjs").RunRecord} RunRecord */

/**
 * Open a run's graph as the host opens a dropped file.
 * @param {any} app
 * @param {{workflow?: any, prompt?: any}} graph
 * @param {string} name of the new tab
 */
export async function openGraph(app, graph, name) {
  if (graph.workflow) await app.loadGraphData(graph.workflow, true, true, name);
  else await app.loadApiJson(graph.prompt, name);
}

/**
 * The training node that is meant: the one selected, or the only one of the graph on screen.
 * @param {any} app
 * @returns {any}
 * @throws {Error} none or several; the sentence is for the user
 */
export function trainer(app) {
  const graph = app.canvas.graph ?? app.graph;
  const all = (graph.nodes ?? graph._nodes).filter((/** @type {any} */ n) => n.comfyClass === "KilnTrainLora");
  const selected = all.filter((/** @type {any} */ n) => n.selected || app.canvas.selected_nodes?.[n.id]);
  if (!all.length) throw new Error(t("noTrainer"));
  if (selected.length === 1) return selected[0];
  if (all.length > 1) throw new Error(t("whichTrainer"));
  return all[0];
}

/**
 * Fill a training node and its settings nodes with a run's settings; settings nodes that the run needs and that are
 * missing are added before it.
 * @param {any} node a KilnTrainLora
 * @param {RunRecord} run
 * @returns {string} what the user should know
 */
export function useSettings(node, run) {
  const linked = [];
  set(node, "preset", "custom");
  for (const [name, path] of Object.entries(ON_TRAINER)) {
    const value = path.reduce((inner, key) => inner?.[key], /** @type {any} */ (run.config));
    if (value === undefined) continue;
    set(node, name, value);
    const slot = node.inputs?.findIndex((/** @type {any} */ i) => i.name === name) ?? -1;
    if (slot >= 0 && node.isInputConnected(slot)) linked.push(name);
  }
  const left = [];
  for (const [theme, kind] of Object.entries(SETTINGS_NODES)) {
    const values = run.config[theme] ?? {};
    const there = chain(node).find((other) => other.comfyClass === kind) ?? null;
    const needed = Object.keys(run.changed[theme] ?? {}).filter((name) => !(name in ON_TRAINER));
    const target = there ?? (needed.length ? insert(node, kind) : null);
    if (target) for (const [name, value] of Object.entries(values)) set(target, name, value);
    else left.push(...needed);
  }
  // Settings that come with objects of the graph, such as the text encoder of samples, need their node by hand
  for (const [theme, values] of Object.entries(run.changed)) {
    if (typeof values === "object" && !(theme in SETTINGS_NODES)) left.push(theme);
  }
  node.setDirtyCanvas?.(true, true);
  const sentences = [t("settingsUsed", run.id)];
  if (linked.length) sentences.push(t("settingsLinked", linked.join(", ")));
  if (left.length) sentences.push(t("settingsLeft", left.join(", ")));
  return sentences.join(" ");
}

/**
 * Let the next run of a training node go on from a run's newest checkpoint.
 * @param {any} node a KilnTrainLora
 * @param {RunRecord} run
 */
export function resume(node, run) {
  const widget = node.widgets.find((/** @type {any} */ w) => w.name === "resume");
  const choices = widget.options.values;
  // The list was made when the page was loaded; the server takes a run's name as its newest checkpoint
  if (Array.isArray(choices) && !choices.includes(run.id)) widget.options.values = [...choices, run.id];
  set(node, "resume", run.id);
  node.setDirtyCanvas?.(true, true);
}

/** @param {any} node @param {string} name @param {any} value */
function set(node, name, value) {
  const widget = node.widgets?.find((/** @type {any} */ w) => w.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}

/** The settings nodes in front of a node, nearest first. @param {any} node @returns {any[]} */
export function chain(node) {
  const found = [];
  for (let at = node; at && found.length < 50; ) {
    const slot = at.inputs?.findIndex((/** @type {any} */ i) => i.name === "settings") ?? -1;
    at = slot < 0 ? null : at.getInputNode(slot);
    if (at) found.push(at);
  }
  return found;
}

/**
 * Put a settings node between a training node and the settings that it has.
 * @param {any} node
 * @param {string} kind
 * @returns {any} null where this version of the pack has no such node
 */
function insert(node, kind) {
  const made = /** @type {any} */ (window).LiteGraph.createNode(kind);
  if (!made) return null;
  const slot = node.inputs.findIndex((/** @type {any} */ i) => i.name === "settings");
  const before = node.getInputNode(slot);
  const from = before && node.getInputLink(slot)?.origin_slot;
  const place = chain(node).length;
  made.pos = [node.pos[0] - 360, node.pos[1] + node.size[1] / 2 + 60 + 40 * place];
  node.graph.add(made);
  if (before) before.connect(from, made, made.inputs.findIndex((/** @type {any} */ i) => i.name === "settings"));
  made.connect(0, node, slot);
  return made;
}
