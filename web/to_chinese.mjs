// @ts-check
// Sentences of the server in Chinese.
import { CHINESE } from "./server_texts.mjs";

/** @type {{pattern: RegExp, answer: string, first: number, weight: number}[]} */
let patterns = [];
const WORDS = /[a-z]{3}/;

/** Whether a template goes on from what stands before it: "; {} layers fit nothing". @param {string} template */
const goesOn = (template) => /^[ ,;]/.test(template);

/**
 * A template as a pattern: {} matches anything, the rest itself. Before one that goes on, anything may stand.
 * @param {string} template
 */
function patternOf(template) {
  const parts = template.trim().split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const anything = "([\\s\\S]*?)";
  return new RegExp(`^${goesOn(template) ? `${anything}\\s*` : ""}${parts.join(anything)}$`);
}

function compiled() {
  if (!patterns.length) {
    patterns = Object.entries(CHINESE)
      .map(([english, answer]) => ({
        pattern: patternOf(english),
        answer: goesOn(english) ? `{-1}${answer}` : answer,
        first: goesOn(english) ? 2 : 1, // the group of the first {}
        weight: english.replaceAll("{}", "").length,
      }))
      .sort((a, b) => b.weight - a.weight); // the template that says most of the sentence itself
  }
  return patterns;
}

/** One sentence, or null where it is not known. @param {string} text @returns {string | null} */
function sentence(text) {
  for (const { pattern, answer, first } of compiled()) {
    const match = text.match(pattern);
    if (!match) continue;
    let place = first;
    // What is filled in may be a sentence too
    return answer.replace(/\{(-?\d*)\}/g, (_, number) => toChinese(match[number === "" ? place++ : Number(number) + first] ?? ""));
  }
  return null;
}

/** Several reasons or figures in a line, or null where one of them is not known. @param {string} text */
function listed(text) {
  for (const [mark, chinese] of [["; ", "；"], [", ", "，"]]) {
    const parts = text.split(mark);
    if (parts.length === 1) continue;
    const known = parts.map((part, place) => {
      const behind = place ? sentence(mark + part) : null; // a template may begin with the mark
      if (behind?.startsWith(chinese)) return behind.slice(1);
      return WORDS.test(part) ? sentence(part) : part;
    });
    if (WORDS.test(parts[0]) && known.every((part) => part !== null)) return known.join(chinese);
  }
  return null;
}

/** A sentence, also one that is known without its full stop. @param {string} text */
function ended(text) {
  const known = sentence(text);
  if (known !== null || !text.endsWith(".")) return known;
  const open = sentence(text.slice(0, -1));
  return open === null ? null : `${open}。`;
}

/**
 * Line by line, and in a line sentence by sentence where the whole is not known.
 * @param {string} text
 * @returns {string}
 */
export function toChinese(text) {
  return text
    .split("\n")
    .map((line) => {
      if (!WORDS.test(line)) return line;
      const whole = listed(line.trim()) ?? sentence(line.trim());
      if (whole !== null) return whole;
      const parts = line.match(/.*?[.!?](?:\s+(?=[A-Z])|$)|.+$/g) ?? [line];
      return parts.length > 1 ? parts.map((part) => ended(part.trim()) ?? part).join("") : line;
    })
    .join("\n");
}
