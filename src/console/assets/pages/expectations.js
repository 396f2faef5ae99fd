// The tasks that are expected, and those that are late.

import { h, put } from "../dom.js";
import { call } from "../api.js";
import { ago, full } from "../format.js";
import { taskHref } from "../event-row.js";
import { choose, fieldBar } from "../filter.js";
import { cell, empty, heading, labelText, labels, name, pager, row, table, when } from "../parts.js";

/** @param {Context} context */
export async function show({ root, params, go, signal }) {
  const isOverdue = params.get("state") === "overdue", product = params.get("product") ?? "";
  const answer = await call("ListExpectations", {
    pageSize: 50, product, pageToken: params.get("page_token") ?? "",
    state: isOverdue ? "EXPECTATION_STATE_OVERDUE" : "EXPECTATION_STATE_UNSPECIFIED",
  }, signal);
  const rows = answer.expectations.map((/** @type {any} */ one) => {
    const isLate = one.state === "EXPECTATION_STATE_OVERDUE";
    const said = one.vendorStatus || (one.vendorHttpStatus ? `HTTP ${one.vendorHttpStatus}` : "");
    return row(
      cell("c-time.mono.soft", when(one.expectedAt)),
      cell("c-product.cut", one.product),
      cell("c-task.cut", h("a.mono.whole", { href: taskHref(one.product, one.taskId), title: one.taskId }, name(one.taskId))),
      cell("c-status", h(`span.status.is-${isLate ? "overdue" : "pending"}`, { title: full(one.expectedBy) }, isLate ? `overdue since ${ago(one.expectedBy).replace(" ago", "")}` : `due ${ago(one.expectedBy)}`)),
      cell("c-client.cut", h("span", { title: one.client }, name(one.client || "–"))),
      cell("c-labels.soft.cut", h("span", { title: labelText(one.labels).slice(0, 500) || null }, labels(one.labels))),
      cell("c-asked", one.checkCount ? [`${one.checkCount} ×`, said ? h("span.soft", null, ` ${said}`) : null] : h("span.soft", null, "not yet")));
  });
  const columns = [{ name: "expected", class: "c-time" }, { name: "product", class: "c-product" }, { name: "task", class: "c-task" },
    { name: "state", class: "c-status" }, { name: "client", class: "c-client" }, { name: "labels", class: "c-labels" }, { name: "vendor asked", class: "c-asked" }];
  const toggle = (/** @type {string} */ text, /** @type {string} */ state) =>
    h("button.toggle", { type: "button", "aria-pressed": String(isOverdue === Boolean(state)), onclick: () => choose(params, go, "state", state) }, text);
  const filter = fieldBar(params, go, "product", h("div.toggles", { role: "group", "aria-label": "State" }, toggle("all", ""), toggle("overdue", "overdue")));
  const isOff = !rows.length && (await call("GetConfiguration", {}, signal)).settings.some((/** @type {any} */ one) => one.key === "reconcile.enabled" && one.value === "false");
  put(root, heading("Expectations", h("span.soft", null, "tasks whose end is still to come, the oldest first")),
    h("section.panel", null, filter, rows.length ? [table("Expectations", columns, rows), pager(params, answer.nextPageToken, go)]
      : isOff ? empty("This broker asks no vendor, so it expects no task.", "Set reconcile.enabled and add a vendor key: then services say with ExpectTasks what they have submitted.")
      : isOverdue ? empty("Nothing is overdue.", "Every task that was expected has ended, or still has time.")
      : empty("No task is expected.", "A service says which tasks it has submitted with ExpectTasks, or waits for one with WaitTask and its product: then the broker asks the vendor if the callback does not come.")));
}
