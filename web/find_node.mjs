// @ts-check
// Nodes of the graph on screen by the ids that the server uses, and whether a run is theirs.

const OURS = "Kiln"; // how our nodes' ids begin

/** Whether a node is one of this pack's. @param {unknown} id of its class */
export const isOurs = (id) => String(id ?? "").startsWith(OURS);

/**
 * The node that the server means: "3", or "5:3" for node 3 inside subgraph node 5, to any depth. Two subgraph nodes may
 * share what is inside them, so an id is followed down from the root and never made from a node.
 * @param {any} app
 * @param {string} id
 * @returns {any}
 */
export function findNode(app, id) {
  const path = String(id).split(":").map(Number);
  const last = path.pop();
  let graph = app.rootGraph ?? app.graph;
  for (const part of path) graph = graph?.getNodeById(part)?.subgraph;
  return graph?.getNodeById(last);
}

/** Every node, those inside subgraphs too. @param {any} app @returns {any[]} */
export function allNodes(app) {
  const root = app.rootGraph ?? app.graph;
  return [root, ...(root?.subgraphs?.values?.() ?? [])].flatMap((g) => g?.nodes ?? g?._nodes ?? []);
}

/**
 * Have something of a node in a list for as long as the node is there.
 * @template Thing
 * @param {any} node
 * @param {Set<Thing>} list
 * @param {Thing} thing
 */
export function keepWithNode(node, list, thing) {
  list.add(thing);
  const removed = node.onRemoved;
  node.onRemoved = function () {
    list.delete(thing);
    removed?.apply(this, arguments);
  };
}

/**
 * The training node that started a run, if it is in the graph on screen: another graph's node may have the same id.
 * @param {any} app
 * @param {{node: string, workflow: string}} run
 * @returns {any}
 */
export function nodeOf(app, run) {
  const graph = app.rootGraph ?? app.graph;
  return run.workflow && run.workflow === graph?.id ? findNode(app, run.node) : null;
}
