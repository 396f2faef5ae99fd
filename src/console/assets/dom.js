// Builds elements. Text goes in as text nodes only, so nothing that a callback says can become markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: `h("td.mono.soft", {title: "…"}, "text", child)`. A function under `on…` listens; `true` sets an empty attribute;
 * null, undefined and false set none.
 * @param {string} name tag and classes
 * @param {Json | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  return fill(element, attributes, children);
}

/**
 * The same in SVG.
 * @param {string} name
 * @param {Json | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function svg(name, attributes, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElementNS(SVG, tag);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  return fill(element, attributes, children);
}

/** @param {Element} element @param {Json | null | undefined} attributes @param {(Child | Child[])[]} children */
function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function" && key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/** @param {(Child | Child[])[]} children @returns {(Node | string)[]} */
function nodes(children) {
  /** @type {(Node | string)[]} */
  const all = [];
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    all.push(child instanceof Node ? child : String(child));
  }
  return all;
}

/**
 * Replaces what is in an element.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function put(element, ...children) {
  element.replaceChildren(...nodes(children));
}

/** Parts of a page that hold others; what is in them is renewed one by one. */
const HOLDERS = ".tiles, .columns, .side";

/**
 * Puts the new state of a page in place of the old one, but only where it differs, and not where the focus or a selection is: a
 * page that renews itself must not take away what somebody is at.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function renew(element, ...children) {
  const fresh = nodes(children), old = [...element.childNodes];
  if (fresh.length !== old.length) return put(element, ...fresh);
  fresh.forEach((next, at) => {
    const before = old[at];
    if (!(next instanceof Element) || !(before instanceof Element)) return before.replaceWith(next);
    if (before.isEqualNode(next)) return;
    if (before.matches(HOLDERS) && next.matches(HOLDERS)) renew(before, ...next.childNodes);
    else if (!isHeld(before)) before.replaceWith(next);
  });
}

/** @param {Element} element */
function isHeld(element) {
  const selection = getSelection();
  return element.contains(document.activeElement)
    || Boolean(selection && !selection.isCollapsed && selection.rangeCount && selection.getRangeAt(0).intersectsNode(element));
}

/**
 * What finds an element again after its page was drawn anew.
 * @param {Element | null} element
 */
export function likeness(element) {
  return element && `${element.tagName} ${element.getAttribute("aria-label") ?? element.textContent}`.slice(0, 200);
}

/**
 * A URL out of a callback, if a browser may follow it.
 * @param {string} text
 * @returns {URL | null}
 */
export function webUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

/**
 * Says something at the bottom of the window for a few seconds.
 * @param {string} text
 */
export function toast(text) {
  const place = /** @type {HTMLElement} */ (document.getElementById("toast"));
  place.textContent = text;
  place.classList.add("shown");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => place.classList.remove("shown"), 3200);
}
/** @type {ReturnType<typeof setTimeout> | undefined} */
toast.timer = undefined;
