// @ts-check
// Choosing a preset on a node fills its visible widgets; changing one of those shows "custom".
// What the widgets show is what trains: the preset's name itself is never read by the server.

// The recipes of trainer/presets/*.yaml; a test compares the two.
export const PRESETS = {
  "quick trial": { steps: 500, learning_rate: 1e-4, rank: 32, alpha: 32, batch_size: 1 },
  standard: { steps: 1500, learning_rate: 1e-4, rank: 64, alpha: 32, batch_size: 1 },
  character: { steps: 2000, learning_rate: 1e-4, rank: 96, alpha: 32, batch_size: 1 },
  style: { steps: 1500, learning_rate: 5e-5, rank: 32, alpha: 16, batch_size: 1 },
  "edit from pairs": { steps: 3000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  slider: { steps: 1000, learning_rate: 2e-4, rank: 4, alpha: 1, batch_size: 1 },
  SDXL: { steps: 1500, learning_rate: 1e-4, rank: 32, alpha: 16, batch_size: 1 },
  Flux: { steps: 2000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  "Qwen-Image": { steps: 2000, learning_rate: 1e-4, rank: 16, alpha: 16, batch_size: 1 },
  "Z-Image": { steps: 2000, learning_rate: 1e-4, rank: 32, alpha: 32, batch_size: 1 },
  "LTX-Video": { steps: 1500, learning_rate: 2e-4, rank: 32, alpha: 32, batch_size: 1 },
};

// What of the noise each expert of Wan 2.2 is for: RANGES of trainer/config/presets.py
export const RANGES = {
  "high noise, text to video": { min_timestep: 0.875, max_timestep: 1 },
  "low noise, text to video": { min_timestep: 0, max_timestep: 0.875 },
  "high noise, image to video": { min_timestep: 0.9, max_timestep: 1 },
  "low noise, image to video": { min_timestep: 0, max_timestep: 0.9 },
};

/** @type {Record<string, Record<string, Record<string, number>>>} node -> preset -> widget -> value */
const OF_NODE = { KilnTrainLora: PRESETS, KilnObjectiveSettings: RANGES };

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
 * @param {any} node any node
 * @param {any} app the host's app, to redraw
 */
export function fillFromPreset(node, app) {
  const presets = OF_NODE[node.comfyClass];
  if (presets) fillWidgets(node, app, "preset", presets, "custom");
}

/**
 * A combo that fills other widgets of its node, and shows that it no longer holds when one of these is changed.
 * @param {any} node
 * @param {any} app the host's app, to redraw
 * @param {string} name of the combo
 * @param {Record<string, Record<string, any>>} table choice -> widget -> value; all have the same widgets
 * @param {string} own the choice for all else
 */
export function fillWidgets(node, app, name, table, own) {
  const widget = (/** @type {string} */ name) => node.widgets?.find((/** @type {any} */ w) => w.name === name);
  const combo = widget(name);
  if (!combo) return;
  let filling = false;

  afterChange(combo, (choice) => {
    const values = table[choice];
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

  for (const name of Object.keys(Object.values(table)[0])) {
    const target = widget(name);
    if (!target) continue;
    afterChange(target, (value) => {
      const values = table[combo.value];
      if (filling || !values || values[name] === value) return;
      combo.value = own;
    });
  }
}
