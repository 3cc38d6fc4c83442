// @ts-check
// The one door between the canvas and the server: every request and every server event of ours passes here.
import { api } from "../../scripts/api.js";

/**
 * @typedef {[step: number, loss: number, smoothed: number, rate: number]} Point
 * @typedef {Object} RunState what the server knows of a run; `points` may be a part of them
 * @property {string} run its id
 * @property {string} node id of the training node, "3:1" inside a subgraph
 * @property {"starting"|"running"|"paused"|"aside"|"done"|"stopped"|"failed"} status
 * @property {number} step
 * @property {number} total
 * @property {number} seconds per step, smoothed
 * @property {number} epoch
 * @property {number|null} memory bytes in use on the device, null on a CPU
 * @property {string} text the last sentence
 * @property {Point[]} points
 * @property {[step: number, loss: number][]} validation all measurements so far
 * @property {number} first index of points[0] among all the points of the run
 * @property {boolean} draws it can be asked for samples
 * @property {import("./samples.mjs").Sample[]|null} samples all so far; null when none are new
 */

const EVENT = "lora_kiln.run";

/**
 * Every message about a run, as it happens. Points sent while nobody listens are lost: fetch the run for the rest.
 * @param {(state: RunState) => void} listener
 */
export function onRun(listener) {
  // The host's type for events lists its own names only
  /** @type {EventTarget} */ (api).addEventListener(EVENT, (event) =>
    listener(/** @type {CustomEvent<RunState>} */ (event).detail),
  );
}

/** @param {() => void} listener called when the server is back after it went away */
export function onReconnected(listener) {
  api.addEventListener("reconnected", listener);
}

/** @returns {Promise<RunState[]>} runs of this server process, newest last, without their points */
export async function fetchRuns() {
  const answer = await api.fetchApi("/lora_kiln/runs");
  return answer.ok ? (await answer.json()).runs : [];
}

/**
 * @param {string} run
 * @returns {Promise<RunState|null>} with all points (thinned out by the server beyond some thousands)
 */
export async function fetchRun(run) {
  const answer = await api.fetchApi(`/lora_kiln/runs/${encodeURIComponent(run)}`);
  return answer.ok ? await answer.json() : null;
}

/**
 * @param {string} run
 * @param {import("./samples.mjs").Sample} sample
 * @param {"png"|"jpg"|"webp"} kind the picture, a small copy of it, or the moving one
 */
export function sampleUrl(run, sample, kind) {
  return api.apiURL(`/lora_kiln/runs/${encodeURIComponent(run)}/samples/${sample.step}-${sample.place}.${kind}`);
}

/**
 * Tell a run something.
 * @param {string} run
 * @param {"stop"|"pause"|"resume"|"save"|"sample"} command
 * @returns {Promise<string>} the server's sentence when it refused, else ""
 */
export async function command(run, command) {
  const answer = await api.fetchApi(`/lora_kiln/runs/${encodeURIComponent(run)}/${command}`, { method: "POST" });
  if (answer.ok) return "";
  const body = await answer.json().catch(() => ({}));
  return body.error ?? `The server answered ${answer.status}.`;
}
