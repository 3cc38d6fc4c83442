// @ts-check
// A group of buttons as one stop of the Tab key: the arrow keys, Home and End go from one to the next.
// https://www.w3.org/WAI/ARIA/apg/practices/keyboard-interface/#kbd_roving_tabindex

/**
 * @param {HTMLElement} group of buttons
 * @returns {() => void} call it when a button has been disabled or enabled
 */
export function roving(group) {
  const buttons = () => /** @type {HTMLButtonElement[]} */ ([...group.querySelectorAll("button")]);
  const usable = () => buttons().filter((button) => !button.disabled);
  const stopAt = (/** @type {HTMLButtonElement | undefined} */ chosen) => {
    for (const button of buttons()) button.tabIndex = button === chosen ? 0 : -1;
  };
  group.dataset.kilnGroup = "";
  group.addEventListener("focusin", (event) => stopAt(/** @type {HTMLButtonElement} */ (event.target)));
  group.addEventListener("keydown", (event) => {
    const all = usable();
    const at = all.indexOf(/** @type {HTMLButtonElement} */ (event.target));
    const places = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 };
    if (at < 0 || !(event.key in places)) return;
    event.preventDefault();
    event.stopPropagation(); // the graph has shortcuts of its own
    const place = places[/** @type {keyof typeof places} */ (event.key)];
    all[Math.min(Math.max(place, 0), all.length - 1)].focus();
  });
  const refresh = () => {
    const current = usable().find((button) => button.tabIndex === 0 && button === document.activeElement);
    stopAt(current ?? usable()[0]);
  };
  refresh();
  return refresh;
}
