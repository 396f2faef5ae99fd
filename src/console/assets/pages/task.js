// One task on one page: its life as a line of time, what came out, and the callbacks as they were received.

import { h, put } from "../dom.js";
import { Problem, ask, call, json, session } from "../api.js";
import { ZONE, bodyText, bytes, counted, full, moment, seen, span, took, word } from "../format.js";
import { taskAsCurl, taskAsGrpcurl, taskAsPython } from "../commands.js";
import { marks, statusOf } from "../event-row.js";
import { bodyView, copyButton, empty, facts, hidden, labels, name, panel, trouble, when } from "../parts.js";
import { output } from "../media.js";

/** @param {Context} context */
export async function show(context) {
  const { root, path: [taskId = ""], params, signal } = context;
  const product = params.get("product") ?? "";
  /** @type {Json[][]} */
  let [events, repetitions] = [[], []];
  try {
    const request = { taskId, product, includeRaw: true };
    ({ events, repetitions } = await call("GetTask", request, signal));
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem) || error.status !== 404) throw error;
  }
  draw(context, taskId, product, events, repetitions);
  follow(context, taskId, product, events);
}

const INTERVAL = 2_000;
/** What has ended changes seldom: a vendor contradicts itself, or somebody corrects a callback. */
const ENDED_INTERVAL = 10_000;

/**
 * Draws the page again as soon as the task has another event. A hidden page asks nothing, and a browser has few connections to one
 * host: so no page of a task holds a stream.
 * @param {Context} context
 * @param {string} taskId
 * @param {string} product
 * @param {Json[]} known
 */
function follow({ reload, signal }, taskId, product, known) {
  const interval = known.some((event) => event.terminal) ? ENDED_INTERVAL : INTERVAL;
  const look = async () => {
    if (!document.hidden) {
      // The top bar says what is wrong.
      const { events } = await call("GetTask", { taskId, product }, signal).catch(() => ({ events: [] }));
      if (signal.aborted) return;
      if (events.length > known.length) return reload();
    }
    timer = setTimeout(look, interval);
  };
  let timer = setTimeout(look, interval);
  signal.addEventListener("abort", () => clearTimeout(timer));
}

/** @param {Context} context @param {string} taskId @param {string} product @param {Json[]} events @param {Json[]} repetitions */
function draw({ root, signal }, taskId, product, events, repetitions) {
  const products = [...new Set(events.map((event) => event.product))];
  const of = product || (products.length === 1 ? products[0] : "");
  // The vendor's last word; an overdue event is the broker's own.
  const last = events.findLast((event) => event.terminal) ?? events.at(-1);
  const copies = h("div.actions", null,
    copyButton("Copy as curl", () => taskAsCurl(taskId, of)),
    copyButton("grpcurl", () => taskAsGrpcurl(taskId, of)),
    copyButton("Python", () => taskAsPython(taskId, of)));
  const head = h("div.task-head", null,
    h("div", null, h("div.soft", null, "Task"), h("h1.mono.wrap", null, name(taskId))),
    last ? h("div.now", null, h("span.mark", null, products.join(", ")), statusOf(last), took(last) ? h("span.soft", null, `took ${took(last)}`) : null) : null,
    copies);
  document.title = `\u2068${seen(taskId)}\u2069 · ${last ? word("TASK_STATUS_", last.status) : "no callback"} · blobcast`;

  const expected = h("div"), followed = h("div");
  if (!last) {
    const bound = session.client && !session.admin ? " Or it is not of this client's products and labels." : "";
    const found = h("p");
    put(root, head, panel(null, empty("No callback of this task yet.", `This page shows it as soon as it comes. If the task is old, retention may have forgotten it.${bound}`,
      found, session.admin ? h("p", null, "Did it arrive? ", h("a", { href: "#/quarantine" }, "Quarantine"), " · ", h("a", { href: `#/refused?find=${encodeURIComponent(taskId)}` }, "Refused")) : null), expected, followed));
    asLabel(found, taskId, signal);
  } else {
    const line = h("ol.life", null, events.map((event, at) => step(event, events[at - 1], repetitions.find(({ cursor }) => cursor === event.cursor))));
    put(root, head, h("div.task", null,
      h("div.side", null, panel(h("span", null, "What happened ", h("span.zone", null, ZONE)), line, expected, followed),
        panel("Callbacks as received, and the events made of them", h("div.bodies", null, events.map(both)))),
      h("div.side", null, outcome(last), about(last))));
  }
  const isOver = events.some((event) => event.terminal);
  if (session.admin && of && !isOver) expectation(expected, of, taskId, signal);
  if (session.admin) followers(followed, taskId, isOver, signal);
}

