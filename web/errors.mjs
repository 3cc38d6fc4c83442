// @ts-check
// What went wrong on one of our nodes, where the eye is: on the node and in a toast. Frontends 1.49 and 1.58 show the
// sentence itself only behind "View details".
import { onError, onPromptStart } from "./api.mjs";
import { make } from "./dom.mjs";
import { allNodes, findNode, isOurs } from "./find_node.mjs";
import { followNodeWidth } from "./panel.mjs";
import { inUsersLanguage } from "./texts.mjs";

const NAME = "kiln_error";
const HEIGHT = 64;

/** @param {any} node @param {string} sentence */
function show(node, sentence) {
  if (node.kilnPanel) {
    node.kilnPanel.say(sentence, true);
    return;
  }
  hide(node);
  const style = `height:${HEIGHT}px;overflow:auto;box-sizing:border-box;padding:2px 6px;font-size:11px;color:var(--error-text)`;
  const text = make("div", { class: NAME, role: "alert", style, title: sentence, text: sentence });
  const height = node.size[1];
  const widget = node.addDOMWidget(NAME, NAME, text, { serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT });
  widget.serialize = false;
  widget.kilnHeight = height; // of the node before
  followNodeWidth(widget);
  const needed = node.computeSize()[1];
  if (needed > height) node.setSize([node.size[0], needed]);
}

/** @param {any} node */
function hide(node) {
  if (node.kilnPanel) {
    if (node.kilnPanel.wrong) node.kilnPanel.say("");
    return;
  }
  const place = node.widgets?.findIndex((/** @type {any} */ w) => w.name === NAME) ?? -1;
  if (place < 0) return;
  const [widget] = node.widgets.splice(place, 1);
  widget.onRemove?.();
  node.setSize([node.size[0], widget.kilnHeight]);
}

/** @param {any} app */
export function showErrors(app) {
  onPromptStart(() => {
    for (const node of allNodes(app)) hide(node);
  });
  onError(({ node: id, kind, sentence: said }) => {
    if (!isOurs(kind)) return;
    const sentence = inUsersLanguage(said);
    const node = findNode(app, id);
    const here = node?.comfyClass === kind; // or in the graph of another tab
    if (here) show(node, sentence);
    app.extensionManager.toast.add({ severity: "error", summary: here ? node.title : "LoRA Kiln", detail: sentence, life: 15000 });
  });
}
