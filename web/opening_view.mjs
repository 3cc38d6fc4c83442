// @ts-check
// Our templates open at their note, at a scale at which it can be read.

const FRAMES = 90; // about a second and a half: by then the host has chosen its view

/**
 * Frontends from 1.40 on show the whole graph when a template is opened and pass over the view in its file; a graph of
 * twenty nodes is then too small for any text. The place in the file is ours, and is forgotten once it has been used, so
 * that a saved workflow opens as the user left it.
 * @param {any} app
 */
export function openAtTheNote(app) {
  const view = app.graph.extra?.kilnOpening;
  if (!view) return;
  delete app.graph.extra.kilnOpening;
  const { ds } = app.canvas;
  const show = () => {
    ds.scale = view.scale;
    [ds.offset[0], ds.offset[1]] = view.offset;
    app.canvas.setDirty(true, true);
  };
  show();
  let frames = 0;
  const watch = () => {
    if (ds.scale < view.scale && fitted(app)) show(); // the host's doing; whoever zooms or pans is left alone
    else if (++frames < FRAMES) requestAnimationFrame(watch);
  };
  requestAnimationFrame(watch);
}

/** Whether the whole graph lies in the middle of the window, as the host puts it. @param {any} app */
function fitted(app) {
  const { ds, canvas } = app.canvas;
  const nodes = app.graph.nodes ?? app.graph._nodes;
  for (const [axis, length] of [[0, canvas.clientWidth], [1, canvas.clientHeight]]) {
    const from = Math.min(...nodes.map((/** @type {any} */ n) => n.pos[axis]));
    const to = Math.max(...nodes.map((/** @type {any} */ n) => n.pos[axis] + n.size[axis]));
    const middle = length / ds.scale / 2 - ds.offset[axis];
    if (to - from > length / ds.scale || Math.abs((from + to) / 2 - middle) > 60) return false;
  }
  return true;
}
