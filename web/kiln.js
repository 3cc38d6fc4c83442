// @ts-check
// Registers LoRA Kiln's part of the canvas. Only the host's two public modules are imported: bare specifiers such as
// vue are gone from frontends newer than 1.33.
import { app } from "../../scripts/app.js";
import { addPanel, listen, reattach } from "./panel.mjs";
import { fillFromPreset } from "./presets.mjs";
import { addRunsTab } from "./runs.mjs";

app.registerExtension({
  name: "LoRA Kiln.Training",
  setup() {
    listen(app);
    addRunsTab(app);
  },
  nodeCreated(/** @type {any} */ node) {
    if (node.comfyClass !== "KilnTrainLora") return;
    fillFromPreset(node, app);
    addPanel(node, app);
  },
  afterConfigureGraph() {
    return reattach(app);
  },
});
