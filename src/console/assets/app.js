// The frame around the pages: which page the URL names, who is logged in, and how the broker is.

import { h, likeness, put, toast } from "./dom.js";
import { ask, call, contact, inTime, noAnswer, readSession, session } from "./api.js";
import { number, span } from "./format.js";
import { loading, trouble } from "./parts.js";
import { taskHref } from "./event-row.js";
import { login } from "./login.js";

/** @typedef {{title: string, group: string, admin?: boolean, hidden?: boolean}} Page */

/** @type {Record<string, Page>} */
const PAGES = {
  overview: { title: "Overview", group: "Callbacks", admin: true },
  live: { title: "Live", group: "Callbacks" },
  events: { title: "Events", group: "Callbacks" },
  task: { title: "Task", group: "", hidden: true },
  refused: { title: "Refused", group: "Callbacks", admin: true },
  quarantine: { title: "Quarantine", group: "Callbacks", admin: true },
  subscriptions: { title: "Subscriptions", group: "Clients", admin: true },
  expectations: { title: "Expectations", group: "Clients", admin: true },
  urls: { title: "Callback URLs", group: "Clients", admin: true },
  cluster: { title: "Cluster", group: "Broker" },
  configuration: { title: "Configuration", group: "Broker", admin: true },
};
const STATE_INTERVAL = 10_000, AFTER_FAILURE = 2_000;
const WAITED_MAX = 5_000;

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const rail = /** @type {HTMLElement} */ (document.getElementById("rail"));
const who = /** @type {HTMLElement} */ (document.getElementById("who"));
const find = /** @type {HTMLFormElement} */ (document.getElementById("find"));

let leave = new AbortController();
/** @type {HTMLElement} */
const state = h("a.state", { href: "#/" }, h("span.dot"), h("span", null, "…"));
const inQuarantine = h("span.count", { hidden: true });
let isCluster = false;
/** The page is not the one of the address. */
let hasFailed = false;
/** Whose page is shown. */
let shownTo = "";

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

const isIn = () => Boolean(session.open || session.client);
/** @param {string} name @returns {Page | undefined} */
const pageOf = (name) => Object.hasOwn(PAGES, name) ? PAGES[name] : undefined;

/** @param {string} name @returns {Promise<{show: (context: Context) => unknown}>} */
function load(name) {
  return inTime(import(`./pages/${name}.js`)).catch((error) => { throw error instanceof TypeError ? noAnswer() : error; });
}

