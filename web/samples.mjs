// @ts-check
// How a run's samples are laid out. No drawing here.

/**
 * @typedef {Object} Sample one picture that was drawn during a run
 * @property {number} step 0 is the model without the LoRA
 * @property {number} place among the pictures of its step
 * @property {string} prompt
 * @property {boolean} animated a moving picture lies beside the still
 */

/**
 * Rows by place (a prompt, or one of its seeds), columns by step; what was not drawn is null.
 * @param {Sample[]} samples in any order
 * @returns {{steps: number[], rows: {prompt: string, cells: (Sample|null)[]}[]}}
 */
export function layOut(samples) {
  const steps = [...new Set(samples.map((s) => s.step))].sort((a, b) => a - b);
  const places = [...new Set(samples.map((s) => s.place))].sort((a, b) => a - b);
  const rows = places.map((place) => {
    const cells = steps.map((step) => samples.find((s) => s.step === step && s.place === place) ?? null);
    return { prompt: cells.findLast((cell) => cell)?.prompt ?? "", cells };
  });
  return { steps, rows };
}

/**
 * The nearest picture in a direction, or null at the edge.
 * @param {Sample[]} samples
 * @param {Sample} from
 * @param {"ArrowLeft"|"ArrowRight"|"ArrowUp"|"ArrowDown"} key
 * @returns {Sample|null}
 */
export function neighbour(samples, from, key) {
  const along = key === "ArrowLeft" || key === "ArrowRight" ? "step" : "place";
  const across = along === "step" ? "place" : "step";
  const sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  const ahead = samples.filter((s) => s[across] === from[across] && (s[along] - from[along]) * sign > 0);
  return ahead.sort((a, b) => (a[along] - b[along]) * sign)[0] ?? null;
}
