// The open streams by lag, and the last that ended.

import { h, put, toast } from "../dom.js";
import { call } from "../api.js";
import { ago, counted, number, word } from "../format.js";
import { fieldBar } from "../filter.js";
import { button, cell, dialog, empty, heading, labels, name, pager, row, table, when } from "../parts.js";

/** @param {Context} context */
export async function show(context) {
  const { root, path, params, go } = context;
  const isEnded = path[0] === "ended";
  const tab = (/** @type {string} */ text, /** @type {string[]} */ parts, /** @type {boolean} */ is) =>
    h("a.tab", { href: `#/${["subscriptions", ...parts].join("/")}`, "aria-current": is ? "page" : null }, text);
  const filter = fieldBar(params, go, "client", h("nav.tabs", { "aria-label": "Which subscriptions" }, tab("Open", [], !isEnded), tab("Ended", ["ended"], isEnded)));
  const list = isEnded ? await ended(context) : await open(context);
  put(root, heading("Subscriptions", h("span.soft", null, isEnded ? "the last 1,000 that ended since this broker started" : "the one that is furthest behind first")),
    h("section.panel", null, filter, list));
}

/** @param {Context} context */
async function open({ params, go, signal, reload }) {
  const answer = await call("ListSubscriptions", {
    pageSize: 50, pageToken: params.get("page_token") ?? "", order: "SUBSCRIPTION_ORDER_LAG_FIRST", client: params.get("client") ?? "",
  }, signal);
  const rows = answer.subscriptions.map((/** @type {Json} */ one) => row(
    ...about(one),
    cell("c-status", h(`span.status.is-${STATES[/** @type {keyof typeof STATES} */ (one.state)] ?? "unknown"}`, null, word("SUBSCRIPTION_STATE_", one.state))),
    cell("c-lag.right", number(one.lag)),
    cell("c-count.right", number(one.deliveredCount)),
    cell("c-since.soft", h("span", { title: one.openedAt }, ago(one.openedAt))),
    cell("c-act", button("End…", async () => {
      const text = "Its client is told, and may open another one with its last cursor.";
      const asked = await dialog("End this stream?", [h("p", null, h("b.wrap", null, name(one.client || one.clientName || one.peer))), h("p", null, text)], [["Cancel", ""], ["End", "end"]]);
      if (asked !== "end") return;
      await call("EndSubscription", { subscriptionId: one.subscriptionId }).then(() => toast("Ended"), (error) => toast(error.message));
      reload();
    }))));
  if (!rows.length) {
    return [params.get("client") ? empty("No open subscription of this client.") : empty("Nobody is subscribed.", "A service that follows events with Subscribe would be here, with how far behind it is. Try: ", h("code", null, "blobcast listen"))];
  }
  return [table("Open subscriptions", [...ABOUT, { name: "state", class: "c-status" }, { name: "lag", class: "c-lag.right" },
    { name: "delivered", class: "c-count.right" }, { name: "opened", class: "c-since" }, { name: "end", class: "c-act", quiet: true }], rows), pager(params, answer.nextPageToken, go)];
}

/** @param {Context} context */
async function ended({ params, go, signal }) {
  const answer = await call("ListEndedSubscriptions", { pageSize: 50, pageToken: params.get("page_token") ?? "", client: params.get("client") ?? "" }, signal);
  const rows = answer.subscriptions.map((/** @type {Json} */ ended) => row(
    cell("c-time.mono.soft", when(ended.endedAt)),
    ...about(ended.subscription, ended.filterCut),
    cell("c-cause", ended.cause.replaceAll("_", " ")),
    cell("c-lag.right", number(ended.subscription.lag)),
    cell("c-count.right", number(ended.subscription.deliveredCount))));
  if (!rows.length) return [empty("No subscription has ended since this broker started.", "The reason of each end would be here: its client left, it was too slow, its credential expired.")];
  return [table("Ended subscriptions", [{ name: "ended", class: "c-time" }, ...ABOUT, { name: "why", class: "c-cause" }, { name: "lag", class: "c-lag.right" },
    { name: "delivered", class: "c-count.right" }], rows), pager(params, answer.nextPageToken, go)];
}

const STATES = { SUBSCRIPTION_STATE_LIVE: "completed", SUBSCRIPTION_STATE_CATCHING_UP: "processing", SUBSCRIPTION_STATE_STALLED: "failed" };
const ABOUT = [{ name: "client", class: "c-client" }, { name: "asks for", class: "c-filter" }];

/** @param {Json} one @param {boolean} [isCut] */
function about(one, isCut = false) {
  return [
    cell("c-client", name(one.client || "no login", ".wrap"), h("div.soft.wrap", null, one.clientName ? [name(one.clientName), " · "] : null, name(one.peer))),
    cell("c-filter.wrap", filterOf(one), isCut ? " …" : null, Object.keys(one.boundLabels ?? {}).length ? h("div.soft", null, "only ", ...labels(one.boundLabels, true)) : null),
  ];
}

/** @param {Json} one */
function filterOf({ filter, taskIdCount }) {
  const parts = [
    filter?.products?.length ? filter.products.slice(0, 8).join(", ") : "",
    taskIdCount ? counted("task", taskIdCount) : "",
    filter?.statuses?.map((/** @type {string} */ status) => word("TASK_STATUS_", status)).join(", "),
  ].filter(Boolean).join(" · ");
  const asked = labels(filter?.labels, true).slice(0, 20);
  return parts || asked.length ? [parts, parts && asked.length ? " · " : null, ...asked] : "everything";
}
