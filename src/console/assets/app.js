// The frame around the pages: which page the URL names, who is logged in, and how the broker is.

import { h, likeness, put, toast } from "./dom.js";
import { ask, call, readSession, session } from "./api.js";
import { number } from "./format.js";
import { loading, trouble } from "./parts.js";
import { taskHref } from "./event-row.js";
import { login } from "./login.js";

/**
 * @typedef {object} Context
 * @property {HTMLElement} root where the page is
 * @property {string[]} path behind the page's name
 * @property {URLSearchParams} params
 * @property {(params: URLSearchParams, path?: string[]) => void} go to the same page, with other parameters
 * @property {() => void} reload
 * @property {AbortSignal} signal aborted when the page is left
 */
/** @typedef {{title: string, group: string, admin?: boolean, hidden?: boolean, load: () => Promise<{show: (context: Context) => unknown}>}} Page */

/** @type {Record<string, Page>} */
const PAGES = {
  overview: { title: "Overview", group: "Callbacks", admin: true, load: () => import("./pages/overview.js") },
  live: { title: "Live", group: "Callbacks", load: () => import("./pages/live.js") },
  events: { title: "Events", group: "Callbacks", load: () => import("./pages/events.js") },
  task: { title: "Task", group: "", hidden: true, load: () => import("./pages/task.js") },
  refused: { title: "Refused", group: "Callbacks", admin: true, load: () => import("./pages/refused.js") },
  quarantine: { title: "Quarantine", group: "Callbacks", admin: true, load: () => import("./pages/quarantine.js") },
  subscriptions: { title: "Subscriptions", group: "Clients", admin: true, load: () => import("./pages/subscriptions.js") },
  expectations: { title: "Expectations", group: "Clients", admin: true, load: () => import("./pages/expectations.js") },
  urls: { title: "Callback URLs", group: "Clients", admin: true, load: () => import("./pages/urls.js") },
  cluster: { title: "Cluster", group: "Broker", load: () => import("./pages/cluster.js") },
  configuration: { title: "Configuration", group: "Broker", admin: true, load: () => import("./pages/configuration.js") },
};
const STATE_INTERVAL = 10_000;

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const rail = /** @type {HTMLElement} */ (document.getElementById("rail"));
const who = /** @type {HTMLElement} */ (document.getElementById("who"));
const find = /** @type {HTMLFormElement} */ (document.getElementById("find"));

let leave = new AbortController();
/** @type {HTMLElement} */
const state = h("a.state", { href: "#/" }, h("span.dot"), h("span", null, "…"));
const inQuarantine = h("span.count", { hidden: true });
let isCluster = false;

const visible = () => Object.entries(PAGES).filter(([name, page]) =>
  !page.hidden && (!page.admin || session.admin) && (name !== "cluster" || isCluster));

/** What the URL's fragment names: `#/task/ID?product=veo`. */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?", 2);
  const [name, ...rest] = path.split("/").filter(Boolean).map(decoded);
  return { name: name || (session.admin ? "overview" : "events"), path: rest, params: new URLSearchParams(query ?? "") };
}

/** @param {string} part */
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

async function show() {
  if (!session.open && !session.client) return signIn();
  const { name, path, params } = place();
  const page = PAGES[name];
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  drawRail(name);

  document.title = `${page?.title ?? "Not here"} · blobcast`;
  const root = h("div.page", { "data-page": name });
  put(main, root);
  if (!page || (page.admin && !session.admin)) {
    put(root, h("h1", null, "Not here"), h("p", null, "There is no such page, or not for this client. ", h("a", { href: "#/" }, "Go to the start")));
    return;
  }
  put(root, h("div.heading", null, h("h1", null, page.title)), loading());
  /** @type {Context["go"]} */
  const go = (next, parts = path) => {
    const query = next.toString();
    location.hash = `/${[name, ...parts.map(encodeURIComponent)].join("/")}${query ? `?${query}` : ""}`;
  };
  try {
    await (await page.load()).show({ root, path, params, go, signal, reload: show });
  } catch (error) {
    if (!signal.aborted) put(root, h("h1", null, page.title), trouble(error, show));
  }
}

