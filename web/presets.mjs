// @ts-check
// Choosing a preset on the training node fills its visible widgets; changing one of those shows "custom".
// What the widgets show is what trains: the preset's name itself is never read by the server.

// The recipes of trainer/presets/*.yaml; a test compares the two.
export const PRESETS = {
  "quick trial": { steps: 500, learning_rate: 1e-4, rank: 32, alpha: 32, batch_size: 1 },
  standard: { steps: 1500, learning_rate: 1e-4, rank: 64, alpha: 32, batch_size: 1 },
  character: { steps: 2000, learning_rate: 1e-4, rank: 96, alpha: 32, batch_size: 1 },
  style: { steps: 1500, learning_rate: 5e-5, rank: 32, alpha: 16, batch_size: 1 },
  "edit from pairs": { steps: 3000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  SDXL: { steps: 1500, learning_rate: 1e-4, rank: 32, alpha: 16, batch_size: 1 },
  Flux: { steps: 2000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  "Qwen-Image": { steps: 2000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  "Z-Image": { steps: 2000, learning_rate: 1e-4, rank: 32, alpha: 32, batch_size: 1 },
  "LTX-Video": { steps: 1500, learning_rate: 2e-4, rank: 32, alpha: 32, batch_size: 1 },
};

/**
 * Chain a function behind a widget's own callback, which other extensions may have set.
 * @param {any} widget
 * @param {(value: any) => void} then
 */
function afterChange(widget, then) {
  const before = widget.callback;
  widget.callback = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    then(args[0]);
    return result;
  };
}

/**
 * @param {any} node a KilnTrainLora node
 * @param {any} app the host's app, to redraw
 */
export function fillFromPreset(node, app) {
  const widget = (/** @type {string} */ name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);
  const preset = widget("preset");
  if (!preset) return;
  let filling = false;

  afterChange(preset, (choice) => {
    const values = PRESETS[/** @type {keyof typeof PRESETS} */ (choice)];
    if (!values) return;
    filling = true;
    for (const [name, value] of Object.entries(values)) {
      const target = widget(name);
      if (!target) continue;
      target.value = value;
      target.callback?.(value);
    }
    filling = false;
    app.graph?.setDirtyCanvas(true, true);
  });

  for (const name of Object.keys(PRESETS.standard)) {
    const target = widget(name);
    if (!target) continue;
    afterChange(target, (value) => {
      const values = PRESETS[/** @type {keyof typeof PRESETS} */ (preset.value)];
      if (filling || !values || values[/** @type {keyof typeof values} */ (name)] === value) return;
      preset.value = "custom";
    });
  }
}
