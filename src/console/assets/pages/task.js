// One task on one page: its life as a line of time, what came out, and the callbacks as they were received.

import { h, put } from "../dom.js";
import { Problem, call, session } from "../api.js";
import { bodyText, bytes, full, indented, moment, span, took, word } from "../format.js";
import { taskAsCurl, taskAsGrpcurl, taskAsPython } from "../commands.js";
import { marks, statusOf } from "../event-row.js";
import { copyButton, empty, facts, hidden, labelText, panel, trouble, when } from "../parts.js";
import { output } from "../media.js";
import { Tail } from "../stream.js";

/** @typedef {Record<string, any>} Json */

/** @param {import("../app.js").Context} context */
export async function show(context) {
  const { root, path: [taskId = ""], params, signal } = context;
  const product = params.get("product") ?? "";
  /** @type {Json[]} */
  let events = [];
  try {
    const request = { taskId, product, includeRaw: true };
    ({ events } = await call("GetTask", request, signal));
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem) || error.status !== 404) throw error;
  }
  draw(context, taskId, product, events);
  if (!events.some((event) => event.terminal)) follow(context, taskId, product, events.length);
}

/**
 * Draws the page again as soon as the task has another event.
 * @param {import("../app.js").Context} context
 * @param {string} taskId
 * @param {string} product
 * @param {number} known
 */
function follow({ reload, signal }, taskId, product, known) {
  const filter = new URLSearchParams({ task_id: taskId });
  if (product) filter.append("product", product);
  let count = 0;
  const tail = new Tail(filter, {
    event() {
      if (++count <= known || signal.aborted) return;
      tail.close();
      reload();
    },
    state() {},
  });
  signal.addEventListener("abort", () => tail.close());
  tail.open();
}

/** @param {import("../app.js").Context} context @param {string} taskId @param {string} product @param {Json[]} events */
function draw({ root, signal }, taskId, product, events) {
  const products = [...new Set(events.map((event) => event.product))];
  const of = product || (products.length === 1 ? products[0] : "");
  // The vendor's last word; an overdue event is the broker's own.
  const last = events.findLast((event) => event.terminal) ?? events.at(-1);
  const copies = h("div.actions", null,
    copyButton("Copy as curl", () => taskAsCurl(taskId, of)),
    copyButton("grpcurl", () => taskAsGrpcurl(taskId, of)),
    copyButton("Python", () => taskAsPython(taskId, of)));
  const head = h("div.task-head", null,
    h("div", null, h("div.soft", null, "Task"), h("h1.mono.wrap", null, h("bdi", null, taskId))),
    last ? h("div.now", null, h("span.mark", null, products.join(", ")), statusOf(last), took(last) ? h("span.soft", null, `took ${took(last)}`) : null) : null,
    copies);

  const expected = h("div");
  if (!last) {
    put(root, head, panel(null, empty("No callback of this task yet.", "This page shows it as soon as it comes. If the task is old, retention may have forgotten it."), expected));
  } else {
    const line = h("ol.life", null, events.map((event, at) => step(event, events[at - 1])));
    put(root, head, h("div.task", null,
      h("div.side", null, panel("What happened", line, expected),
        panel("Callbacks as received, and the events made of them", h("div.bodies", null, events.map(both)))),
      h("div.side", null, outcome(last), about(last))));
  }
  if (session.admin && of && !events.some((event) => event.terminal)) expectation(expected, of, taskId, signal);
}