/** @param {string} current */
function drawRail(current) {
  const pages = visible();
  const groups = [...new Set(pages.map(([, page]) => page.group))];
  put(rail, groups.map((group) => h("div", null, h("h2", null, group), pages.filter(([, page]) => page.group === group).map(([name, page]) =>
    h("a", { href: name === "overview" ? "#/" : `#/${name}`, "aria-current": name === current ? "page" : null },
      page.title, name === "quarantine" ? inQuarantine : null)))));
  rail.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
}

/** What the top bar says: whether callbacks are taken and events can be read, and of which node. */
async function refreshState() {
  if (!session.open && !session.client) return;
  try {
    const now = session.admin ? await call("GetOverview") : await call("GetLogInfo");
    const { cluster } = now;
    const problem = session.admin ? !now.ready && (now.problem || "not ready") : cluster && !cluster.ready && "not ready";
    const nodes = cluster?.nodes?.length ? ` of ${cluster.nodes.length}` : "";
    const at = cluster ? ` · node ${cluster.node}${nodes}` : "";
    drawState(problem ? "bad" : "good", (problem || "ready") + at);
    inQuarantine.hidden = !Number(now.quarantineCount);
    put(inQuarantine, number(now.quarantineCount));
    if (isCluster !== Boolean(cluster)) {
      isCluster = Boolean(cluster);
      drawRail(place().name);
    }
  } catch (error) {
    drawState("bad", /** @type {any} */ (error).status === 0 ? "no answer" : /** @type {any} */ (error).reason || "not ready");
  }
}

/** @param {"good" | "bad"} style @param {string} text */
function drawState(style, text) {
  state.className = `state is-${style}`;
  state.title = text;
  put(/** @type {Element} */ (state.lastChild), text.slice(0, 60));
}

function drawWho() {
  find.hidden = !session.open && !session.client;
  put(who, state, session.client ? h("span.client", null, h("bdi", null, session.client)) : null,
    session.client ? h("button.button", { type: "button", onclick: signOut }, "Log out") : null);
}

async function signOut() {
  await ask("session", { method: "DELETE" }).catch(() => {});
  location.reload();
}

async function signIn() {
  leave.abort();
  leave = new AbortController();
  put(rail);
  document.title = "Log in · blobcast";
  await login(main, async () => {
    await readSession();
    drawWho();
    toast("Logged in");
    refreshState();
    show();
  });
}

find.addEventListener("submit", (event) => {
  event.preventDefault();
  const id = String(new FormData(find).get("task") ?? "").trim();
  if (!id) return;
  // A label as people write it; ids may have a "=", too, so an empty Events page leads back to the task.
  const label = id.match(/^([\w.-]+)=([^=].*)$/);
  location.hash = label ? `#/events?${new URLSearchParams({ label: `${label[1]}:${label[2]}` })}` : taskHref("", id);
  find.reset();
  main.focus();
});
addEventListener("hashchange", () => {
  const before = document.activeElement;
  const [isMenu, like] = [before && rail.contains(before), before && main.contains(before) ? likeness(before) : null];
  show().then(() => {
    if (!isMenu && before?.isConnected) return;
    // A filter that was changed by keyboard keeps its place.
    const same = like && [...main.querySelectorAll("a, button, input, select")].find((one) => likeness(one) === like);
    /** @type {HTMLElement} */ (same || main).focus({ preventScroll: true });
  });
});
addEventListener("signed-out", async () => {
  if (session.open || !session.client) return;
  await readSession().catch(() => {});
  drawWho();
  show();
});
document.addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    /** @type {HTMLInputElement} */ (find.elements[0]).focus();
  }
});

async function start() {
  try {
    await readSession();
  } catch (error) {
    put(main, h("h1", null, "blobcast"), trouble(error, start));
    return;
  }
  drawWho();
  // The code of a link that was not needed.
  if (location.hash.startsWith("#code=") && (session.open || session.client)) history.replaceState(null, "", "#/");
  await show();
  refreshState();
  setInterval(() => { if (!document.hidden) refreshState(); }, STATE_INTERVAL);
}

start();
