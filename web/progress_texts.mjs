// @ts-check
// What our nodes say while and after they work, in the user's language: the server sends English, and the host puts it
// into a widget of the node.
import { onProgressText } from "./api.mjs";
import { findNode, isOurs } from "./find_node.mjs";
import { chinese, inUsersLanguage } from "./texts.mjs";

export const HOSTS_TEXT = "$$node-text-preview"; // the widget in which the host shows a node's progress text
/** @type {Record<string, number>} nodes that show the user's own captions: lines before those */
const OWN_LINES = { KilnCaptionTemplate: 0, KilnCaptionAugment: 1 };

/** @param {string} kind @param {string} text */
function translated(kind, text) {
  const lines = text.split("\n");
  const said = OWN_LINES[kind] ?? lines.length;
  return [...lines.slice(0, said).map(inUsersLanguage), ...lines.slice(said)].join("\n");
}

/** @param {any} app the host's app */
export function translateProgressTexts(app) {
  onProgressText((id, text) => {
    const node = findNode(app, id);
    if (!chinese() || !isOurs(node?.comfyClass)) return;
    const widget = node.widgets?.find((/** @type {any} */ w) => w.name === HOSTS_TEXT);
    if (widget && !widget.hidden) widget.value = translated(node.comfyClass, text);
  });
}