/** @param {Json} event @param {Json | undefined} before */
function step(event, before) {
  const size = event.rawBody ? bytes(atob(event.rawBody).length) : "";
  const how = word("VERIFICATION_", event.verification);
  const later = before ? `${span(Date.parse(event.receivedAt) - Date.parse(before.receivedAt))} later` : "";
  const notes = [`revision ${event.revision}`, event.credential.replace("_", " ") || (how === "unspecified" ? "" : how), size, later].filter(Boolean).join(" · ");
  const overdue = event.overdue && h("p.soft", null,
    `expected by ${moment(event.overdue.expectedBy)}; asked ${event.overdue.checkCount} times`,
    event.overdue.vendorStatus ? `; the vendor said “${event.overdue.vendorStatus}”` : "",
    event.overdue.gaveUp ? "; the broker asks no more" : "");
  return h(`li.is-${word("TASK_STATUS_", event.status)}${event.terminal ? ".terminal" : ""}`, null,
    h("time.mono.soft", { datetime: event.receivedAt, title: full(event.receivedAt) }, moment(event.receivedAt)),
    h("div", null, h("p", null, statusOf(event), ...marks(event), h("span.soft", null, ` ${notes}`)),
      event.error?.message && event.error.message !== event.error.code ? h("p.wrap", null, h("bdi", null, event.error.message.slice(0, 2000))) : null,
      overdue));
}

/** @param {Json} event */
function outcome(event) {
  const content = event.outputs.length ? event.outputs.map(output)
    : event.status === "TASK_STATUS_COMPLETED" ? empty("Completed without an output.")
    : empty(event.terminal ? "No output: the task failed." : "No output yet.");
  return panel(event.outputs.length > 1 ? "Outputs" : "Output", content);
}

/** @param {Json} event */
function about(event) {
  return panel("About", facts([
    ["product", event.product],
    ["labels", labelText(event.labels) && h("bdi.wrap", null, labelText(event.labels).slice(0, 4000))],
    ["prompt", event.prompt ? hidden("prompt", () => h("bdi.wrap", null, event.prompt)) : null],
    ["model", event.model && h("bdi.wrap", null, event.model)],
    ["seed", event.seed !== undefined && event.seed !== null ? h("span.mono", null, event.seed) : null],
    ["created", event.createdAt ? when(event.createdAt) : null],
    ["ended", event.completedAt ? when(event.completedAt) : null],
    ["received", when(event.receivedAt)],
    ["event id", h("span.mono.wrap", null, event.eventId)],
    ["cursor", h("span.mono.wrap", null, event.cursor)],
  ]));
}

/**
 * Raw beside normalised; closed at first, since both have the prompt.
 * @param {Json} event
 */
function both(event) {
  const { rawBody, ...normalised } = event;
  const details = h("details", null, h("summary", null, `Revision ${event.revision}, `, statusOf(event), h("span.soft", null, " · with the prompt")));
  details.addEventListener("toggle", () => {
    if (details.childElementCount > 1) return;
    const text = rawBody ? bodyText(rawBody) : "";
    const raw = text === null ? `${bytes(atob(rawBody).length)} that are no text` : text ? indented(text) : event.truncated ? "Too large to be shown here: GetRawBody has it." : "The broker's own event: nobody sent a body.";
    details.append(h("div.pair", null,
      h("div", null, h("h3", null, "As received"), h("pre", { tabindex: "0" }, raw)),
      h("div", null, h("h3", null, "Event"), h("pre", { tabindex: "0" }, JSON.stringify(normalised, null, 2)))));
  });
  return details;
}

/**
 * Whether the broker expects the task. The list is by age, so one of the oldest is found at once, and one behind the first pages is
 * left out.
 * @param {HTMLElement} place
 * @param {string} product
 * @param {string} taskId
 * @param {AbortSignal} signal
 */
async function expectation(place, product, taskId, signal) {
  try {
    let pageToken = "";
    for (let page = 0; page < 4; page++) {
      const answer = await call("ListExpectations", { product, pageToken }, signal);
      const one = answer.expectations.find((/** @type {Json} */ other) => other.taskId === taskId);
      if (one) {
        const asked = one.checkCount ? `, asked ${one.checkCount} times, last answer ${one.vendorStatus || one.vendorHttpStatus || "none"}` : "";
        const late = one.state === "EXPECTATION_STATE_OVERDUE" ? "overdue since" : "expected by";
        return put(place, h("p.note", null, `${late} ${moment(one.expectedBy)}${one.client ? ` for ${one.client}` : ""}${asked}`));
      }
      pageToken = answer.nextPageToken;
      if (!pageToken) return;
    }
  } catch (error) {
    if (!signal.aborted) put(place, trouble(error));
  }
}
