// @ts-check
// Choices of our nodes in Chinese. The value stays English, in workflow files and to the server; frontends ask a combo's
// getOptionLabel for what to show. The value stands behind, since messages and help pages name it.
import { isOurs } from "./find_node.mjs";
import { chinese } from "./texts.mjs";

/** @type {Record<string, Record<string, string>>} combo -> value -> what it is called */
const LABELS = {
  on_bad_file: { stop: "停止", skip: "跳过" },
  masks: { "alpha and masks folder": "透明度与 masks 文件夹", off: "关闭" },
  role: { subject: "主体", regularisation: "正则化", validation: "验证" },
  ready: { subject: "主体", style: "画风", "video motion": "视频动作", tags: "标签", fields: "字段", own: "自己写" },
  write: { caption: "描述", tags: "标签", fields: "字段" },
  which: { without: "没有描述的", "without or by a model": "没有描述或由模型写的", all: "全部" },
  missing: { "drop clause": "去掉该分句", error: "报错", keep: "保留" },
  preset: {
    custom: "自定义",
    "quick trial": "快速试验",
    standard: "标准",
    character: "角色",
    style: "画风",
    "edit from pairs": "成对编辑",
    slider: "滑块",
    "high noise, text to video": "高噪声，文生视频",
    "low noise, text to video": "低噪声，文生视频",
    "high noise, image to video": "高噪声，图生视频",
    "low noise, image to video": "低噪声，图生视频",
  },
  resume: { "new run": "新的训练", latest: "最新" },
  start_from: { none: "无" },
  when_queued: { wait: "等待", "continue in background": "在后台继续" },
  init: { default: "默认", orthogonal: "正交" },
  schedule: {
    constant: "恒定",
    linear: "线性",
    cosine: "余弦",
    cosine_with_restarts: "带重启的余弦",
    polynomial: "多项式",
  },
  timestep_sampling: { auto: "自动", logit_normal: "logit 正态", uniform: "均匀" },
  weighting: { none: "无" },
  size_conditioning: { auto: "自动", item: "样本", latent: "潜变量" },
  result: { last: "最后", best: "最佳" },
  on_divergence: { roll_back: "回退", stop: "停止" },
  level: {
    auto: "自动",
    resident: "常驻显存",
    "checkpoint activations": "重算激活值",
    "stream blocks": "逐块载入",
    "stream from file": "从文件载入",
  },
  base_precision: { "as it is": "原样" },
  first_frame: { none: "无", "first frame": "首帧", "first and last frame": "首帧与尾帧", "first frame in place": "原位首帧" },
  clip_part: { middle: "中间", start: "开头", "several pieces": "几段", "whole in pieces": "整段分块" },
  controls: { auto: "自动", "reference latents": "参考潜变量", "Wan Fun control": "Wan Fun 控制" },
  format: {},
  dtype: { keep: "保持", base: "同基础模型" },
  mode: { stills: "图像", video: "视频" },
  method: { exact: "精确" },
  pipeline: { none: "无" },
  order: { newest: "最新", rating: "评分", validation: "验证损失" },
};
const RESUMED = /^(.+) step (\d+)( best)?$/;

/**
 * @param {string} combo the widget's name
 * @param {string} value
 * @returns {string} what is shown in Chinese
 */
export function optionLabel(combo, value) {
  const name = LABELS[combo.replace(/_\d$/, "")]?.[value];
  if (name) return `${name}（${value}）`;
  const resumed = combo === "resume" ? value.match(RESUMED) : null;
  return resumed ? `${resumed[1]} 第 ${resumed[2]} 步${resumed[3] ? "（最佳）" : ""}` : value;
}

/** Shows the choices of our nodes in Chinese while the host is in Chinese. @param {any} node any node */
export function labelOptions(node) {
  if (!isOurs(node.comfyClass)) return;
  for (const widget of node.widgets ?? []) {
    if (!(widget.name.replace(/_\d$/, "") in LABELS) || !Array.isArray(widget.options?.values)) continue;
    const label = (/** @type {string | null} */ value) => optionLabel(widget.name, String(value ?? ""));
    // In English there is none: with one, a menu on the canvas has no search field
    Object.defineProperty(widget.options, "getOptionLabel", {
      get: () => (chinese() ? label : undefined),
      enumerable: true,
      configurable: true,
    });
  }
}
