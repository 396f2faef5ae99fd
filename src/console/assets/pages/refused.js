// The last callbacks that were refused, and why.

import { h, put } from "../dom.js";
import { clock } from "../format.js";
import { choose } from "../filter.js";
import { everything, facets, sheet } from "../list.js";
import { button, cell, empty, heading, name, row, table, when } from "../parts.js";

/** @param {Context} context */
export async function show({ root, params, go, signal, reload }) {
  const all = await everything("ListRefusals", "refusals", signal);
  const [cause, wanted] = [params.get("cause"), (params.get("find") ?? "").toLowerCase()];
  const texts = (/** @type {any} */ one) => [one.path, one.product, one.credential, one.keyId, one.remoteAddress, one.requestId].join("\n").toLowerCase();
  const found = all.filter((one) => (!cause || one.cause === cause) && texts(one).includes(wanted));
  const { rows, pager } = sheet(found, params, go);
  const drawn = rows.map((one) => row(
    cell("c-time.mono.soft", when(one.refusedAt)),
    cell("c-code.mono", one.httpStatus),
    cell("c-cause", h("b", null, one.cause.replaceAll("_", " ")), h("div.soft.wrap.wide", null, one.explanation)),
    cell("c-where", name(one.path, ".mono.wrap"), h("div.soft.wrap", null, name(one.product), " ", name(one.credential || (one.keyId && `key ${one.keyId}`)))),
    cell("c-from.mono", name(one.remoteAddress)),
    cell("c-request.mono.soft.wrap", name(one.requestId))));
  const columns = [{ name: "time", class: "c-time" }, { name: "answer", class: "c-code" }, { name: "cause", class: "c-cause" },
    { name: "path", class: "c-where" }, { name: "from", class: "c-from" }, { name: "request", class: "c-request" }];
  const field = h("input", { type: "search", "aria-label": "Find in path, address, credential or request", placeholder: "path, address, request id", value: params.get("find"), autocomplete: "off", spellcheck: "false" });
  const search = (/** @type {Event} */ event) => {
    event.preventDefault();
    choose(params, go, "find", field.value.trim());
  };
  const filter = h("form.filter", { onsubmit: search }, field, h("button.button", null, "Find"), facets(all, "cause", params, go));
  put(root, heading("Refused", h("span.soft", null, `the last 1,000 since this broker started, as of ${clock(new Date().toISOString()).slice(0, 8)}`), h("span.grow"), button("Refresh", reload)),
    h("section.panel", null, all.length ? filter : null, drawn.length ? [table("Refused callbacks", columns, drawn), pager]
      : all.length ? empty("No refusal matches.", h("a", { href: "#/refused" }, "Show all"))
      : empty("No callback was refused since this broker started.", "A wrong token, an expired URL or a body that is too large would be here, with its cause and the next step.")));
}