/**
 * Whether a label has this value: who asks about an order has its number, not the task's id. Keys are those of the newest events.
 * @param {HTMLElement} place
 * @param {string} value
 * @param {AbortSignal} signal
 */
async function asLabel(place, value, signal) {
  const events = async (/** @type {[string, string][]} */ ...query) =>
    (await json(await ask(`v1/events?${new URLSearchParams([["order", "newest_first"], ...query])}`, { signal }))).events;
  try {
    const keys = [...new Set((await events(["page_size", "100"])).flatMap((/** @type {Json} */ event) => Object.keys(event.labels ?? {})))].slice(0, 6);
    const counts = await Promise.all(keys.map((key) => events(["page_size", "20"], ["label", `${key}:${value}`])));
    keys.forEach((key, at) => {
      if (counts[at].length) place.append(h("b", null, `${counts[at].length < 20 ? "" : "More than "}${counted("event", counts[at].length)} with the label `, labels({ [key]: value })));
    });
  } catch { /* a hint only */ }
}

/** @param {Json} event @param {Json | undefined} before @param {Json | undefined} repeated */
function step(event, before, repeated) {
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
    h("div", null, h("p", null, statusOf(event), ...marks(event), h("span.soft", null, ` · ${notes}`)),
      event.error?.message && event.error.message !== event.error.code ? h("p.wrap", null, name(event.error.message.slice(0, 2000))) : null,
      repeated && h("p.soft", null, `repeated ${repeated.count}×, last ${moment(repeated.lastReceivedAt)}`),
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
    ["labels", Object.keys(event.labels ?? {}).length ? labels(event.labels) : null],
    ["prompt", event.prompt ? hidden("prompt", () => h("bdi.wrap", null, event.prompt)) : null],
    ["model", event.model && name(event.model, ".wrap")],
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
    const said = text === null ? `${bytes(atob(rawBody).length)} that are no text` : event.truncated ? "Too large to be shown here: GetRawBody has it." : "The broker's own event: nobody sent a body.";
    details.append(h("div.pair", null,
      h("div", null, h("h3", null, "As received"), text ? bodyView(text) : h("pre", { tabindex: "0" }, said)),
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

/**
 * Who follows the task or waits for it, but for pages like this one.
 * @param {HTMLElement} place
 * @param {string} taskId
 * @param {boolean} isOver
 * @param {AbortSignal} signal
 */
async function followers(place, taskId, isOver, signal) {
  try {
    const { subscriptions } = await call("ListSubscriptions", { taskId, pageSize: 50 }, signal);
    const others = subscriptions.filter((/** @type {Json} */ one) => one.clientName !== "console");
    if (others.length || !isOver) put(place, h("div.note", null, others.length ? [h("b", null, "Who waits for it"), h("ul", null, others.map((/** @type {Json} */ one) =>
      h("li", null, h("bdi", null, [one.client, one.clientName, one.peer].filter(Boolean).join(" · ")), ` since ${moment(one.openedAt)}`)))] : "Nobody waits for it."));
  } catch (error) {
    if (!signal.aborted) put(place, trouble(error));
  }
}
