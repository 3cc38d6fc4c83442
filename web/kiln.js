// @ts-check
// Registers LoRA Kiln's part of the canvas. Only the host's two public modules are imported: bare specifiers such as
// vue are gone from frontends newer than 1.33.
import { app } from "../../scripts/app.js";
import { addStrip, watchStrips } from "./dataset_node.mjs";
import { watchDatasets } from "./dataset_page.mjs";
import { showErrors } from "./errors.mjs";
import { addEstimate, watchEstimates } from "./estimate.mjs";
import { keepNodeTexts } from "./node_texts.mjs";
import { fillFromInstruction } from "./instructions.mjs";
import { labelOptions } from "./option_labels.mjs";
import { openAtTheNote } from "./opening_view.mjs";
import { addPanel, listen, reattach } from "./panel.mjs";
import { fillFromPreset } from "./presets.mjs";
import { followTheme } from "./plot.mjs";
import { translateProgressTexts } from "./progress_texts.mjs";
import { addRunsTab } from "./runs.mjs";
import { colourSockets } from "./socket_colours.mjs";

app.registerExtension({
  name: "LoRA Kiln.Training",
  init() {
    return keepNodeTexts(); // before the host registers the nodes
  },
  setup() {
    listen(app);
    showErrors(app);
    translateProgressTexts(app);
    watchEstimates();
    watchStrips();
    watchDatasets();
    followTheme();
    addRunsTab(app);
    colourSockets(app);
  },
  nodeCreated(/** @type {any} */ node) {
    labelOptions(node);
    if (node.comfyClass === "KilnLoadDataset") addStrip(node, app);
    if (node.comfyClass === "KilnCaptionDataset") fillFromInstruction(node, app);
    fillFromPreset(node, app);
    if (node.comfyClass !== "KilnTrainLora") return;
    addPanel(node, app);
    addEstimate(node);
  },
  afterConfigureGraph() {
    openAtTheNote(app);
    return reattach(app);
  },
});