async function show() {
  if (!isIn()) return signIn(main);
  const { name, path, params } = place();
  const page = pageOf(name);
  hasFailed = false;
  shownTo = session.client;
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
  /** @type {Go} */
  const go = (next, parts = path) => {
    const query = next.toString();
    location.hash = `/${[name, ...parts.map(encodeURIComponent)].join("/")}${query ? `?${query}` : ""}`;
  };
  try {
    const loaded = await load(name);
    if (!signal.aborted) await loaded.show({ root, path, params, go, signal, reload: show });
  } catch (error) {
    if (signal.aborted) return;
    hasFailed = true;
    put(root, h("h1", null, page.title), trouble(error, show));
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

let askedAt = 0, isAsking = false;

/** What the top bar says: whether callbacks are taken and events can be read, and of which node. */
async function refreshState() {
  if (!isIn() || isAsking || document.hidden) return;
  isAsking = true;
  askedAt = Date.now();
  try {
    await call(session.admin ? "GetOverview" : "GetLogInfo");
  } catch (error) {
    if (/** @type {any} */ (error).status) drawState("bad", /** @type {any} */ (error).reason || "not ready");
  } finally {
    isAsking = false;
  }
}

addEventListener("state", (event) => {
  const now = /** @type {CustomEvent} */ (event).detail, { cluster } = now;
  askedAt = Date.now();
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
});
const drawSilence = () => drawState("bad", `no answer for ${span(Date.now() - contact.since)}`);
addEventListener("no-answer", drawSilence);
document.addEventListener("visibilitychange", refreshState);

function watchBroker() {
  if (document.hidden || !isIn()) return;
  if (contact.since && Date.now() - contact.since > WAITED_MAX) drawSilence();
  if (Date.now() - askedAt > (contact.since ? AFTER_FAILURE : STATE_INTERVAL)) refreshState();
}

/** @param {"good" | "bad"} style @param {string} text */
function drawState(style, text) {
  state.className = `state is-${style}`;
  state.title = text;
  put(/** @type {Element} */ (state.lastChild), text.slice(0, 60));
}

function drawWho() {
  find.hidden = !isIn();
  put(who, isIn() ? state : null, session.client ? h("span.client", null, h("bdi", null, session.client)) : null,
    session.client ? h("button.button", { type: "button", onclick: signOut }, "Log out") : null);
}

async function signOut() {
  await ask("session", { method: "DELETE" }).catch(() => {});
  history.replaceState(null, "", "#/");
  location.reload();
}

/** @param {HTMLElement} where */
async function signIn(where, why = "") {
  if (where === main) leave.abort();
  put(rail);
  document.title = "Log in · blobcast";
  await login(where, async () => {
    await readSession();
    toast("Logged in");
    goOn();
    if (where !== main) /** @type {HTMLDialogElement} */ (where).close();
  }, why);
}

/** After a login: with the page that was there, if it is the same client's. */
function goOn() {
  const page = pageOf(place().name);
  if (!page || (page.admin && !session.admin)) history.replaceState(null, "", "#/");
  drawWho();
  refreshState();
  main.hidden = false;
  if (main.querySelector("[data-page]") && !hasFailed && shownTo === session.client) {
    drawRail(place().name);
    document.title = titleBefore;
    dispatchEvent(new CustomEvent("signed-in"));
  } else {
    show().then(() => main.focus({ preventScroll: true }));
  }
}

let titleBefore = "";
const ENDED = "Your session has ended: 30 minutes without a request, 12 hours, a start of the broker, or a change of the client's line. Log in to go on.";

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
  if (main.hidden) return hasFailed = true;
  if (dropCode()) return;
  const before = document.activeElement;
  const [isMenu, like] = [before && rail.contains(before), before && main.contains(before) ? likeness(before) : null];
  show().then(() => {
    if (!isMenu && before?.isConnected) return;
    // A filter that was changed by keyboard keeps its place.
    const same = like && [...main.querySelectorAll("a, button, input, select")].find((one) => likeness(one) === like);
    /** @type {HTMLElement} */ (same || main).focus({ preventScroll: true });
  });
});
// The page stays below the login, with what was typed; nobody sees it until then.
addEventListener("signed-out", async () => {
  titleBefore = document.title;
  await readSession().catch(() => {});
  if (isIn()) return goOn();
  drawWho();
  main.hidden = true;
  const box = h("dialog", { "aria-label": "Log in", oncancel: (/** @type {Event} */ event) => event.preventDefault() });
  box.addEventListener("close", () => isIn() ? box.remove() : box.showModal());
  document.body.append(box);
  box.showModal();
  signIn(box, ENDED);
});
document.addEventListener("keydown", (event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !target.closest("input, textarea, select, dialog")) {
    event.preventDefault();
    /** @type {HTMLInputElement} */ (find.elements[0]).focus();
  }
});

/** The code of a link that was not needed must not stay in the address. */
function dropCode() {
  if (!location.hash.startsWith("#code=") || !isIn()) return false;
  history.replaceState(null, "", "#/");
  show();
  return true;
}

async function start() {
  put(main, loading());
  try {
    await readSession();
  } catch (error) {
    put(main, h("h1", null, "blobcast"), trouble(error, start));
    return;
  }
  drawWho();
  if (!dropCode()) await show();
  refreshState();
  setInterval(watchBroker, 1_000);
}

start();
