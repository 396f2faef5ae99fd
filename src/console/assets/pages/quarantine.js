// Callbacks that were authentic but could not be understood: read again with corrections, or discarded.

import { h, put, toast } from "../dom.js";
import { call } from "../api.js";
import { base64, bodyText, bytes, counted, number, seen, word } from "../format.js";
import { statusOf, taskHref } from "../event-row.js";
import { bodyView, button, cell, confirmTyped, empty, facts, heading, hidden, labels, name as nameOf, panel, row, single, table, trouble, when } from "../parts.js";
import { everything, facets, sheet } from "../list.js";

/** @param {Context} context */
export async function show(context) {
  if (context.path[0]) await one(context, context.path[0]);
  else await list(context);
}

/** @param {Context} context */
async function list({ root, params, go, signal, reload }) {
  const all = (await everything("ListQuarantine", "callbacks", signal)).reverse();
  const reason = params.get("reason");
  const { rows: callbacks, pager } = sheet(all.filter((one) => !reason || one.reason === reason), params, go);
  /** @type {Set<string>} */
  const chosen = new Set();
  const discard = button("Discard…", async () => {
    if (await discarded([...chosen])) reload();
  }, { disabled: true });
  /** @type {HTMLInputElement[]} */
  const boxes = [];
  const choose = (/** @type {string} */ id, /** @type {boolean} */ is) => {
    if (is) chosen.add(id);
    else chosen.delete(id);
    discard.disabled = !chosen.size;
    put(discard, chosen.size ? `Discard ${number(chosen.size)}…` : "Discard…");
  };
  const box = (/** @type {string} */ id) => {
    const made = h("input", { type: "checkbox", "aria-label": `Choose ${id}`, onchange: () => choose(id, made.checked) });
    boxes.push(made);
    return made;
  };
  const whole = h("input", { type: "checkbox", onchange: () => {
    for (const one of boxes) if (one.checked !== whole.checked) one.click();
  } });
  const rows = callbacks.map((/** @type {Json} */ one) => row(
    cell("c-check", box(one.quarantineId)),
    cell("c-time.mono.soft", when(one.receivedAt)),
    cell("c-cause", h("a", { href: `#/quarantine/${encodeURIComponent(one.quarantineId)}` }, one.reason.replaceAll("_", " ")),
      h("div.soft.wrap.wide", null, nameOf(detail(one)))),
    cell("c-where", nameOf(one.target.slice(0, 300), ".mono.wrap")),
    cell("c-credential", one.credential),
    cell("c-size.right", bytes(one.bodyBytes))));
  const columns = [{ name: "choose", class: "c-check", quiet: true }, { name: "time", class: "c-time" }, { name: "reason", class: "c-cause" },
    { name: "URL", class: "c-where" }, { name: "came by", class: "c-credential" }, { name: "body", class: "c-size.right" }];
  put(root, heading("Quarantine", h("span.soft", null, "authentic, but not understood; the newest first"), h("span.grow"), rows.length ? discard : null),
    h("section.panel", null, rows.length ? [
      h("div.filter", null, h("label.inline", null, whole, "all on this page"), facets(all, "reason", params, go)),
      table("Quarantined callbacks", columns, rows), pager]
      : all.length ? [h("div.filter", null, facets(all, "reason", params, go)), empty("None with this reason.")]
      : empty("Nothing is in quarantine.", "A callback that is authentic but no JSON, or without a task id, is kept here until it is corrected or discarded.")));
}

/** Why it is here, without the words of the command line: the form is one click away. @param {Json} one */
const detail = (one) => String(one.detail).replace(/ ?\(--[^)]*\)/g, "");

/** @param {string[]} ids @returns {Promise<boolean>} */
async function discarded(ids) {
  const text = `${counted("callback", ids.length)} will be deleted for good. Nothing of them can be read any more.`;
  if (!await confirmTyped("Discard?", text, String(ids.length), "Discard")) return false;
  try {
    const { discardedCount } = await call("DiscardQuarantined", { quarantineIds: ids });
    toast(`${counted("callback", discardedCount)} discarded`);
    return true;
  } catch (error) {
    toast(/** @type {any} */ (error).message);
    return false;
  }
}

/**
 * The entry itself: no RPC names a single one, so the pages are read up to it.
 * @param {string} id
 * @param {AbortSignal} signal
 * @returns {Promise<Json | null>}
 */
async function find(id, signal) {
  for (let pageToken = "", page = 0; page < 40; page++) {
    const answer = await call("ListQuarantine", { pageSize: 256, pageToken }, signal);
    const at = answer.callbacks.findIndex((/** @type {Json} */ one) => one.quarantineId === id);
    if (at >= 0) {
      // The body only of the page that has it.
      const bodies = await call("ListQuarantine", { pageSize: 256, pageToken, includeBody: true }, signal);
      return bodies.callbacks.find((/** @type {Json} */ one) => one.quarantineId === id) ?? answer.callbacks[at];
    }
    pageToken = answer.nextPageToken;
    if (!pageToken) return null;
  }
  return null;
}

