// Follows the log by server-sent events. Every message has a cursor, so a stream that was ended, by a pause, a restart or the
// network, goes on behind the last one and misses nothing.

import { Problem, ask } from "./api.js";

/** Longer than the longest heartbeat: a connection that is silent for so long is dead. */
const SILENCE_MAX = 50_000;
const RETRY_MAX = 10_000;

/** A browser has six connections to one host. */
const STREAMS_MAX = 4;
/** Messages come at once, or a proxy holds them back. */
const FIRST_MAX = 10_000;

/** @typedef {"connecting" | "silent" | "waiting" | "hidden" | "catching up" | "live" | "ended"} State */
/**
 * @typedef {object} Listener
 * @property {(text: string) => void} event the JSON of an event, unread
 * @property {(state: State, problem?: Problem) => void} state
 * @property {(gap: Json) => void} [gap]
 */

/** While the tab is hidden or the session has ended, it waits at its cursor. */
export class Tail {
  /** @param {URLSearchParams} filter @param {Listener} listener @param {string} [after] @param {string} [position] without a cursor */
  constructor(filter, listener, after = "", position = "") {
    this.filter = filter;
    this.listener = listener;
    this.cursor = after;
    this.position = position;
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** Until it is closed. */
    this.life = new AbortController();
    /** While it is connected, or tries to be. */
    this.held = new AbortController();
    this.tries = 0;
  }

  open() {
    this.close();
    this.life = new AbortController();
    const { signal } = this.life;
    document.addEventListener("visibilitychange", () => this.connect(), { signal });
    addEventListener("signed-in", () => this.connect(), { signal });
    this.connect();
  }

  /** Follows no more. The cursor stays. */
  close() {
    this.life.abort();
    this.disconnect();
  }

  disconnect() {
    clearTimeout(this.timer);
    this.held.abort();
    this.source?.close();
    this.source = null;
  }

  async connect() {
    this.disconnect();
    if (document.hidden) return this.listener.state("hidden");
    this.held = new AbortController();
    const { signal } = this.held;
    this.listener.state("connecting");
    this.timer = setTimeout(() => this.listener.state("waiting"), 500);
    await slot(signal);
    if (!signal.aborted) this.begin();
  }

  begin() {
    this.listener.state("connecting");
    const query = new URLSearchParams(this.filter);
    query.set("client_name", "console");
    if (this.cursor) query.set("after", this.cursor);
    else if (this.position) query.set("position", this.position);
    this.url = `v1/events/stream?${query}`;
    const source = new EventSource(this.url);
    this.source = source;

    /** @param {string} name @param {(text: string) => void} act */
    const on = (name, act) => source.addEventListener(name, (/** @type {any} */ message) => {
      if (this.source !== source) return;
      if (message.lastEventId) this.cursor = message.lastEventId;
      this.tries = 0;
      this.watch();
      act(message.data);
    });
    on("subscribed", () => this.listener.state("catching up"));
    on("event", (text) => this.listener.event(text));
    on("caught_up", () => this.listener.state("live"));
    on("fell_behind", () => this.listener.state("catching up"));
    on("progress", () => {});
    on("going_away", () => this.retry());
    on("completed", () => { this.close(); this.listener.state("ended"); });
    on("problem", (text) => {
      const body = JSON.parse(text);
      if (body.status === 429 || body.status >= 500) return this.retry();
      if (body.status === 401) return this.explain();
      this.close();
      this.listener.state("ended", new Problem(body.status, body));
    });
    on("gap", (text) => this.listener.gap?.(JSON.parse(text)));
    source.addEventListener("error", () => {
      if (this.source !== source) return;
      // A browser connects again by itself only after a good answer.
      if (source.readyState === EventSource.CLOSED) this.explain();
      else this.listener.state("connecting");
    });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.listener.state("silent");
      this.watch(SILENCE_MAX - FIRST_MAX);
    }, FIRST_MAX);
  }

  watch(most = SILENCE_MAX) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), most);
  }

  retry() {
    this.disconnect();
    this.listener.state("connecting");
    const wait = Math.min(RETRY_MAX, 500 * 2 ** this.tries++);
    this.timer = setTimeout(() => this.connect(), wait * (0.5 + Math.random() / 2));
  }

  /** An EventSource tells no reason, so the same is asked once more. */
  async explain() {
    this.disconnect();
    const stop = this.held = new AbortController();
    try {
      await ask(/** @type {string} */ (this.url), { signal: stop.signal, headers: { accept: "text/event-stream" } });
      if (!stop.signal.aborted) this.retry();
    } catch (error) {
      if (stop.signal.aborted) return;
      if (!(error instanceof Problem) || error.status === 0 || error.status === 429 || error.status >= 500) this.retry();
      else {
        if (error.status !== 401) this.close();
        this.listener.state("ended", error);
      }
    }
  }
}

/**
 * Takes a place among the streams of this origin until `signal` is aborted. Locks need TLS or a page from this machine.
 * @param {AbortSignal} signal
 */
function slot(signal) {
  if (!navigator.locks) return Promise.resolve();
  const others = new AbortController();
  const either = AbortSignal.any([signal, others.signal]);
  return /** @type {Promise<void>} */ (new Promise((resolve) => {
    signal.addEventListener("abort", () => resolve());
    for (let at = 0; at < STREAMS_MAX; at++) {
      navigator.locks.request(`blobcast stream ${at}`, { signal: either }, () => {
        if (either.aborted) return;
        others.abort();
        resolve();
        return new Promise((free) => signal.addEventListener("abort", free));
      }).catch(() => {});
    }
  }));
}
