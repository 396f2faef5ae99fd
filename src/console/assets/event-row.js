// One event as a row of a table.

import { h } from "./dom.js";
import { cell, labelText, labels, name, row } from "./parts.js";
import { clock, full, moment, took, word } from "./format.js";

/** @type {Column[]} */
export const COLUMNS = [
  { name: "time", class: "c-time" }, { name: "product", class: "c-product" }, { name: "task", class: "c-task" },
  { name: "status", class: "c-status" }, { name: "labels", class: "c-labels" }, { name: "took", class: "c-took.right" },
];

/** @param {Json} event @param {boolean} [isLive] with milliseconds, without the day */
export function eventRow(event, isLive = false) {
  return row(
    cell("c-time.mono.soft", h("time", { datetime: event.receivedAt, title: full(event.receivedAt) }, isLive ? clock(event.receivedAt) : moment(event.receivedAt))),
    cell("c-product.cut", h("span", { title: event.product }, event.product)),
    cell("c-task.cut", taskLink(event)),
    cell("c-status.cut", statusOf(event), ...marks(event)),
    cell("c-labels.soft.cut", h("span", { title: labelText(event.labels).slice(0, 500) || null }, labels(event.labels))),
    cell("c-took.right", took(event)));
}

/** @param {Json} event */
export function taskLink(event) {
  return h("a.mono.whole", { href: taskHref(event.product, event.taskId), title: event.taskId }, name(event.taskId));
}

/** @param {string} product @param {string} taskId */
export const taskHref = (product, taskId) => `#/task/${encodeURIComponent(taskId)}${product ? `?product=${encodeURIComponent(product)}` : ""}`;

/**
 * A status in words, with the code of a failure and the vendor's own word where it is not known.
 * @param {Json} event
 */
export function statusOf(event) {
  const status = word("TASK_STATUS_", event.status);
  const isUnknown = status === "unspecified";
  const code = event.error?.code && event.error.code !== "UNSPECIFIED" ? ` · ${event.error.code}` : "";
  const text = isUnknown ? `“${event.statusText || "no status"}”` : status + code;
  return h(`span.status.is-${isUnknown ? "unknown" : status}`, { title: text }, name(text));
}

/** @param {Json} event */
export function marks(event) {
  const says = [
    event.conflict && ["conflict", "contradicts an earlier end of this task"],
    event.verification === "VERIFICATION_VENDOR_API" && ["recovered", "the broker asked the vendor's API"],
    event.corrected && ["corrected", "released from quarantine with corrections"],
    event.productInferred && ["inferred", "the URL named no product"],
    event.truncated && ["truncated", "too large to be shown whole"],
  ];
  return says.flatMap((mark) => mark ? [h("span.mark", { title: mark[1] }, mark[0])] : []);
}
