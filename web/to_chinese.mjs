// @ts-check
// Sentences of the server in Chinese.
import { CHINESE } from "./server_texts.mjs";

/** @type {{pattern: RegExp, answer: string, weight: number}[]} */
let patterns = [];

/** A template as a pattern: {} matches anything, the rest itself. @param {string} template */
function patternOf(template) {
  const parts = template.split("{}").map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  return new RegExp(`^${parts.join("([\\s\\S]*?)")}$`);
}

function compiled() {
  if (!patterns.length) {
    patterns = Object.entries(CHINESE)
      .map(([english, answer]) => ({ pattern: patternOf(english), answer, weight: english.replaceAll("{}", "").length }))
      .sort((a, b) => b.weight - a.weight); // the template that says most of the sentence itself
  }
  return patterns;
}

/** One sentence, or null where it is not known. @param {string} text @returns {string | null} */
function sentence(text) {
  for (const { pattern, answer } of compiled()) {
    const match = text.match(pattern);
    if (!match) continue;
    let place = 0;
    // What is filled in may be a sentence too
    return answer.replace(/\{(\d*)\}/g, (_, number) => toChinese(match[number === "" ? ++place : Number(number) + 1] ?? ""));
  }
  return null;
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
      if (!/[a-z]{3}/.test(line)) return line;
      const whole = sentence(line.trim());
      if (whole !== null) return whole;
      const listed = line.trim().split(", ").map(sentence);
      if (listed.length > 1 && listed.every((part) => part !== null)) return listed.join("，");
      const parts = line.match(/.*?[.!?](?:\s+(?=[A-Z])|$)|.+$/g) ?? [line];
      return parts.length > 1 ? parts.map((part) => sentence(part.trim()) ?? part).join("") : line;
    })
    .join("\n");
}
