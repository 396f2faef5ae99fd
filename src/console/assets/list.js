// Lists that fit into a page's memory: read whole, then searched, counted and turned over here.

import { h } from "./dom.js";
import { call } from "./api.js";
import { choose } from "./filter.js";
import { number } from "./format.js";
import { pager } from "./parts.js";

const ROWS = 50;
/** A broker keeps no more of such lists than these pages hold. */
const PAGES_MAX = 40;

/**
 * All of a list.
 * @param {string} rpc
 * @param {string} field
 * @param {AbortSignal} signal
 * @returns {Promise<Json[]>}
 */
export async function everything(rpc, field, signal) {
  const all = [];
  for (let pageToken = "", page = 0; page < PAGES_MAX; page++) {
    const answer = await call(rpc, { pageSize: 256, pageToken }, signal);
    all.push(...answer[field]);
    pageToken = answer.nextPageToken;
    if (!pageToken) break;
  }
  return all;
}

/**
 * The rows of the sheet that the URL names, and what leads to the next.
 * @param {Json[]} all
 * @param {URLSearchParams} params
 * @param {Go} go
 */
export function sheet(all, params, go) {
  const from = Math.max(0, Number.parseInt(params.get("from") ?? "0", 10) || 0);
  const next = from + ROWS;
  return { rows: all.slice(from, next), pager: pager(params, next < all.length ? String(next) : "", go, "from") };
}

/**
 * How many there are of each kind, to choose one.
 * @param {Json[]} all
 * @param {string} field
 * @param {URLSearchParams} params
 * @param {Go} go
 */
export function facets(all, field, params, go) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const one of all) counts.set(one[field], (counts.get(one[field]) ?? 0) + 1);
  const chosen = params.get(field);
  return h("div.facets", { role: "group", "aria-label": field }, [...counts].sort(([, one], [, other]) => other - one).map(([value, count]) =>
    h("button.toggle", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(params, go, field, value === chosen ? "" : value) }, `${value.replaceAll("_", " ")} ${number(count)}`)));
}
