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
    if (ds.scale < view.scale && showsAll(app)) show(); // the host's doing; whoever zooms or pans is left alone
    else if (++frames < FRAMES) requestAnimationFrame(watch);
  };
  requestAnimationFrame(watch);
}

/** Whether every node is in the window. @param {any} app */
function showsAll(app) {
  const { ds, canvas } = app.canvas;
  const right = canvas.clientWidth / ds.scale - ds.offset[0];
  const bottom = canvas.clientHeight / ds.scale - ds.offset[1];
  return (app.graph.nodes ?? app.graph._nodes).every(
    (/** @type {any} */ { pos, size }) =>
      pos[0] >= -ds.offset[0] && pos[1] >= -ds.offset[1] && pos[0] + size[0] <= right && pos[1] + size[1] <= bottom,
  );
}
