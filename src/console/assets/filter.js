// The filter of events: in the URL as the JSON routes have it, on the page as chips and fields.

import { h, toast } from "./dom.js";
import { labels, name as nameOf } from "./parts.js";

const FIELDS = /** @type {const} */ (["product", "status", "label", "task_id"]);
const STATUSES = ["pending", "processing", "completed", "failed", "overdue"];
const PRODUCTS = ["veo", "sora", "kling", "kling-o1-video", "kling-o1-photo", "kling-o3-video", "seedance", "nanobanana", "chatgpt-images", "gemini"];

/**
 * The part of a query that is the filter.
 * @param {URLSearchParams} params
 */
export function filterOf(params) {
  const filter = new URLSearchParams();
  for (const name of FIELDS) for (const value of params.getAll(name)) filter.append(name, value);
  return filter;
}

/**
 * A bar to see and change the filter.
 * @param {URLSearchParams} params
 * @param {Go} go
 * @param {...Child} rest what else stands in the bar
 */
export function filterBar(params, go, ...rest) {
  const changed = (/** @type {(next: URLSearchParams) => void} */ change) => {
    const next = new URLSearchParams(params);
    next.delete("page_token");
    change(next);
    go(next);
  };
  const drop = (/** @type {string} */ name, /** @type {string} */ value) => changed((next) => {
    const kept = next.getAll(name).filter((other) => other !== value);
    next.delete(name);
    for (const one of kept) next.append(name, one);
  });

  const chips = FIELDS.flatMap((name) => name === "status" ? [] : params.getAll(name).map((value) => chip(name, value, () => drop(name, value))));
  const statuses = STATUSES.map((status) => h("button.toggle", {
    type: "button", "aria-pressed": String(params.getAll("status").includes(status)),
    onclick: () => params.getAll("status").includes(status) ? drop("status", status) : changed((next) => next.append("status", status)),
  }, status));

  return h("div.filter", null,
    h("div.toggles", { role: "group", "aria-label": "Status" }, statuses),
    adder(changed),
    chips.length ? h("div.chips", { "aria-label": "Filter" }, chips) : null,
    rest.length ? h("div.rest", null, rest) : null);
}

/** @param {string} name @param {string} value @param {() => void} drop */
function chip(name, value, drop) {
  const shown = name === "label" ? value.replace(":", "=") : value;
  const text = name === "task_id" ? "task" : name;
  return h("span.chip", null, h("b", null, text), " ", name === "label" ? labels({ [shown.slice(0, shown.indexOf("="))]: shown.slice(shown.indexOf("=") + 1) }, true) : nameOf(shown),
    h("button.x", { type: "button", onclick: drop, "aria-label": `Remove ${text} ${shown}` }, "×"));
}

/** @param {(change: (next: URLSearchParams) => void) => void} changed */
function adder(changed) {
  const kind = h("select", { "aria-label": "Filter by" },
    [["product", "product"], ["label", "label"], ["task_id", "task"]].map(([value, text]) => h("option", { value }, text)));
  const list = h("datalist", { id: "products" }, PRODUCTS.map((value) => h("option", { value })));
  const input = h("input", { "aria-label": "Value", placeholder: "veo", maxlength: "321", autocomplete: "off", spellcheck: "false", list: "products" });
  const hint = () => {
    input.placeholder = kind.value === "label" ? "team=ads" : kind.value === "product" ? "veo" : "task id";
    if (kind.value === "product") input.setAttribute("list", "products");
    else input.removeAttribute("list");
  };
  kind.addEventListener("change", hint);
  const add = (/** @type {Event} */ event) => {
    event.preventDefault();
    let value = input.value.trim();
    if (!value) return input.focus();
    if (kind.value === "label") {
      const at = value.search(/[=:]/);
      if (at < 1) return toast("Write a label as key=value");
      value = `${value.slice(0, at)}:${value.slice(at + 1)}`;
    }
    changed((next) => next.getAll(kind.value).includes(value) || next.append(kind.value, value));
  };
  return h("form.add", { onsubmit: add }, kind, input, list, h("button.button", null, "Add"));
}

/**
 * Whether anything is filtered.
 * @param {URLSearchParams} params
 */
export const isFiltered = (params) => [...filterOf(params)].length > 0;

/**
 * Goes to the first page of a list with another value of one parameter.
 * @param {URLSearchParams} params @param {Go} go @param {string} key @param {string} value
 */
export function choose(params, go, key, value) {
  const next = new URLSearchParams(params);
  for (const one of ["page_token", "from"]) next.delete(one);
  if (value) next.set(key, value);
  else next.delete(key);
  go(next);
}

/**
 * A bar with one field.
 * @param {URLSearchParams} params @param {Go} go @param {string} key @param {HTMLElement} before
 */
export function fieldBar(params, go, key, before) {
  const field = h("input", { "aria-label": key, placeholder: key, value: params.get(key), maxlength: "128", autocomplete: "off" });
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    choose(params, go, key, field.value.trim());
  };
  return h("form.filter", { onsubmit: submit }, before, field, h("button.button", null, "Filter"));
}