/** @param {Context} context @param {string} id */
async function one({ root, signal }, id) {
  const found = await find(id, signal);
  const back = h("a", { href: "#/quarantine" }, "All of the quarantine");
  if (!found) {
    return put(root, heading("Quarantine"), panel(null, empty("This callback is not in quarantine any more.", "It was released or discarded, or retention has forgotten it. ", back)));
  }
  const text = found.body ? bodyText(found.body) : null;
  const note = h("div");
  const how = word("VERIFICATION_", found.verification);
  document.title = `${found.reason.replaceAll("_", " ")} · \u2068${seen(found.target).slice(0, 80)}\u2069 · blobcast`;
  put(root, h("p.back", null, back), heading(found.reason.replaceAll("_", " "), h("span.grow"), button("Discard…", async () => {
    if (await discarded([id])) location.hash = "#/quarantine";
  })),
  h("p.lead.wrap", null, nameOf(detail(found))),
  h("div.task", null,
    panel("Release", form(found, text, note), note),
    h("div.side", null, panel("About", facts([
      ["URL", nameOf(found.target, ".mono.wrap")],
      ["received", when(found.receivedAt)],
      ["came by", found.credential],
      ["verified", how !== found.credential && how],
      ["bound to", found.boundProducts?.length || Object.keys(found.boundLabels ?? {}).length
        ? [found.boundProducts?.join(", "), " ", ...labels(found.boundLabels, true)] : null],
      ["body", bytes(found.bodyBytes)],
      ["id", h("span.mono.wrap", null, id)],
    ])), panel("Body as received", found.body
      ? hidden("body", () => h("div.pad", null, text === null ? h("pre", null, "no text") : bodyView(text)))
      : empty("It is empty, or too large to be shown here.")))));
}

/** @param {Json} found @param {string | null} text @param {HTMLElement} note */
function form(found, text, note) {
  const field = (/** @type {string} */ name, /** @type {string} */ label, /** @type {string} */ hint) => h("label", null, label,
    h("input", { name, autocomplete: "off", spellcheck: "false", maxlength: "128" }), h("span.soft", null, hint));
  const body = h("textarea", { name: "body", rows: 10, spellcheck: "false", "aria-label": "Corrected body" });
  const details = h("details", null, h("summary", null, "Correct the body ", h("span.soft", null, "shows the prompt, if it has one")), body);
  details.addEventListener("toggle", () => { if (!body.value) body.value = text ?? ""; });
  const preview = h("div");
  const box = h("form.stack.pad", null,
    h("p.soft", null, "The callback is read again with what you fill in. If it still cannot be read, it stays here and the answer says why."),
    field("product", "Product", "instead of the URL's"), field("taskId", "Task id", "where the body has none that can be used"),
    field("status", "Status", "instead of the body's, for example completed"),
    h("label.check", null, h("input", { type: "checkbox", name: "dropLabels" }), "Ignore the URL's labels"),
    details, preview, h("div.actions", null, button("Preview", look), h("button.button.main", null, "Release")));

  const request = () => {
    const data = new FormData(box);
    /** @type {Json} */
    const made = { quarantineId: found.quarantineId };
    for (const name of ["product", "taskId", "status"]) {
      const value = String(data.get(name) ?? "").trim();
      if (value) made[name] = value;
    }
    if (data.get("dropLabels")) made.dropLabels = true;
    if (body.value && body.value !== text) made.body = base64(body.value);
    return made;
  };
  async function look() {
    try {
      const { events } = await call("ReleaseQuarantined", { ...request(), validateOnly: true });
      put(note);
      put(preview, h("div.note", { role: "status" }, h("b", null, "It would become"), events.map((/** @type {Json} */ one) => h("details", null,
        h("summary", null, h("span.mono", null, nameOf(one.taskId)), " ", one.event && statusOf(one.event),
          h("span.soft", null, one.duplicate ? " · a duplicate, no event" : one.event ? ` · revision ${one.event.revision}${one.event.conflict ? ", a conflict" : ""}` : " · too large to be shown")),
        one.event && h("pre", { tabindex: "0" }, JSON.stringify(one.event, null, 2))))));
    } catch (error) {
      put(preview);
      put(note, trouble(error));
    }
  }
  box.addEventListener("input", () => put(preview));
  box.addEventListener("submit", single(async () => {
    try {
      const { events } = await call("ReleaseQuarantined", request());
      put(note, h("div.note", { role: "status" }, h("b", null, `Released as ${counted("event", events.length)}`), h("ul", null,
        events.map((/** @type {Json} */ released) => h("li", null, released.taskId
          ? h("a.mono", { href: taskHref(released.product ?? "", released.taskId) }, nameOf(released.taskId)) : h("span.mono", null, released.eventId))))));
      box.remove();
    } catch (error) {
      put(note, trouble(error));
    }
  }));
  return box;
}
