// The last callbacks that were refused, and why.

import { h, put } from "../dom.js";
import { call } from "../api.js";
import { cell, empty, heading, pager, row, table, when } from "../parts.js";

/** @param {import("../app.js").Context} context */
export async function show({ root, params, go, signal }) {
  const pageToken = params.get("page_token") ?? "";
  const { refusals, nextPageToken } = await call("ListRefusals", { pageSize: 50, pageToken }, signal);
  const rows = refusals.map((/** @type {any} */ one) => row(
    cell("c-time.mono.soft", when(one.refusedAt)),
    cell("c-code.mono", one.httpStatus),
    cell("c-cause", h("b", null, one.cause.replaceAll("_", " ")), h("div.soft.wrap.wide", null, one.explanation)),
    cell("c-where", h("bdi.mono.wrap", null, one.path), h("div.soft", null, [one.product, one.credential || (one.keyId && `key ${one.keyId}`)].filter(Boolean).join(" · "))),
    cell("c-from.mono", h("bdi", null, one.remoteAddress)),
    cell("c-request.mono.soft.wrap", one.requestId)));
  const columns = [{ name: "time", class: "c-time" }, { name: "answer", class: "c-code" }, { name: "cause", class: "c-cause" },
    { name: "path", class: "c-where" }, { name: "from", class: "c-from" }, { name: "request", class: "c-request" }];
  put(root, heading("Refused", h("span.soft", null, "the last 1,000 since this broker started")),
    h("section.panel", null, rows.length ? [table("Refused callbacks", columns, rows), pager(params, nextPageToken, go)]
      : empty("No callback was refused since this broker started.", "A wrong token, an expired URL or a body that is too large would be here, with its cause and the next step.")));
}
