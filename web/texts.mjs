// @ts-check
// The panel's own words, in English and Chinese. Node names and tooltips are in locales/, which the host reads.
import { app } from "../../scripts/app.js";

/** @type {Record<string, [string, string]>} */
const TEXTS = {
  chart: ["Loss over steps", "损失随步数变化"],
  chartHelp: [
    "Light: loss of each step. Dark: its smoothed mean. Green: validation loss. Dashed: learning rate. Ctrl or Shift + wheel zooms, double click shows all; keys + - 0.",
    "浅色：每一步的损失。深色：平滑后的均值。绿色：验证损失。虚线：学习率。Ctrl 或 Shift + 滚轮缩放，双击显示全部；按键 + - 0。",
  ],
  empty: ["The loss will appear here while training.", "训练时损失曲线会显示在这里。"],
  pause: ["Pause", "暂停"],
  pauseHelp: ["Step aside after the current step; the device is free until you resume.", "当前步结束后让出设备，直到继续。"],
  resume: ["Resume", "继续"],
  resumeHelp: ["Go on exactly where it stands.", "从当前位置继续训练。"],
  save: ["Save now", "立即保存"],
  saveHelp: ["Write a checkpoint after the current step.", "当前步结束后写入检查点。"],
  sample: ["Sample now", "立即绘制"],
  sampleHelp: ["Draw samples after the current step; training then goes on.", "当前步结束后绘制样张，然后继续训练。"],
  sampleNeeds: ["Connect Sample Settings to draw samples.", "连接“样张设置”节点后才能绘制样张。"],
  samples: ["Samples by step", "各步的样张"],
  step: ["step", "步数"],
  withoutLora: ["without the LoRA", "不带 LoRA"],
  base: ["base", "原模型"],
  close: ["Close", "关闭"],
  stop: ["Finish", "结束"],
  stopHelp: [
    "End after the current step and go on with what is learned: the nodes behind use it.",
    "当前步结束后停止训练，并使用已学到的结果继续运行后面的节点。",
  ],
  log: ["log", "对数"],
  logHelp: ["Logarithmic loss axis.", "损失轴使用对数刻度。"],
  epoch: ["epoch", "轮次"],
  left: ["left", "剩余"],
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

/**
 * @param {string} key
 * @returns {string} in the language of the host's settings
 */
export function t(key) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? navigator.language ?? "en";
  const [english, chinese] = TEXTS[key] ?? [key, key];
  return String(language).startsWith("zh") ? chinese : english;
}
