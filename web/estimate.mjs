// @ts-check
// A line on the training node: the memory that the run as it is set up would need, before anything is loaded.
//
// What it depends on lies on several nodes, whose widgets tell nobody when they are changed by a preset, by undo or by
// another extension. So the question itself is put together a few times a second, which costs next to nothing, and the
// server is asked when it has changed and then stayed the same.
import { app as host } from "../../scripts/app.js";
import { estimateMemory } from "./api.mjs";
import { keepWithNode } from "./find_node.mjs";
import { ON_TRAINER, SETTINGS_NODES, chain } from "./graph_actions.mjs";
import { inUsersLanguage, t } from "./texts.mjs";

const SUBGRAPH_INPUT = -10; // the host's id for a subgraph's inputs, seen from inside
const PERIOD = 400; // milliseconds between two looks
const LOADERS = { UNETLoader: "unet_name", CheckpointLoaderSimple: "ckpt_name" };
const TEXT_FILES = /^(ckpt_name|clip_name\d?)$/; // widgets of text encoders' loaders that name a file
const app = /** @type {any} */ (host); // the host's types lack rootGraph
/** @type {Set<Line>} */
const lines = new Set();

/** @param {any} node @param {string} name */
const valueOf = (node, name) => node.widgets?.find((/** @type {any} */ w) => w.name === name)?.value;

/**
 * The node at an input; from inside a subgraph, the one that the subgraph's own input is connected to.
 * @param {any} node
 * @param {string} name
 * @returns {any}
 */
function before(node, name) {
  let slot = node.inputs?.findIndex((/** @type {any} */ i) => i.name === name) ?? -1;
  for (let depth = 0; slot >= 0 && depth < 10; depth++) {
    const graph = node.graph;
    const link = linkInto(graph, node.id, slot);
    if (Number(link?.origin_id) !== SUBGRAPH_INPUT) return link ? graph.getNodeById(link.origin_id) : null;
    const root = app.rootGraph ?? app.graph;
    const graphs = [root, ...(root.subgraphs?.values?.() ?? [])];
    node = graphs.flatMap((g) => g.nodes ?? g._nodes).find((n) => n.subgraph === graph);
    if (!node) return null;
    slot = link.origin_slot;
  }
  return null;
}

/**
 * The link into an input. Not node.getInputLink, which on a subgraph node looks inside it, nor input.link, of which
 * newer frontends warn.
 * @param {any} graph
 * @param {any} id
 * @param {number} slot
 */
function linkInto(graph, id, slot) {
  const links = graph._links ?? graph.links;
  for (const link of links.values?.() ?? Object.values(links)) {
    if (String(link.target_id) === String(id) && link.target_slot === slot) return link;
  }
  return null;
}

/**
 * The folders that a dataset comes from; null where something else makes it.
 * @param {any} node whose dataset inputs are followed
 * @param {number} depth
 * @returns {Record<string, any>[] | null}
 */
function folders(node, depth = 0) {
  if (node?.comfyClass === "KilnLoadDataset") {
    return [{
      folder: String(valueOf(node, "folder") ?? ""),
      recursive: Boolean(valueOf(node, "recursive")),
      validation_folder: String(valueOf(node, "validation_folder") ?? ""),
      control_folders: String(valueOf(node, "control_folders") ?? ""),
    }];
  }
  const names = (node?.inputs ?? []).map((/** @type {any} */ i) => i.name).filter((/** @type {string} */ n) => n.startsWith("dataset"));
  const found = names.map((/** @type {string} */ n) => before(node, n)).filter(Boolean);
  if (!found.length || depth > 20) return null;
  const all = found.map((/** @type {any} */ n) => folders(n, depth + 1));
  return all.some((/** @type {any} */ f) => !f) ? null : all.flat();
}

/**
 * How the CLIP is loaded that is trained too; null where none is connected.
 * @param {any} node a KilnTrainLora
 */
function textEncoder(node) {
  let loader = before(node, "clip");
  if (!loader) return null;
  const named = (/** @type {any} */ w) => TEXT_FILES.test(String(w.name));
  for (let i = 0; i < 20 && !loader.widgets?.some(named); i++) {
    const further = before(loader, "clip");
    if (!further) break; // the server says that it does not know this one
    loader = further;
  }
  const files = (loader.widgets ?? []).filter(named).map((/** @type {any} */ w) => String(w.value));
  return { loader: String(loader.comfyClass), files };
}

/**
 * @param {any} node a KilnTrainLora
 * @returns {Record<string, any> | string} the question for the server, or the key of a sentence that says what is missing
 */
