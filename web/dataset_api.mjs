// @ts-check
// What the dataset page and Load Dataset ask of the server. All of it passes through api.mjs.
import { address, ask, askBytes, ServerError } from "./api.mjs";

/**
 * @typedef {Object} Item as its files are now
 * @property {string} name relative to the folder, with forward slashes
 * @property {string} caption
 * @property {Record<string, string>} fields
 * @property {string} version of all that is said of it; a change names the version that its author saw
 * @property {number} bytes
 * @property {number} stamp milliseconds since 1970
 * @property {boolean} clip
 * @property {boolean} mask a mask file belongs to it
 * @property {number} mask_stamp milliseconds since 1970: when that file was changed; 0 without one
 * @property {boolean} aside set aside: not read
 * @property {string} error why its sidecars cannot be read
 * @property {string[]} by_model what a model wrote and nobody has edited: "caption", names of fields
 *
 * @typedef {{kind: string, text: string, severe: boolean}} Warning
 * @typedef {Object} Figures what was measured of an item
 * @property {number} width
 * @property {number} height
 * @property {number} frames
 * @property {number} seconds
 * @property {string} bucket
 * @property {number} lost share 0-1 that its bucket crops away
 * @property {number} repeats
 * @property {boolean} masked
 * @property {Warning[]} warnings
 *
 * @typedef {{id: string, what: string, count: number, time: number}} Undo
 * @typedef {{folder: string, recursive: boolean, also: string, controls: string, masks: boolean}} Part which items of a folder, as on Load Dataset
 * @typedef {{resolution: number, max_frames: number, fps: number}} Sizes of Encode Dataset
 * @typedef {{folder: string, writable: boolean, items: Item[], undo: Undo | null}} Listing
 * @typedef {{ready: boolean, done?: number, total?: number, error?: string, items?: Record<string, Figures>,
 *   bad?: Record<string, string>, controls?: string[], skipped?: string[], remarks?: string[]}} Measured
 * @typedef {{ready: boolean, done?: number, total?: number, error?: string, skipped?: string[], remarks?: string[], count?: number,
 *   clips?: number, without?: number}} Told
 * @typedef {{changed: boolean, files: number, items: Item[], undo: Undo | null}} Changed
 * @typedef {{name: string, version: string, caption?: string, fields?: Record<string, string>}} Change
 * @typedef {{missing?: string, count: number, clips: number, without: number, by_model: number, aside: number,
 *   first: {name: string, stamp: number, clip: boolean}[]}} Glance
 * @typedef {{taken: string[], clashing: string[], refused: [string, string][], renamed: Record<string, string>,
 *   exists: boolean, limit?: number, token?: string}} Answer what becomes of files that are to be uploaded
 * @typedef {"refuse"|"replace"|"keep both"|"skip"} Clash
 */

const BASE = "/dataset";

/** @param {Record<string, any>} values */
function query(values) {
  const plain = Object.entries(values).map(([key, value]) => [key, value === true ? "1" : value === false ? "0" : String(value)]);
  return `?${new URLSearchParams(plain)}`;
}

/** @param {Part} part */
const body = ({ folder, recursive, also, controls, masks }) => ({ folder, recursive: recursive ? "1" : "0", also, controls, masks: masks ? "1" : "0" });

/** @returns {Promise<[name: string, items: number][]>} folders below ComfyUI/input that hold pictures or clips */
export const listFolders = async () => (await ask(`${BASE}/folders`)).folders;

/** @param {Part} part @returns {Promise<Glance>} what the node shows */
export const glance = (part) => ask(`${BASE}/glance${query(part)}`);

/** @param {Part} part @param {number} [most] only the first @returns {Promise<Listing>} */
export const listItems = (part, most) => ask(`${BASE}/items${query(most ? { ...part, most } : part)}`);

/** @param {Part} part @param {Sizes} sizes @returns {Promise<Measured>} ask again until it is ready */
export const measured = (part, sizes) => ask(`${BASE}/figures${query({ ...part, ...sizes })}`);

/** @param {Part} part @returns {Promise<Told>} what the node says of it; ask again until it is ready */
export const leftOut = (part) => ask(`${BASE}/left_out${query(part)}`);

/** @param {Part} part @param {string} what @param {Change[]} changes @returns {Promise<Changed>} */
export const writeChanges = (part, what, changes) => ask(`${BASE}/write`, { ...body(part), what, changes });

/** @param {Part} part @param {Item[]} items */
const seen = (part, items) => ({ ...body(part), items: items.map(({ name, version }) => ({ name, version })) });

/** @param {Part} part @param {Item[]} items @returns {Promise<Changed>} */
export const setAside = (part, items) => ask(`${BASE}/set_aside`, seen(part, items));

/** @param {Part} part @param {Item[]} items @returns {Promise<Changed>} */
export const bringBack = (part, items) => ask(`${BASE}/bring_back`, seen(part, items));

/** @param {Part} part @param {Item[]} items @returns {Promise<Changed>} */
export const deleteItems = (part, items) => ask(`${BASE}/delete`, { ...seen(part, items), sure: items.length });

/** @param {Part} part @param {string} id @returns {Promise<Changed>} */
export const undoChange = (part, id) => ask(`${BASE}/undo`, { ...body(part), id });

/** @param {string} folder @param {{name: string, stamp: number}} item @param {number} side pixels */
export const thumbnail = (folder, { name, stamp }, side) => address(`${BASE}/thumbnail${query({ folder, name, stamp, side })}`);

/** The picture or clip itself. @param {string} folder @param {{name: string, stamp: number}} item */
export const whole = (folder, { name, stamp }) => address(`${BASE}/file${query({ folder, name, stamp })}`);

/** Red where the loss does not count. @param {string} folder @param {{name: string, stamp: number, mask_stamp: number}} item */
export const overlay = (folder, { name, stamp, mask_stamp: mask }) => address(`${BASE}/overlay${query({ folder, name, stamp, mask })}`);

/** What the mask of an item is painted on. @param {Part} part @param {Item} item @returns {Promise<import("./mask_editor.mjs").Place>} */
export const maskSheet = (part, { name }) => ask(`${BASE}/mask/sheet`, { ...body(part), name });

/** @param {Part} part @param {Item} item @param {Blob} painted a PNG @returns {Promise<Changed>} */
export const writeMask = (part, { name, version }, painted) => askBytes(`${BASE}/mask${query({ ...part, name, version })}`, painted);

/** @param {string} folder @param {string[]} names @returns {Promise<Answer>} */
export const lookOver = (folder, names) => ask(`${BASE}/upload/look`, { folder, names });

/** @param {string} folder @param {string} token @param {Clash} clash @returns {Promise<{written: number}>} */
export const unpack = (folder, token, clash) => ask(`${BASE}/upload/unpack`, { folder, token, clash });

/**
 * @param {"file"|"archive"} what
 * @param {Record<string, string>} where folder, and name and clash of a file
 * @param {Blob} file
 * @param {(sent: number) => void} onProgress bytes
 * @param {AbortSignal} signal
 * @returns {Promise<any>} the server's answer
 */
export function upload(what, where, file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much is sent
    const stop = () => request.abort();
    request.open("POST", address(`${BASE}/upload/${what}${query(where)}`));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => onProgress(event.loaded);
    request.onloadend = () => {
      signal.removeEventListener("abort", stop);
      /** @type {any} */ let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        answer = {}; // no answer, or one that is not ours
      }
      if (request.status === 200) resolve(answer);
      else reject(new ServerError(answer.error ?? `The server answered ${request.status}.`, request.status, answer));
    };
    signal.addEventListener("abort", stop);
    request.send(file);
  });
}
