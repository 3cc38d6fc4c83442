// @ts-check
// Keeps the translated names and tooltips of our nodes. Frontend 1.32.9 takes in the translations of node packs first and
// then loads the language itself, which replaces them: nodes of packs stay English. Newer frontends put them back
// themselves. We do it for our own nodes whenever a language is loaded, through the vue-i18n instance that the host's
// page has provided; where a frontend has none, names stay as the server gives them.
//
// Both also have a race when the user switches: they load the language and, at the same time, ask the server for the nodes
// whose names they then translate; a quick server wins and the names stay as they were. So the nodes' definitions, when
// they are asked for, wait for a language that we have texts in.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isOurs } from "./find_node.mjs";

const PATIENCE = 3000; // milliseconds that definitions wait for a language at most

export async function keepNodeTexts() {
  const page = /** @type {any} */ (document.querySelector("#vue-app"))?.__vue_app__;
  const composer = page?._context?.provides?.[page.__VUE_I18N_SYMBOL__]?.global;
  if (typeof composer?.mergeLocaleMessage !== "function") return;
  const texts = await api.getCustomNodesI18n();
  const merge = (/** @type {string} */ language) => {
    const all = texts[language]?.nodeDefs ?? {};
    const nodeDefs = Object.fromEntries(Object.entries(all).filter(([id]) => isOurs(id)));
    if (Object.keys(nodeDefs).length) composer.mergeLocaleMessage(language, { nodeDefs });
  };
  const load = composer.setLocaleMessage;
  composer.setLocaleMessage = (/** @type {string} */ language, /** @type {any} */ messages) => {
    load(language, messages);
    merge(language);
  };
  merge(composer.locale.value);

  const wanted = () => String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "").slice(0, 2);
  const define = api.getNodeDefs;
  api.getNodeDefs = async function (...args) {
    const found = await define.apply(this, args);
    const end = performance.now() + PATIENCE;
    while (wanted() in texts && !composer.locale.value.startsWith(wanted()) && performance.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
    return found;
  };
}
