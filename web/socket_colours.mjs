// @ts-check
// Colours of our own sockets and links. The canvas reads them from LiteGraph's tables; Nodes 2.0 from the CSS variables
// in kiln.css, which the host's colour palettes leave alone.

const COLOURS = {
  KILN_DATASET: "#7fb069",
  KILN_ENCODED: "#3fa796",
  KILN_SETTINGS: "#d9a441",
  KILN_RUN: "#c77dba",
  LORA_MODEL: "#e07a5f",
};

/** Give the canvas the colours. @param {any} app */
export function colourSockets(app) {
  const { canvas } = app;
  Object.assign(canvas.default_connection_color_byType, COLOURS);
  Object.assign(canvas.constructor.link_type_colors, COLOURS);
}
