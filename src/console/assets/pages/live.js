// Events as they come. Pausing disconnects at a cursor; resuming goes on behind it, so nothing is missed. More than a person can
// read is counted, not drawn.

import { h, put } from "../dom.js";
import { Problem, call } from "../api.js";
import { counted, number } from "../format.js";
import { COLUMNS, eventRow } from "../event-row.js";
import { filterBar, filterOf, isFiltered } from "../filter.js";
import { button, empty, heading, table, trouble } from "../parts.js";
import { Tail } from "../stream.js";

const DRAW_INTERVAL = 250;
/** New rows in one drawing: 48 a second are more than anybody reads, and a browser draws them without effort. */
const DRAWN_MAX = 12;
const ROWS_MAX = 300;
const BEHIND_INTERVAL = 2_000;
/** Scrolled down further than this, somebody reads: rows must not move. */
const READING_FROM = 160;

/** @type {Record<string, string>} */
const STATES = { silent: "nothing comes", waiting: "waiting: four other tabs follow the log", hidden: "connecting" };

/** @param {Context} context */
export function show({ root, params, go, signal }) {
  /** @type {string[]} the JSON of events that are not drawn yet, the oldest first */
  let waiting = [];
  let state = "connecting", isPaused = false, seen = 0, leftOut = 0, rate = 0, inSecond = 0, behind = 0;
  /** @type {Problem | undefined} */
  let problem;

  const status = h("span.live-state", { role: "status" });
  const toggle = button("Pause", () => isPaused ? resume() : pause());
  toggle.classList.add("main");
  const note = h("p.live-note.soft");
  const more = button("", () => { scrollTo({ top: 0 }); draw(); });
  more.className = "button main more";
  more.hidden = true;
  const place = h("div");
  const list = table("Events as they come", COLUMNS, []);
  const body = /** @type {HTMLElement} */ (list.querySelector("tbody"));
  put(root, heading("Live"), h("section.panel.live", null,
    filterBar(params, (next) => go(withCursor(next)), status, toggle), place, note, list), more);

  /** So a reload goes on there, too. @param {URLSearchParams} next */
  function withCursor(next, is = isPaused) {
    next = new URLSearchParams(next);
    next.delete("after");
    if (is && tail.cursor) next.set("after", tail.cursor);
    return next;
  }
  function keep(is = isPaused) {
    const query = withCursor(params, is);
    history.replaceState(null, "", `#/live${query.size ? `?${query}` : ""}`);
  }

  const tail = new Tail(filterOf(params), {
    event(text) {
      inSecond++;
      seen++;
      waiting.push(text);
      // While events of the past come, as many are kept as there are rows; they are drawn at once.
      const limit = state === "live" && !isReading() ? DRAWN_MAX * 2 : ROWS_MAX;
      if (waiting.length > limit) leftOut += waiting.splice(0, waiting.length - limit).length;
    },
    state(next, why) {
      if (isPaused) return;
      if (state === "ended") {
        keep(false);
        put(place);
      }
      state = next;
      problem = why;
      if (problem) {
        keep(true);
        // The login stands above the page.
        put(place, problem.status === 401 ? null : lost(problem));
      }
      tell();
    },
    gap(gap) { put(place, h("div.trouble", null, `Retention has forgotten events before they could be shown (${gap.reason}).`)); },
  }, params.get("after") ?? "");

  /** Why the stream has ended, and how to go on. @param {Problem} why */
  function lost(why) {
    const isOther = why.reason === "EPOCH_MISMATCH";
    if (!isOther && !why.reason.includes("CURSOR")) return trouble(why, () => tail.open());
    return [trouble(why), h("div.trouble", null, h("p", null, isOther
      ? "This is another log than before: restored, or created anew."
      : "The log does not have the place where this page was. Events that came since may be missing here."),
    button(isOther ? "Follow the new log from its beginning" : "Follow from the oldest event", () => {
      tail.cursor = "";
      tail.position = "earliest";
      tail.open();
    }))];
  }

  const isReading = () => scrollY > READING_FROM;

  function draw() {
    if (signal.aborted || !waiting.length) return tell();
    if (isReading()) {
      more.hidden = false;
      put(more, `${counted("new event", waiting.length)} ↑`);
      return tell();
    }
    more.hidden = true;
    const limit = state === "live" && waiting.length <= DRAWN_MAX * 2 ? DRAWN_MAX : ROWS_MAX;
    leftOut += Math.max(0, waiting.length - limit);
    const rows = waiting.slice(-limit).map((text) => eventRow(JSON.parse(text), true));
    waiting = [];
    body.prepend(...rows.reverse());
    while (body.childElementCount > ROWS_MAX) body.lastElementChild?.remove();
    tell();
  }

  function tell() {
    const quiet = isFiltered(params) ? "live, nothing matched yet" : "live, nothing came yet";
    const text = isPaused ? (behind === undefined ? "paused" : `paused · ${number(behind)} behind`)
      : state === "live" ? (rate > 0 ? `live · ${number(rate)}/s` : seen ? "live" : quiet) : STATES[state] ?? state;
    if (status.textContent !== text) put(status, text);
    status.className = `live-state ${isPaused ? "is-paused" : state === "live" ? "is-live" : ""}`;
    const left = state === "silent" && !isPaused ? "Asked 10 s ago, and no message came: does a proxy hold streams back?"
      : leftOut ? `${counted("event", leftOut)} of ${number(seen)} not drawn: they came faster than anybody reads. All are in Events.` : "";
    if (note.textContent !== left) put(note, left);
    const isEmpty = !body.childElementCount;
    list.hidden = isEmpty;
    if (isEmpty && !place.childElementCount && !problem) {
      put(place, empty("No event yet.", isFiltered(params) ? "It appears here within milliseconds after its callback, if it matches the filter."
        : "It appears here within milliseconds after its callback. Events of the past are on the page Events."));
    } else if (!isEmpty && place.querySelector(".empty")) put(place);
  }

  function pause() {
    draw();
    isPaused = true;
    behind = 0;
    rate = 0;
    tail.close();
    keep();
    put(toggle, "Resume");
    tell();
    countBehind();
  }

  function resume() {
    isPaused = false;
    state = "connecting";
    put(toggle, "Pause");
    keep();
    tail.open();
  }

  async function countBehind() {
    if (!isPaused || signal.aborted || document.hidden) return;
    try {
      const { eventsAfter } = await call("GetLogInfo", { afterCursor: tail.cursor }, signal);
      if (isPaused) behind = eventsAfter;
    } catch { /* the top bar says it */ }
    tell();
  }

  const drawing = setInterval(draw, DRAW_INTERVAL);
  const counting = setInterval(countBehind, BEHIND_INTERVAL);
  const measuring = setInterval(() => { rate = inSecond; inSecond = 0; }, 1_000);
  const key = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "p" && !event.ctrlKey && !event.metaKey && !(/** @type {HTMLElement} */ (event.target).closest("input, select, textarea, dialog"))) toggle.click();
  };
  document.addEventListener("keydown", key);
  signal.addEventListener("abort", () => {
    tail.close();
    for (const timer of [drawing, counting, measuring]) clearInterval(timer);
    document.removeEventListener("keydown", key);
  });
  tell();
  tail.open();
}
