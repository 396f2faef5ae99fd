// The history of events, by filter and time, and its export.

import { h, put, toast } from "../dom.js";
import { ask, json } from "../api.js";
import { ZONE, bytes } from "../format.js";
import { COLUMNS, eventRow, taskHref } from "../event-row.js";
import { choose, filterBar, filterOf, isFiltered } from "../filter.js";
import { button, empty, heading, loading, pager, table, trouble } from "../parts.js";

const PAGE_SIZE = "50";
/** A browser keeps a file in memory until it is whole. */
const EXPORT_MAX = 64 * 1024 * 1024;

/** @param {Context} context */
export async function show({ root, params, go, signal, reload }) {
  const place = h("div.list", null, loading(12));
  const order = params.get("order") === "oldest_first" ? "oldest_first" : "newest_first";
  const changed = (/** @type {string} */ key, /** @type {string} */ value) => choose(params, go, key, value);
  const save = button("Export", () => exported(query(params, order), save));
  put(root, heading("Events", h("span.grow"), save), h("section.panel", null,
    filterBar(params, go, button("Last hour", () => changed("since", instant(Date.now() - 3_600_000))), h("span.inline", null, `times in ${ZONE}`),
      timeField("since", params, changed), timeField("until", params, changed),
      h("select", { "aria-label": "Order", onchange: (/** @type {any} */ event) => changed("order", event.target.value) },
        h("option", { value: "" }, "newest first"), h("option", { value: "oldest_first", selected: order === "oldest_first" }, "oldest first"))),
    place));

  const asked = query(params, order);
  asked.set("page_size", PAGE_SIZE);
  const token = params.get("page_token");
  if (token) asked.set("page_token", token);
  try {
    const { events, nextPageToken } = await json(await ask(`v1/events?${asked}`, { signal }));
    const rows = events.map((/** @type {any} */ event) => eventRow(event));
    if (rows.length) return put(place, table("Events", COLUMNS, rows), pager(params, nextPageToken, go));
    const isNarrow = isFiltered(params) || params.get("since") || params.get("until");
    // A page may be empty and have a successor.
    put(place, nextPageToken ? empty("No event on this page.", "The log was searched up to its limit for one page; the next one goes on.")
      : isNarrow ? empty("No event matches.", h("a", { href: "#/events" }, "Show all"), ...params.getAll("label").slice(0, 1).flatMap((label) =>
        [" · is it a task? ", h("a", { href: taskHref("", label.replace(":", "=")) }, label.replace(":", "="))]))
      : empty("The log is empty.", "The first callback becomes the first event. ", h("a", { href: "#/" }, "How to send one")),
    nextPageToken || token ? pager(params, nextPageToken, go) : null);
  } catch (error) {
    if (!signal.aborted) put(place, trouble(error, reload));
  }
}

/** @param {URLSearchParams} params @param {string} order */
function query(params, order) {
  const asked = filterOf(params);
  asked.set("order", order);
  for (const name of ["since", "until"]) {
    const at = new Date(params.get(name) ?? "");
    if (Number.isFinite(at.getTime())) asked.set(name, at.toISOString());
  }
  return asked;
}

/** An instant as the address has it: the same one in every zone. @param {number} time */
const instant = (time) => `${new Date(time).toISOString().slice(0, 19)}Z`;

/** @param {string} name @param {URLSearchParams} params @param {(name: string, value: string) => void} changed */
function timeField(name, params, changed) {
  const at = Date.parse(params.get(name) ?? "");
  const shown = Number.isFinite(at) ? new Date(at - new Date(at).getTimezoneOffset() * 60_000).toISOString().slice(0, 19) : null;
  const input = h("input", { type: "datetime-local", step: "1", "aria-label": name, title: ZONE, value: shown });
  input.addEventListener("change", () => changed(name, input.value && instant(Date.parse(input.value))));
  return h("label.inline", null, name, input);
}

/**
 * Saves all events of the filter, one JSON object a line.
 * @param {URLSearchParams} asked
 * @param {HTMLButtonElement} control
 */
async function exported(asked, control) {
  control.disabled = true;
  try {
    const answer = await ask(`v1/events?${asked}`, { headers: { accept: "application/x-ndjson" } });
    const reader = /** @type {ReadableStream<Uint8Array>} */ (answer.body).getReader();
    /** @type {BlobPart[]} */
    const parts = [];
    let size = 0, isWhole = false;
    while (size < EXPORT_MAX) {
      const { done, value } = await reader.read();
      if (done) { isWhole = true; break; }
      parts.push(/** @type {any} */ (value));
      size += value.length;
      put(control, `Export · ${bytes(size)}`);
    }
    if (!isWhole) reader.cancel();
    const link = h("a", { href: URL.createObjectURL(new Blob(parts, { type: "application/x-ndjson" })), download: "events.ndjson" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    toast(isWhole ? `${bytes(size)} exported` : `Cut after ${bytes(size)}: narrow the filter, or use blobcast events --output json`);
  } catch (error) {
    toast(/** @type {any} */ (error).message);
  } finally {
    control.disabled = false;
    put(control, "Export");
  }
}
