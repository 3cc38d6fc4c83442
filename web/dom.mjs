// @ts-check
// Making elements.

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any>} attributes "text" is the content, "on..." a listener, true a bare attribute; null, false
 *     and undefined are left out
 * @param {...(Node | string | null | false | undefined)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child) made.append(child);
  return made;
}

/** Load our style sheets once. */
export function addStyle() {
  if (document.querySelector("link[data-kiln]")) return;
  for (const sheet of ["./kiln.css", "./dataset.css"]) {
    const href = new URL(sheet, import.meta.url).href;
    document.head.append(make("link", { rel: "stylesheet", href, "data-kiln": true }));
  }
}
