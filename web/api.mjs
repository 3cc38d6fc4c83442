// @ts-check
// The one door between the canvas and the server: every request and every server event of ours passes here.
import { api } from "../../scripts/api.js";

/**
 * @typedef {[step: number, loss: number, smoothed: number, rate: number]} Point
 * @typedef {Object} RunState what the server knows of a run; `points` may be a part of them
 * @property {string} run its id
 * @property {string} node id of the training node, "3:1" inside a subgraph
 * @property {string} workflow id of the graph that holds the node; "" where a program sent the prompt
 * @property {string} name that the user gave it, or ""
 * @property {boolean} background the prompt that started it goes on without it
 * @property {{level: string, total: number, parts: Record<string, number>} | null} plan memory that it needs, in bytes
 * @property {"starting"|"running"|"paused"|"aside"|"done"|"stopped"|"failed"} status
 * @property {number} step
 * @property {number} total
 * @property {number} seconds per step, smoothed
 * @property {number} epoch
 * @property {number|null} memory bytes in use on the device, null on a CPU
 * @property {string} start how the run began, where that may surprise
 * @property {string} offer what the node's `resume` may be set to instead of beginning anew
 * @property {number|null} checkpoint the step that it can be resumed from, when it has ended
 * @property {string} text the last sentence
 * @property {Point[]} points
 * @property {[step: number, loss: number][]} validation all measurements so far
 * @property {number} first index of points[0] among all the points of the run
 * @property {boolean} draws it can be asked for samples
 * @property {import("./samples.mjs").Sample[]|null} samples all so far; null when none are new
 */

const EVENT = "lora_kiln.run";
const OFFER = "lora_kiln.offer";

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

/**
 * What the node's `resume` may be set to instead of what was refused; an empty offer: nothing.
 * @param {(offer: {node: string, workflow: string, text: string, offer: string}) => void} listener
 */
export function onOffer(listener) {
  /** @type {EventTarget} */ (api).addEventListener(OFFER, (event) => listener(/** @type {CustomEvent<any>} */ (event).detail));
}

/** @param {(node: string, text: string) => void} listener of texts that a node sends while it works */
export function onProgressText(listener) {
  /** @type {EventTarget} */ (api).addEventListener("progress_text", (event) => {
    const { nodeId, text } = /** @type {CustomEvent<{nodeId: string, text: string}>} */ (event).detail;
    queueMicrotask(() => listener(nodeId, text)); // after the host's own listener, which may have been added later
  });
}

/** @param {(error: {node: string, kind: string, sentence: string}) => void} listener of errors that end a prompt */
export function onError(listener) {
  /** @type {EventTarget} */ (api).addEventListener("execution_error", (event) => {
    const { node_id, node_type, exception_message } = /** @type {CustomEvent<any>} */ (event).detail;
    listener({ node: String(node_id), kind: String(node_type), sentence: String(exception_message).trim() });
  });
}

