// @ts-check
// Captions as text and as tags: what a change of many would make of them, and what is counted. No page, no server.

/** @typedef {import("./dataset_api.mjs").Item} Item */
/** @typedef {import("./dataset_api.mjs").Figures} Figures */
/** @typedef {"addFirst"|"addLast"|"removeTag"|"replaceText"|"fillMissing"|"setField"} Operation */

const COMMAS = /[,\uff0c\u3001]/; // Chinese keyboards type the wide ones
const COMMON = new Set("a an and at by for from in is it its of on or the this to with".split(" "));

/** @param {string} caption @returns {string[]} */
export const tagsOf = (caption) => caption.split(COMMAS).map((tag) => tag.trim()).filter(Boolean);

/** @param {string} one @param {string} other */
const same = (one, other) => one.toLowerCase() === other.toLowerCase();

/** Words in lower case, without the commonest. @param {string} caption */
const wordsOf = (caption) => (caption.toLowerCase().match(/[\p{L}\p{N}_'-]+/gu) ?? []).filter((word) => !COMMON.has(word));

/**
 * What a change makes of one caption.
 * @param {string} caption
 * @param {Operation} operation
 * @param {string} text tags, or what is looked for
 * @param {string} other what it is replaced by
 * @returns {string}
 */
export function changed(caption, operation, text, other = "") {
  const tags = tagsOf(text);
  switch (operation) {
    case "addFirst":
    case "addLast": {
      const there = tagsOf(caption);
      const fresh = tags.filter((tag) => !there.some((known) => same(known, tag)));
      if (!fresh.length) return caption;
      const parts = caption.trim() ? [caption.trim()] : [];
      return (operation === "addFirst" ? [...fresh, ...parts] : [...parts, ...fresh]).join(", ");
    }
    case "removeTag": {
      const there = tagsOf(caption);
      const kept = there.filter((known) => !tags.some((tag) => same(known, tag)));
      return kept.length === there.length ? caption : kept.join(", ");
    }
    case "replaceText":
      return text ? caption.split(text).join(other) : caption;
    case "fillMissing":
      return caption.trim() ? caption : text.trim();
    default:
      return caption;
  }
}

/**
 * How many captions have each tag, or each word where captions are sentences.
 * @param {Item[]} items
 * @returns {[tag: string, count: number][]} most frequent first
 */
export function tagCounts(items) {
  let lists = items.map((item) => tagsOf(item.caption));
  const spoken = lists.filter((tags) => tags.length);
  const total = spoken.reduce((sum, tags) => sum + tags.length, 0);
  if (spoken.length && total < 2 * spoken.length) lists = items.map((item) => wordsOf(item.caption));
  /** @type {Map<string, number>} */ const counts = new Map();
  for (const tags of lists) {
    for (const tag of new Set(tags.map((each) => each.toLowerCase()))) counts.set(tag, (counts.get(tag) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
}

/**
 * @typedef {Object} Filter
 * @property {string} words each must stand in name, caption or a field
 * @property {string} tag
 * @property {string} show "all", "missing", "warnings", "clips", "stills", "masked", "aside", or "kind:" and a warning's
 * @property {number} below pixels: the square root of the area lies below it; 0 for all sizes
 */

/** The word by which warnings of a kind are known: "like 3" -> "like". @param {string} kind */
export const kindOf = (kind) => (kind.startsWith("caption of") ? "same" : kind.startsWith("caption") ? "length" : kind.split(" ")[0]);

/** Whether it is a clip; one of a single frame is a still. @param {Item} item @param {Figures | undefined} figures */
export const moves = (item, figures) => (figures ? figures.frames > 1 : item.clip);

/**
 * @param {Item} item
 * @param {Figures | undefined} figures
 * @param {Filter} filter
 * @returns {boolean}
 */
export function passes(item, figures, { words, tag, show, below }) {
  if (item.aside !== (show === "aside")) return false;
  if (show === "missing" && item.caption) return false;
  if (show === "model" && !item.by_model.length) return false;
  if (show === "warnings" && !item.error && !figures?.warnings.length) return false;
  if (show === "clips" && !moves(item, figures)) return false;
  if (show === "stills" && moves(item, figures)) return false;
  if (show === "masked" && !item.mask && !figures?.masked) return false;
  if (show.startsWith("kind:") && !figures?.warnings.some((warning) => kindOf(warning.kind) === show.slice(5))) return false;
  if (below && (!figures || Math.sqrt(figures.width * figures.height) >= below)) return false;
  if (tag && !tagsOf(item.caption).some((each) => same(each, tag)) && !wordsOf(item.caption).includes(tag)) return false;
  const text = [item.name, item.caption, ...Object.values(item.fields)].join("\n").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}
