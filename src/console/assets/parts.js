// Pieces that all pages use: panels, tables, buttons, empty states, problems, dialogs.

import { h, put, toast } from "./dom.js";
import { SHOWN_MAX, UNSEEN, ZONE, bytes, codePoint, full, indented, moment, seen } from "./format.js";
import { Problem } from "./api.js";

/**
 * The head of a page.
 * @param {string} title
 * @param {...Child} rest
 */
export function heading(title, ...rest) {
  return h("div.heading", null, h("h1", null, title), ...rest);
}

/** @param {Child} title @param {...(Child | Child[])} content */
export function panel(title, ...content) {
  return h("section.panel", null, title ? h("h2", null, title) : null, ...content);
}

/**
 * What stands where a list is empty: what would be here, and what to do about it.
 * @param {string} what
 * @param {...Child} next
 */
export function empty(what, ...next) {
  return h("div.empty", null, h("p", null, what), next.length ? h("div.soft", null, ...next) : null);
}

/** Lines that keep the place of what is loading. */
export function loading(lines = 6) {
  return h("div.loading", { "aria-busy": "true", "aria-label": "Loading" }, Array.from({ length: lines }, () => h("i")));
}

/**
 * An error for people, with a way to try again.
 * @param {unknown} error
 * @param {(() => void)} [again]
 */
export function trouble(error, again) {
  const problem = error instanceof Problem ? error : null;
  const details = [problem?.reason, problem?.requestId && `request ${problem.requestId}`].filter(Boolean).join(" · ");
  const said = String(/** @type {any} */ (error)?.message ?? error);
  const wrong = problem?.violations.filter((one) => !said.includes(one.description)).map((one) => h("li", null, `${one.field}: ${one.description}`));
  // A link to a page of a list outlives the list.
  const isOldPage = problem?.violations.some((one) => one.field === "page_token");
  return h("div.trouble", { role: "alert" },
    h("p", null, isOldPage ? "This page of the list is no more." : said),
    wrong?.length ? h("ul", null, wrong) : null,
    details ? h("p.mono.soft", null, details) : null,
    isOldPage ? button("First page", () => { location.hash = location.hash.replace(/([?&])page_token=[^&]*&?/, "$1"); })
      : again ? button("Try again", again) : null);
}

/** @param {Child} text @param {(event: Event) => unknown} act @param {Json} [attributes] */
export function button(text, act, attributes) {
  return h("button.button", { type: "button", onclick: single(act), ...attributes }, text);
}

/**
 * Does nothing while it is under way, so that an impatient click is not a second request.
 * @param {(event: Event) => unknown} act
 */
export function single(act) {
  let isRunning = false;
  return async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (isRunning) return;
    isRunning = true;
    try { await act(event); } finally { isRunning = false; }
  };
}

/**
 * Copies, and says so.
 * @param {string} label
 * @param {() => string} text
 */
export function copyButton(label, text) {
  return button(label, async () => {
    try {
      await navigator.clipboard.writeText(text());
      toast("Copied");
    } catch {
      const area = h("textarea", { readonly: true, rows: 6, "aria-label": label });
      area.value = text();
      await dialog("Copy this", [area], [["Close", ""]]);
    }
  });
}

/**
 * A table. Rows are laid out as blocks on narrow screens, so roles are written out.
 * @param {string} label
 * @param {Column[]} columns
 * @param {HTMLElement[]} rows
 */
export function table(label, columns, rows) {
  const head = columns.map(({ name, class: style, quiet }) => h(`th${style ? `.${style}` : ""}`, { role: "columnheader", scope: "col" }, quiet ? h("span.quiet", null, name) : name, style?.startsWith("c-time") ? h("span.zone", null, ` ${ZONE}`) : null));
  const body = h("tbody", { role: "rowgroup" }, rows);
  return h("div.scroll", null, h("table", { role: "table", "aria-label": label },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)), body));
}

/** @param {...Child} cells each a `cell` */
export const row = (...cells) => h("tr", { role: "row" }, ...cells);

/** @param {string} style classes, with dots @param {...(Child | Child[])} content */
export const cell = (style, ...content) => h(`td${style ? `.${style}` : ""}`, { role: "cell" }, ...content);

/**
 * A time as a cell shows it, with the whole of it in the title.
 * @param {string | undefined} time
 */
export const when = (time) => h("time", { datetime: time ?? "", title: full(time) }, moment(time) || "–");

/**
 * Terms and what they are; pairs without a value are left out.
 * @param {([string, Child | Child[]] | null)[]} pairs
 */
export function facts(pairs) {
  const there = pairs.filter((pair) => pair && pair[1] !== null && pair[1] !== undefined && pair[1] !== "" && pair[1] !== false);
  return h("dl.facts", null, there.flatMap((pair) => pair ? [h("dt", null, pair[0]), h("dd", null, pair[1])] : []));
}

