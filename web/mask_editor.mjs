// @ts-check
// The host's mask editor on a picture of ours. It is made for nodes: it shows the picture of a node and, when the user saves, gives
// the node what was painted. So it gets a node that is in no graph, and what it gives back is taken from there.
//
// How it is opened differs: frontend 1.32.9 has a command that looks at the selected node, 1.58.1 looks at ComfyApp's
// clipspace_return_node; 1.49.6 has both.
import { app, ComfyApp } from "../../scripts/app.js";
import { viewAddress } from "./api.mjs";

const COMMAND = "Comfy.MaskEditor.OpenMaskEditor";
const EDITOR = "#maskEditorCanvasContainer"; // in all of them, while it is open
const PERIOD = 150; // milliseconds between two looks
const PATIENCE = 15_000; // milliseconds in which it must have opened

/** @typedef {{filename: string, subfolder: string, type: string}} Place by which the host's own routes show a file */

/** @returns {boolean} whether this frontend has the editor, and not its older one, which works otherwise */
export function canPaint() {
  const { command, setting } = app.extensionManager;
  if (setting.get("Comfy.MaskEditor.UseNewEditor") === false) return false; // frontend 1.32.9
  return typeof ComfyApp?.open_maskeditor === "function" || command.commands.some((/** @type {any} */ each) => each.id === COMMAND);
}

/**
 * Let the user paint.
 * @param {Place} place what is painted on; its transparency is the mask
 * @returns {Promise<Blob | null>} the painted PNG; null when the user saved nothing
 */
export async function paint(place) {
  const node = new /** @type {any} */ (window).LiteGraph.LGraphNode("Mask");
  const picture = new Image();
  picture.src = viewAddress(place);
  let painted = "";
  /** @type {HTMLImageElement[]} */ let shown = [picture];
  Object.defineProperty(node, "imgs", {
    configurable: true,
    get: () => shown,
    set: (/** @type {HTMLImageElement[] | undefined} */ images) => {
      shown = images ?? [];
      if (shown[0]?.src.startsWith("data:")) painted = shown[0].src; // it saves
    },
  });
  node.previewMediaType = "image";
  await open(node);
  const there = () => document.querySelector(EDITOR) !== null;
  await until(there, PATIENCE);
  await until(() => !there(), Infinity);
  if (!painted) return null;
  const bytes = atob(painted.slice(painted.indexOf(",") + 1)); // the host forbids to fetch a data URL
  return new Blob([Uint8Array.from(bytes, (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

/** @param {any} node */
async function open(node) {
  if (typeof ComfyApp?.open_maskeditor === "function") {
    const before = ComfyApp.clipspace_return_node;
    ComfyApp.clipspace_return_node = node;
    ComfyApp.open_maskeditor();
    ComfyApp.clipspace_return_node = before; // node menus look at it
    return;
  }
  const canvas = /** @type {any} */ (app.canvas);
  const selected = canvas.selected_nodes;
  canvas.selected_nodes = { [node.id]: node };
  const opening = app.extensionManager.command.execute(COMMAND);
  canvas.selected_nodes = selected;
  await opening;
}

/** @param {() => boolean} condition @param {number} patience milliseconds */
async function until(condition, patience) {
  const end = performance.now() + patience;
  while (!condition() && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, PERIOD));
}
