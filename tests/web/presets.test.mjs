// Presets fill the widgets of their node, and one of those that is changed by hand shows "custom".
import assert from "node:assert/strict";
import { test } from "node:test";

import { fillFromPreset } from "../../web/presets.mjs";

test("a range preset fills the widgets of Objective Settings", () => {
  const widgets = ["preset", "min_timestep", "max_timestep"].map((name) => ({ name, value: 0, callback: null }));
  const [preset, low, high] = /** @type {any[]} */ (widgets);
  fillFromPreset({ comfyClass: "KilnObjectiveSettings", widgets }, { graph: null });
  preset.value = "high noise, image to video";
  preset.callback(preset.value);
  assert.deepEqual([low.value, high.value], [0.9, 1]);
  low.value = 0.5;
  low.callback(0.5);
  assert.deepEqual([preset.value, high.value], ["custom", 1]);
});