export function question(node) {
  let loader = before(node, "model");
  for (let i = 0; loader && !(loader.comfyClass in LOADERS) && i < 20; i++) loader = before(loader, "model");
  if (!loader) return "memoryNoModel";
  const data = before(node, "encoded");
  if (data?.comfyClass !== "KilnEncodeDataset") return data ? "memoryOtherData" : "memoryNoData";
  /** @type {Record<string, any>} */
  const config = {};
  const themes = Object.fromEntries(Object.entries(SETTINGS_NODES).map(([theme, kind]) => [kind, theme]));
  for (const settings of chain(node).reverse()) {
    const theme = themes[settings.comfyClass];
    if (!theme) continue;
    // A preset only fills the others
    const named = settings.widgets.filter((/** @type {any} */ w) => w.name && w.name !== "preset" && w.serialize !== false);
    config[theme] = Object.fromEntries(named.map((/** @type {any} */ w) => [w.name, w.value]));
  }
  for (const [name, path] of Object.entries(ON_TRAINER)) {
    const value = valueOf(node, name);
    if (value === undefined || name === "seed") continue; // a seed may be beyond what a number holds here
    if (path.length === 1) config[name] = value;
    else (config[path[0]] ??= {})[name] = value;
  }
  const read = folders(data);
  const text = textEncoder(node);
  return {
    loader: loader.comfyClass,
    file: String(valueOf(loader, /** @type {any} */ (LOADERS)[loader.comfyClass]) ?? ""),
    weight_dtype: String(valueOf(loader, "weight_dtype") ?? "default"),
    config,
    resolution: Math.max(Number(valueOf(data, "resolution")), ...String(valueOf(data, "more_resolutions") ?? "").split(/[^0-9]+/).map(Number)),
    max_frames: Number(valueOf(data, "max_frames") ?? 1),
    fps: Number(valueOf(data, "fps") ?? 16),
    max_upscale: Number(valueOf(data, "max_upscale") ?? 1),
    ...(read ? { datasets: read } : {}),
    ...(text ? { text_encoder: text } : {}),
  };
}

/** @param {number} bytes */
const gib = (bytes) => (bytes / 2 ** 30).toFixed(bytes < 2 ** 30 ? 2 : 1);

/** @param {Record<string, number>} parts bytes by name */
const partsOf = (parts) => Object.entries(parts).map(([name, bytes]) => `${t(`part_${name}`)} ${gib(bytes)}`).join(", ");

class Line {
  /** @param {any} node */
  constructor(node) {
    this.node = node;
    this.element = document.createElement("div");
    this.element.className = "kiln-estimate";
    this.element.style.cssText = "min-height:1.3em;color:var(--descrip-text);overflow:hidden";
    this.seen = ""; // the question at the last look
    this.asked = ""; // the question that the line answers
  }

  look() {
    const { active, state } = this.node.kilnPanel;
    if (active && state.plan) {
      this.asked = ""; // asked anew when the run is over
      this.showRun(state);
      return;
    }
    const now = question(this.node);
    const key = typeof now === "string" ? t(now) : JSON.stringify(now);
    if (key === this.asked) return;
    if (key !== this.seen) {
      this.seen = key; // still being typed or dragged: wait for the next look
      return;
    }
    this.asked = key;
    if (typeof now === "string") this.say(key, "");
    else void this.ask(now, key);
  }

  /** The run's own figure instead of the estimate. @param {import("./api.mjs").RunState} state */
  showRun({ plan, memory }) {
    if (!plan) return;
    const figure = memory ? t("memoryInUse", gib(memory), gib(plan.total)) : t("memoryPlanned", gib(plan.total));
    const text = `${t("memoryRun", figure, plan.level)}.`;
    if (this.element.textContent !== text) this.say(text, partsOf(plan.parts));
  }

  /** @param {Record<string, any>} now @param {string} key */
  async ask(now, key) {
    const found = await estimateMemory(now).catch((error) => ({ error: String(error) }));
    if (key !== this.asked) return;
    if ("error" in found) {
      this.say(t("memoryUnknown", inUsersLanguage(found.error)), "");
      return;
    }
    const needs = t("memoryNeeds", gib(found.total), found.width, found.height, found.frames);
    this.say(`${needs}. ${inUsersLanguage(found.advice)}`, partsOf(found.parts));
  }

  /** @param {string} text @param {string} title */
  say(text, title) {
    this.element.textContent = text;
    this.element.title = title || text;
  }
}

/** @param {any} node a KilnTrainLora that has its panel */
export function addEstimate(node) {
  const line = new Line(node);
  node.kilnPanel.chart.canvas.after(line.element);
  keepWithNode(node, lines, line);
}

export function watchEstimates() {
  setInterval(() => {
    if (document.hidden) return;
    for (const line of lines) if (line.node.graph) line.look();
  }, PERIOD);
}