/** @param {Record<string, string> | undefined} labels @returns {[string, string][]} */
const sorted = (labels) => Object.entries(labels ?? {}).sort(([one], [other]) => one < other ? -1 : 1);

/**
 * Labels for a title: each key and value isolated, so that none changes how another is read. Where it can be copied: `labels`.
 * @param {Record<string, string> | undefined} pairs
 */
export const labelText = (pairs) => sorted(pairs).map((pair) => pair.map((part) => `\u2068${seen(part)}\u2069`).join("=")).join(" ");

/**
 * Labels as links to the events that have them.
 * @param {Record<string, string> | undefined} pairs
 * @param {boolean} [isText] without links
 */
export function labels(pairs, isText = false) {
  return sorted(pairs).flatMap(([key, value]) => {
    const href = isText ? null : `#/events?${new URLSearchParams({ label: `${key}:${value}` })}`;
    return [h(href ? "a.pair-of" : "span.pair-of", { href }, name(key), "=", name(value)), " "];
  });
}

/**
 * A name from outside: it stands on its own, whatever its direction of writing, and what cannot be seen is written out.
 * @param {any} text
 * @param {string} [style] classes, with dots
 */
export function name(text, style = "") {
  return h(`bdi${style}`, null, String(text ?? "").split(UNSEEN).map((part, at) => at % 2 ? h("span.unseen", { title: "a character that cannot be seen" }, codePoint(part)) : part));
}

/**
 * A body, indented where that helps; of a long one the beginning, and Copy for the whole.
 * @param {string} text
 */
export function bodyView(text) {
  const { text: shown, why } = indented(text);
  const cut = text.length > SHOWN_MAX ? `Only the first ${bytes(SHOWN_MAX)} are shown: Copy has all.` : "";
  return h("div.body-view", null, why || cut ? h("p.soft", null, [why, cut].filter(Boolean).join(" ")) : null,
    h("pre", { tabindex: "0" }, cut ? shown.slice(0, SHOWN_MAX) : shown), copyButton("Copy", () => text));
}

/**
 * What is hidden until it is asked for.
 * @param {string} name
 * @param {() => Child} content
 */
export function hidden(name, content) {
  const place = h("div.hidden-text");
  put(place, button(`Show ${name}`, () => {
    const shown = h("div", { tabindex: "-1" }, content());
    put(place, shown);
    shown.focus();
  }));
  return place;
}

/**
 * Asks in a modal dialog. Resolves to the value of the button; "" if it was closed.
 * @param {string} title
 * @param {Child[]} content
 * @param {[string, string][]} choices text, value; the last one is the main one
 * @returns {Promise<string>}
 */
export function dialog(title, content, choices) {
  const buttons = choices.map(([text, value], at) => value
    ? h(at === choices.length - 1 ? "button.button.main" : "button.button", { value }, text)
    // No button of the form: Enter would press the first of those.
    : h("button.button", { type: "button", onclick: () => box.close("") }, text));
  /** @type {HTMLDialogElement} */
  const box = h("dialog", { "aria-label": title },
    h("form", { method: "dialog" }, h("h2", null, title), ...content, h("div.actions", null, buttons)));
  document.body.append(box);
  box.showModal();
  return new Promise((resolve) => box.addEventListener("close", () => {
    box.remove();
    resolve(box.returnValue);
  }));
}

/**
 * Asks a person to type a word before something that cannot be undone.
 * @param {string} title
 * @param {string} text
 * @param {string} expected
 * @param {string} action
 * @returns {Promise<boolean>}
 */
export async function confirmTyped(title, text, expected, action) {
  const input = h("input", { "aria-label": `Type ${expected}`, autocomplete: "off", spellcheck: "false", pattern: expected, required: true });
  const question = h("p", null, "Type ", h("b", null, expected), " to go on.");
  const asked = dialog(title, [h("p", null, text), question, input], [["Cancel", ""], [action, "go"]]);
  input.focus();
  return await asked === "go" && input.value === expected;
}

/**
 * Older pages of a list: the token of the next page is in the URL, so that the browser's Back leads to the newer one.
 * @param {URLSearchParams} params
 * @param {string} token
 * @param {Go} go
 * @param {string} [name]
 */
export function pager(params, token, go, name = "page_token") {
  const to = (/** @type {string} */ value) => () => {
    const next = new URLSearchParams(params);
    next.delete(name);
    if (value) next.set(name, value);
    go(next);
  };
  if (!token && !params.get(name)) return null;
  return h("div.pager", null,
    button("First page", to(""), { disabled: !params.get(name) }),
    button("Next page", to(token), { disabled: !token }));
}
