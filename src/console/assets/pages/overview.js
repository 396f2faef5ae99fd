// How the broker is: ready or why not, what came in the last day, and who is behind. Before the first callback: how to send one.

import { h, renew } from "../dom.js";
import { call, session } from "../api.js";
import { ago, bytes, counted, date, number, span, word } from "../format.js";
import { bars, meter } from "../chart.js";
import { COLUMNS, eventRow } from "../event-row.js";
import { cell, copyButton, empty, facts, heading, name as nameOf, panel, row, table } from "../parts.js";

const INTERVAL = 5_000;
const FIRST_INTERVAL = 1_500;
/** 96 bars of 15 minutes are a day. */
const MINUTES = 15;
const SOON = 14 * 86_400_000;

/** @param {Context} context */
export async function show({ root, signal }) {
  let wasEmpty = false;
  const draw = async () => {
    const [now, newest] = await Promise.all([call("GetOverview", {}, signal), call("ListEvents", { order: "ORDER_NEWEST_FIRST", pageSize: 8 }, signal)]);
    if (signal.aborted) return;
    const isEmpty = !Number(now.eventCount) && !Number(now.quarantineCount);
    // A command that is being selected must not lose the selection.
    if (isEmpty && wasEmpty) return;
    wasEmpty ||= isEmpty;
    renew(root, ...(isEmpty ? first() : page(now, newest.events, wasEmpty)));
  };
  /** @type {ReturnType<typeof setTimeout>} */
  let timer;
  const again = async () => {
    if (!document.hidden) await draw().catch(() => {});
    if (!signal.aborted) timer = setTimeout(again, wasEmpty ? FIRST_INTERVAL : INTERVAL);
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  await draw();
  timer = setTimeout(again, wasEmpty ? FIRST_INTERVAL : INTERVAL);
}

function first() {
  const { callbackUrl, curl, grpcurl, listen } = session.shown;
  const step = (/** @type {string} */ text, /** @type {string[]} */ ...commands) => h("li", null, h("b", null, text), commands.map((command) =>
    h("div.line", null, h("code", null, command), copyButton("Copy", () => command))));
  return [heading("No callback yet", h("span.soft", null, "this page changes as soon as the first one is durable")),
    panel("The first five minutes", h("div.first", null, h("ol", null,
      step("Give RunBlob this callback_url", callbackUrl), step("Or send a callback yourself", curl), step("See it, by gRPC or with the command line", grpcurl, listen)),
    h("p.soft", null, "Then it is here, on ", h("a", { href: "#/live" }, "Live"), " and in ", h("a", { href: "#/events" }, "Events"), ".")))];
}

/** @param {Json} now @param {Json[]} newest @param {boolean} isFirst */
function page(now, newest, isFirst) {
  const state = now.ready ? h("span.soft", null, `ready · ${now.version}`) : h("span.status.is-failed", null, `not ready: ${now.problem}`);
  return [heading("The last 24 hours", state, h("span.soft", null, "counts begin with the broker's start")),
    isFirst ? h("div.note.welcome", { role: "status" }, h("b", null, "The first callback is durable. "), h("a", { href: "#/events" }, "See it")) : null,
    tiles(now), h("div.columns", null,
      panel("Newest events", newest.length ? table("Newest events", COLUMNS, newest.map((event) => eventRow(event))) : empty("No event yet.")),
      h("div.side", null, behind(now), panel("Broker", broker(now))))];
}

/** @param {Json} now */
function tiles({ history, eventBytes, eventCount, oldestEventAt, overdueCount, expectationCount, ...now }) {
  const [callbacks, refusals] = [minutes(history?.callbacks), minutes(history?.refusals)];
  const texts = { from: "24 h ago", to: "now" };
  const sum = (/** @type {number[]} */ counts) => counts.reduce((all, count) => all + count, 0);
  const tile = (/** @type {string} */ name, /** @type {any} */ figure, /** @type {any} */ small, /** @type {any} */ below) =>
    h("div.tile", null, h("h2", null, name), h("p.figure", null, figure, " ", h("small", null, small)), below);
  const used = Number(now.diskTotalBytes ?? 0) - Number(now.diskFreeBytes ?? 0);
  return h("section.tiles", { "aria-label": "Figures" },
    // The minute that is not over yet may have more already.
    tile("Callbacks a minute", number(Math.max(callbacks.at(-2) ?? 0, callbacks.at(-1) ?? 0)), `${number(sum(callbacks))} in all`, bars(grouped(callbacks), { label: "Callbacks", ...texts })),
    tile("Refused", number(sum(refusals)), sum(refusals) ? h("a", { href: "#/refused" }, "why") : "", bars(grouped(refusals), { label: "Refused", style: "bad", ...texts })),
    tile("Expected tasks", number(expectationCount), Number(overdueCount) ? h("a.status.is-failed", { href: "#/expectations?state=overdue" }, `${number(overdueCount)} overdue`) : "none overdue", null),
    tile("Log", bytes(eventBytes), `${counted("event", eventCount)}${oldestEventAt ? ` · ${span(Date.now() - Date.parse(oldestEventAt))}` : ""}`,
      now.diskTotalBytes === undefined ? null : h("div.disk", null, h("span.soft", null, `disk: ${bytes(now.diskFreeBytes)} free of ${bytes(now.diskTotalBytes)}`), meter(used, Number(now.diskTotalBytes), "Disk used"))));
}

/** @param {string[] | undefined} counts */
const minutes = (counts) => (counts ?? []).map(Number);

/** @param {number[]} counts */
function grouped(counts) {
  return Array.from({ length: Math.ceil(counts.length / MINUTES) }, (_, at) => counts.slice(at * MINUTES, (at + 1) * MINUTES).reduce((all, count) => all + count, 0));
}

/** @param {Json} now */
function behind({ laggards, subscriptionCount }) {
  const rows = laggards.map((/** @type {Json} */ one) => row(
    cell("c-client", nameOf(one.client || one.clientName || one.peer, ".wrap"), one.client && one.clientName ? h("span.soft", null, " · ", nameOf(one.clientName, ".wrap")) : null),
    cell("c-lag.right", number(one.lag)),
    cell("c-status", h(`span.status.is-${one.state.endsWith("STALLED") ? "failed" : one.state.endsWith("LIVE") ? "completed" : "processing"}`, null, word("SUBSCRIPTION_STATE_", one.state)))));
  const all = h("p.pad.soft", null, h("a", { href: "#/subscriptions" }, counted("open stream", subscriptionCount)));
  return panel("Who is behind", rows.length ? table("Who is behind", [{ name: "client" }, { name: "lag", class: "c-lag.right" }, { name: "state" }], rows)
    : empty(Number(subscriptionCount) ? "Everybody has everything." : "Nobody is subscribed."), rows.length ? all : Number(subscriptionCount) ? all : null);
}

/** @param {Json} now */
function broker(now) {
  const certificate = (/** @type {Json} */ { expiresAt }) => {
    const left = (date(expiresAt)?.getTime() ?? 0) - Date.now();
    return h(left < SOON ? "span.status.is-failed" : "span", null, left > 0 ? `${span(left)} left` : "expired");
  };
  const failed = now.lastBackupFailedAt && (!now.lastBackupAt || now.lastBackupFailedAt > now.lastBackupAt);
  return facts([
    ...now.certificates.map((/** @type {Json} */ one) => [`TLS ${one.listener}`, certificate(one)]),
    ["backup", [now.lastBackupAt ? ago(now.lastBackupAt) : "none yet", failed ? h("span.status.is-failed", null, ` · failed ${ago(now.lastBackupFailedAt)}`) : null]],
    ["quarantine", Number(now.quarantineCount) ? h("a", { href: "#/quarantine" }, counted("callback", now.quarantineCount)) : "empty"],
    now.cluster ? ["nodes", now.cluster.nodes.map((/** @type {Json} */ node) => h(`span.node.status.is-${node.ready === false ? "failed" : "completed"}`, null, `${node.name} ${node.ready === false ? "not ready" : "ready"} `))] : null,
    ["head", h("span.mono.wrap", null, now.head)],
    ["version", now.version],
  ]);
}
