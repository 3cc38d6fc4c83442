// @ts-check
// Keeps the translated names and tooltips of our nodes. Frontend 1.32.9 takes in the translations of node packs first and
// then loads the language itself, which replaces them: nodes of packs stay English. Newer frontends put them back
// themselves. We do it for our own nodes whenever a language is loaded, through the vue-i18n instance that the host's
// page has provided; where a frontend has none, names stay as the server gives them.
import { api } from "../../scripts/api.js";

const OURS = "Kiln"; // how our nodes' ids begin

export async function keepNodeTexts() {
  const page = /** @type {any} */ (document.querySelector("#vue-app"))?.__vue_app__;
  const composer = page?._context?.provides?.[page.__VUE_I18N_SYMBOL__]?.global;
  if (typeof composer?.mergeLocaleMessage !== "function") return;
  const texts = await api.getCustomNodesI18n();
  const merge = (/** @type {string} */ language) => {
    const all = texts[language]?.nodeDefs ?? {};
    const nodeDefs = Object.fromEntries(Object.entries(all).filter(([id]) => id.startsWith(OURS)));
    if (Object.keys(nodeDefs).length) composer.mergeLocaleMessage(language, { nodeDefs });
  };
  const load = composer.setLocaleMessage;
  composer.setLocaleMessage = (/** @type {string} */ language, /** @type {any} */ messages) => {
    load(language, messages);
    merge(language);
  };
  merge(composer.locale.value);
}
