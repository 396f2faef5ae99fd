// Each value in force, and where it comes from.

import { h, put } from "../dom.js";
import { call } from "../api.js";
import { cell, empty, heading, row, table } from "../parts.js";

/** @param {Context} context */
export async function show({ root, params, signal }) {
  /** @type {Json[]} */
  const settings = (await call("GetConfiguration", {}, signal)).settings;
  const search = h("input", { type: "search", "aria-label": "Find a key", placeholder: "Find a key", value: params.get("find"), autocomplete: "off", spellcheck: "false" });
  const changed = h("input", { type: "checkbox", checked: params.has("changed") });
  const place = h("div");
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    const shown = settings.filter((one) => one.key.includes(wanted) && (!changed.checked || isChanged(one)));
    put(place, shown.length ? table("Configuration", [{ name: "key" }, { name: "value" }, { name: "from" }], shown.map(line)) : empty("No key matches."));
  };
  const keep = () => {
    const next = new URLSearchParams();
    if (search.value.trim()) next.set("find", search.value.trim());
    if (changed.checked) next.set("changed", "");
    history.replaceState(null, "", `#/configuration${next.size ? `?${next}` : ""}`);
    draw();
  };
  put(root, heading("Configuration", h("span.soft", null, "the values in force; secrets are not shown")),
    h("section.panel", null, h("div.filter", { oninput: keep }, search, h("label.inline", null, changed, "other than the default")), place));
  draw();
}

/** @param {Json} one */
const isChanged = (one) => one.source !== "SETTING_SOURCE_DEFAULT_FILE" || one.pendingValue !== undefined;

/** @param {Json} one */
function line(one) {
  const isOther = isChanged(one);
  return row(
    cell("c-cause.mono", isOther ? h("b", null, one.key) : one.key),
    cell("c-where.mono.wrap", one.value || h("span.soft", null, "not set"),
      isOther && one.defaultValue !== one.value ? h("div.soft", null, `default ${one.defaultValue || "not set"}`) : null,
      one.pendingValue === undefined ? null : h("div.status.is-overdue", null, `after a restart ${one.pendingValue}`)),
    cell("c-from.soft.wrap", one.pendingOrigin ? `${one.origin}, then ${one.pendingOrigin}` : one.origin));
}
