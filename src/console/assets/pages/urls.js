// Makes callback URLs, and shows which credentials callbacks and clients come by.

import { h, put } from "../dom.js";
import { call } from "../api.js";
import { ago, full, word } from "../format.js";
import { testCallback } from "../commands.js";
import { taskHref } from "../event-row.js";
import { cell, copyButton, empty, facts, heading, labels as labelsOf, name, pager, panel, row, single, table, trouble } from "../parts.js";

const LIVES = [["3600", "1 hour"], ["86400", "24 hours"], ["604800", "7 days"], ["2592000", "30 days"], ["31536000", "1 year"]];

/** @param {Context} context */
export async function show({ root, params, go, signal }) {
  const listed = await call("ListCredentials", { pageSize: 50, pageToken: params.get("page_token") ?? "" }, signal);
  const made = h("div");
  const product = h("input", { name: "product", value: params.get("product"), placeholder: "veo", autocomplete: "off", spellcheck: "false", maxlength: "63" });
  const labels = h("textarea", { name: "labels", rows: 3, spellcheck: "false", placeholder: "team=ads\nref=order-42" });
  labels.value = params.getAll("label").join("\n");
  const life = h("select", { name: "ttl" }, LIVES.map(([value, text]) => h("option", { value, selected: value === (params.get("ttl") ?? "86400") }, text)));
  const key = h("input", { name: "key", value: params.get("key"), placeholder: "the newest that is bound to nothing", autocomplete: "off", spellcheck: "false", maxlength: "64" });

  const mint = single(async () => {
    /** @type {Record<string, string>} */
    const pairs = Object.create(null);
    for (const line of labels.value.split("\n").filter((/** @type {string} */ text) => text.trim())) {
      const at = line.indexOf("=");
      if (at < 1) return put(made, trouble(new Error(`A label is written key=value: ${line.slice(0, 80)}`)));
      pairs[line.slice(0, at).trim()] = line.slice(at + 1).trim();
    }
    try {
      const answer = await call("MintCallbackUrl", { product: product.value.trim(), labels: pairs, ttl: `${life.value}s`, keyId: key.value.trim() });
      const url = answer.callbackUrl;
      tried.value = url;
      put(made, h("div.made", { role: "status" }, h("code.wrap", null, url),
        h("div.actions", null, copyButton("Copy the URL", () => url), copyButton("Copy a test callback as curl", () => testCallback(url))),
        facts([["good until", full(answer.expireTime)], ["signed by", answer.keyId], ["labels", Object.keys(pairs).length ? labelsOf(pairs, true) : null]]),
        h("p.soft", null, "A secret: anybody who has it can send callbacks. The broker keeps nothing of it.")));
    } catch (error) {
      put(made, trouble(error));
    }
  });
  const tried = h("input", { placeholder: "/webhook/veo", autocomplete: "off", spellcheck: "false", maxlength: "2048" });
  const answered = h("div");
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    try {
      const { taskId, httpStatus, body } = await call("SendTestCallback", { callbackUrl: tried.value.trim() });
      put(answered, h("div.note", { role: "status" }, `${httpStatus} `, h("code.wrap", null, body), " ",
        httpStatus === 200 ? h("a.mono", { href: taskHref("", taskId) }, taskId) : httpStatus === 202 ? h("a", { href: "#/quarantine" }, "Quarantine") : h("a", { href: "#/refused" }, "Refused")));
    } catch (error) {
      put(answered, trouble(error));
    }
  };
  // The address names what is asked for, so that it can be sent to a colleague.
  const keep = () => {
    const next = new URLSearchParams();
    if (product.value.trim()) next.set("product", product.value.trim());
    for (const line of labels.value.split("\n")) if (line.trim()) next.append("label", line.trim());
    if (life.value !== "86400") next.set("ttl", life.value);
    if (key.value.trim()) next.set("key", key.value.trim());
    history.replaceState(null, "", `#/urls${next.size ? `?${next}` : ""}`);
  };

  put(root, heading("Callback URLs"), panel("Make one for RunBlob",
    h("form.stack.pad", { onsubmit: mint, oninput: keep },
      h("label", null, "Product", product, h("span.soft", null, "empty: inferred from each callback")),
      h("label", null, "Labels", labels, h("span.soft", null, "one key=value a line; every event of this URL carries them")),
      h("label", null, "Callbacks are accepted for", life),
      h("label", null, "Signing key", key),
      h("div.actions", null, h("button.button.main", null, "Make the URL"))), made),
  panel("Send a test callback", h("form.stack.pad", { onsubmit: send },
    h("label", null, "Callback URL", tried, h("span.soft", null, "it passes all that a real one passes but the network; its event is an event like any other")),
    h("div.actions", null, h("button.button", null, "Send"))), answered),
  panel("Credentials", listed.credentials.length ? [table("Credentials", COLUMNS, listed.credentials.map(line)), pager(params, listed.nextPageToken, go)]
    : empty("There are no credentials.", "Anybody who reaches the listeners may send callbacks and read events. blobcast token adds a line to the credentials file.")));
}

const COLUMNS = [{ name: "kind", class: "c-product" }, { name: "name", class: "c-client" }, { name: "for", class: "c-filter" },
  { name: "last used", class: "c-since" }, { name: "expires", class: "c-since" }];

/** @param {Json} one */
function line(one) {
  const rights = [one.admin && "admin", one.backup && "backup", one.products.join(", ").replace("*", "all products")];
  const until = (/** @type {string | undefined} */ time) => time ? h("span", { title: full(time) }, ago(time)) : "never";
  const used = one.kind === "CREDENTIAL_KIND_VENDOR_KEY" ? "not known" : one.lastUsedAt ? ago(one.lastUsedAt) : "not since the start";
  return row(
    cell("c-product", word("CREDENTIAL_KIND_", one.kind)),
    cell("c-client", name(one.name || "–", ".mono.wrap"), one.hasPrevious ? h("div.soft", null, one.previousExpiresAt ? `the previous one is accepted until ${full(one.previousExpiresAt)}` : "the previous one is accepted, too") : null),
    cell("c-filter.wrap", rights.filter(Boolean).join(" · "), Object.keys(one.labels ?? {}).length ? [" · ", ...labelsOf(one.labels, true)] : null),
    cell("c-since.soft", used),
    cell("c-since.soft", until(one.expiresAt)));
}