/** @param {() => void} listener called when a prompt begins to run */
export function onPromptStart(listener) {
  api.addEventListener("execution_start", () => listener());
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
 * @param {"finish"|"stop"|"pause"|"resume"|"save"|"sample"} command
 * @returns {Promise<string>} the server's sentence when it refused, else ""
 */
export async function command(run, command) {
  const options = { method: "POST", body: "{}", headers: { "Content-Type": "application/json" } };
  const answer = await api.fetchApi(`/lora_kiln/runs/${encodeURIComponent(run)}/${command}`, options);
  if (answer.ok) return "";
  const body = await answer.json().catch(() => ({}));
  return body.error ?? `The server answered ${answer.status}.`;
}

/**
 * @param {Record<string, any>} question see nodes/host/canvas/estimate.py
 * @returns {Promise<{sentence: string, advice: string, total: number, parts: Record<string, number>, width: number, height: number, frames: number} | {error: string}>}
 */
export async function estimateMemory(question) {
  const options = { method: "POST", body: JSON.stringify(question), headers: { "Content-Type": "application/json" } };
  const answer = await api.fetchApi("/lora_kiln/estimate", options);
  return answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
}

/**
 * @typedef {Object} RunRecord a run as the history knows it
 * @property {string} id
 * @property {number} started seconds since 1970
 * @property {string} status running, done, stopped, failed or lost
 * @property {boolean} live this server trains it now
 * @property {number} step
 * @property {number} seconds
 * @property {number} items trained on
 * @property {number} held_out
 * @property {Record<string, any>} config all settings, by theme
 * @property {Record<string, any>} changed those that are not the default
 * @property {number|null} loss mean of the last 50 steps
 * @property {number|null} best_loss lowest validation loss
 * @property {number|null} best_step
 * @property {number} rating 1-5, 0 for none
 * @property {string} notes
 * @property {string} name that the user gave it, or ""
 * @property {string} parent id of the run that it goes on from, or ""
 * @property {string[]} advice
 * @property {string} message why it failed
 * @property {number[]} samples the step of each picture
 * @property {string} lora its path below ComfyUI's folder, "" where it has left none
 * @property {boolean} resumable it has left a checkpoint
 *
 * @typedef {{bytes: number, checkpoints: number, samples: number, lora: boolean, kept: string[]}} Artifacts
 */

/** The server said no: its sentence, and what else it has sent. */
export class ServerError extends Error {
  /** @param {string} sentence @param {number} status @param {any} answer */
  constructor(sentence, status, answer) {
    super(sentence);
    this.status = status;
    this.answer = answer;
  }
}

/**
 * Ask the server.
 * @param {string} path below /lora_kiln
 * @param {any} [body] sent by POST
 * @returns {Promise<any>}
 * @throws {ServerError}
 */
export async function ask(path, body) {
  const options = body && { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return answerOf(path, options);
}

/** Send bytes. @param {string} path below /lora_kiln @param {Blob} body @returns {Promise<any>} @throws {ServerError} as ask */
export const askBytes = (path, body) => answerOf(path, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });

/** @param {string} path @param {RequestInit | undefined} options */
async function answerOf(path, options) {
  const answer = await api.fetchApi(`/lora_kiln${path}`, options);
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ServerError(found.error ?? `The server answered ${answer.status}.`, answer.status, found);
  return found;
}

/** The address of something that an element loads by itself. @param {string} path below /lora_kiln */
export const address = (path) => api.apiURL(`/lora_kiln${path}`);

/** Of a file in one of the host's own folders. @param {{filename: string, subfolder: string, type: string}} place */
export const viewAddress = (place) => api.apiURL(`/view?${new URLSearchParams(place)}`);

/** @param {string} path @param {any} [body] @returns {Promise<any>} about past runs */
const history = (path, body) => ask(`/history${path}`, body);

/** @param {(change: {folder: string, names: string[]}) => void} listener of changes to datasets, by any page */
export function onDataset(listener) {
  /** @type {EventTarget} */ (api).addEventListener("lora_kiln.dataset", (event) =>
    listener(/** @type {CustomEvent<any>} */ (event).detail),
  );
}

/** @param {string} run */
const about = (run) => `/${encodeURIComponent(run)}`;

/**
 * @param {{words: string, order: string, offset: number, limit: number}} query
 * @returns {Promise<{runs: RunRecord[], total: number}>}
 */
export const listRuns = (query) => history(`?${new URLSearchParams(/** @type {any} */ (query))}`);

/** @param {string} run @returns {Promise<{points: Point[], validation: [number, number][]}>} */
export const fetchCurve = (run) => history(`${about(run)}/curve`);

/** @param {string} run @returns {Promise<{workflow?: any, prompt?: any}>} */
export const fetchGraph = (run) => history(`${about(run)}/graph`);

/**
 * @typedef {Object} HardItem
 * @property {number} number among the items that are trained on, from 1
 * @property {string} name
 * @property {number} times the loss of the middle item at the same noise levels
 * @property {number} loss mean of its last draws
 * @property {number} draws
 * @property {boolean} stands_out by the rule of the advice
 * @property {string} picture an address that holds it, or ""
 */

/** @param {string} run @returns {Promise<{high: HardItem[], low: HardItem[]}>} each end first */
export const fetchItems = (run) => history(`${about(run)}/items`);

/** @param {string} run @returns {Promise<Artifacts>} what deleting it would remove and keep */
export const fetchLeavings = (run) => history(`${about(run)}/leavings`);

/** @param {string} run @param {{rating?: number, notes?: string, name?: string}} opinion @returns {Promise<RunRecord>} */
export const rateRun = (run, opinion) => history(`${about(run)}/rate`, opinion);

/** @param {string} run @returns {Promise<Artifacts>} what went */
export const deleteRun = (run) => history(`${about(run)}/delete`, {});

/** @param {string} run @param {number} place @returns {string} address of a small picture */
export const sampleAddress = (run, place) => api.apiURL(`/lora_kiln/history${about(run)}/sample/${place}`);
