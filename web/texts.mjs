// @ts-check
// The panel's own words, in English and Chinese. Node names and tooltips are in locales/, which the host reads.
import { app } from "../../scripts/app.js";
import { DATASET } from "./texts_dataset.mjs";
import { RUNS } from "./texts_runs.mjs";
import { toChinese } from "./to_chinese.mjs";

/** @type {Record<string, [string, string]>} */
const TEXTS = {
  ...DATASET,
  ...RUNS,
  chart: ["Loss over steps", "损失随步数变化"],
  chartHelp: [
    "Thin: loss of each step. Thick: its smoothed mean. Rings: validation loss. Dashed: learning rate. Ctrl or Shift + wheel zooms, dragging moves, double click shows all. Keys: + - 0 zoom, arrows read values.",
    "细线：每一步的损失。粗线：平滑后的均值。圆圈：验证损失。虚线：学习率。Ctrl 或 Shift + 滚轮缩放，拖动平移，双击显示全部。按键：+ - 0 缩放，方向键读取数值。",
  ],
  empty: ["The loss will appear here while training.", "训练时损失曲线会显示在这里。"],
  pause: ["Pause", "暂停"],
  pauseHelp: ["Step aside after the current step; the device is free until you resume.", "当前步结束后让出设备，直到继续。"],
  resume: ["Resume", "继续"],
  resumeHelp: ["Go on exactly where it stands.", "从当前位置继续训练。"],
  curve_raw: ["loss", "损失"],
  curve_smooth: ["smoothed", "平滑"],
  curve_rate: ["learning rate", "学习率"],
  curve_validation: ["validation", "验证"],
  save: ["Save", "保存"],
  saveHelp: ["Write a checkpoint after the current step.", "当前步结束后写入检查点。"],
  sample: ["Sample", "绘制"],
  sampleHelp: ["Draw samples after the current step; training then goes on.", "当前步结束后绘制样张，然后继续训练。"],
  sampleNeeds: ["Connect Sample Settings to draw samples.", "连接“样张设置”节点后才能绘制样张。"],
  samples: ["Samples by step", "各步的样张"],
  step: ["step", "步数"],
  promptLeftOut: ["its prompt was not kept (embed_metadata off)", "未保留提示词（embed_metadata 已关闭）"],
  withoutLora: ["without the LoRA", "不带 LoRA"],
  base: ["base", "原模型"],
  close: ["Close", "关闭"],
  finish: ["Finish", "提前完成"],
  finishHelp: [
    "End after the current step and go on with what is learned: the nodes behind use it. Asks first.",
    "当前步结束后完成训练，并使用已学到的结果继续运行后面的节点。会先询问。",
  ],
  finishAsk: [
    "Finish at step {0} of {1}? The LoRA as it is now goes on to the nodes behind, which run at once.",
    "在第 {0} 步（共 {1} 步）完成？目前的 LoRA 会交给后面的节点，它们随即运行。",
  ],
  finishAskBackground: [
    "Finish at step {0} of {1}? The LoRA as it is now is saved in output/loras; queue the graph again for the nodes behind.",
    "在第 {0} 步（共 {1} 步）完成？目前的 LoRA 会保存到 output/loras；再次运行工作流即可执行后面的节点。",
  ],
  reallyFinish: ["Finish", "完成"],
  stopInstead: ["Stop, keep a checkpoint", "停止并保留检查点"],
  keepTraining: ["Keep training", "继续训练"],
  stop: ["Stop", "停止"],
  stopHelp: [
    "End after the current step and keep a checkpoint to resume from; the nodes behind do not run.",
    "当前步结束后停止并保留检查点，以后可从此处恢复；后面的节点不会运行。",
  ],
  resumeHere: ["Resume {0} / {1}", "恢复训练 {0} / {1}"],
  resumeHereHelp: ["Queue this graph to go on from the newest checkpoint of the run {0}.", "运行此工作流，从训练记录 {0} 最新的检查点继续。"],
  goOnAnyway: ["Go on from step {0} anyway", "仍从第 {0} 步继续"],
  goOnAnywayHelp: ["Queue this graph with resume set to: {0}. A new run begins from that checkpoint.", "以 resume = {0} 运行此工作流：从该检查点开始新的训练。"],
  log: ["log", "对数"],
  logHelp: ["Logarithmic loss axis.", "损失轴使用对数刻度。"],
  memoryNeeds: ["Memory: about {0} GiB for items up to {1} x {2}, {3} frames", "显存：约 {0} GiB（样本最大 {1} x {2}，{3} 帧）"],
  memoryNoModel: [
    "Memory: connect a Load Diffusion Model or Load Checkpoint node to see it beforehand.",
    "显存：连接“UNet 加载器”或“Checkpoint 加载器”节点后可预先估算。",
  ],
  memoryOtherData: [
    "Memory: said when the run begins; beforehand, for what Encode Dataset makes.",
    "显存：训练开始时显示；只有来自“编码数据集”的数据可预先估算。",
  ],
  memoryNoData: ["Memory: connect Encode Dataset to see it beforehand.", "显存：连接“编码数据集”节点后可预先估算。"],
  memoryRun: ["Memory of this run: {0} at level {1}", "本次训练显存：{0}，级别 {1}"],
  memoryPlanned: ["about {0} GiB", "约 {0} GiB"],
  memoryInUse: ["{0} GiB in use, {1} planned", "已用 {0} GiB，计划 {1}"],
  memoryUnknown: ["Memory: {0}", "显存：{0}"],
  part_weights: ["weights", "权重"],
  part_adapter: ["adapter", "适配器"],
  part_gradients: ["gradients", "梯度"],
  part_optimizer: ["optimizer", "优化器"],
  part_activations: ["activations", "激活值"],
  epoch: ["epoch", "轮次"],
  left: ["{0} left", "剩余 {0}"],
  perSecond: ["steps/s", "步/秒"],
  secondsPer: ["s/step", "秒/步"],
  status_starting: ["starting", "启动中"],
  status_running: ["training", "训练中"],
  status_paused: ["paused", "已暂停"],
  status_aside: ["waiting for the device", "等待设备"],
  status_done: ["done", "完成"],
  status_stopped: ["stopped", "已停止"],
  status_failed: ["failed", "失败"],
};

/** @returns {boolean} whether the host's settings say Chinese */
export function chinese() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language ?? "en";
  return String(language).startsWith("zh");
}

/**
 * @param {string} key
 * @param {...(string|number)} values for {0}, {1} ...
 * @returns {string} in the language of the host's settings
 */
export function t(key, ...values) {
  const [english, other] = TEXTS[key] ?? [key, key];
  return (chinese() ? other : english).replace(/\{(\d)\}/g, (_, place) => String(values[place] ?? ""));
}

/** What the server says, which is English, for the user. @param {string} text */
export function inUsersLanguage(text) {
  return chinese() ? toChinese(text) : text;
}
