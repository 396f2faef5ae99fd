// Follows the log by server-sent events. Every message has a cursor, so a stream that was ended, by a pause, a restart or the
// network, goes on behind the last one and misses nothing.

import { Problem, ask } from "./api.js";

/** Longer than the longest heartbeat: a connection that is silent for so long is dead. */
const SILENCE_MAX = 50_000;
const RETRY_MAX = 10_000;

/**
 * @typedef {object} Listener
 * @property {(text: string) => void} event the JSON of an event, unread
 * @property {(state: "connecting" | "catching up" | "live" | "ended", problem?: Problem) => void} state
 * @property {(gap: Record<string, any>) => void} [gap]
 */

export class Tail {
  /** @param {URLSearchParams} filter @param {Listener} listener @param {string} [after] cursor */
  constructor(filter, listener, after = "") {
    this.filter = filter;
    this.listener = listener;
    this.cursor = after;
    /** @type {EventSource | null} */
    this.source = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    this.tries = 0;
  }

  /** Connects behind the last cursor. */
  open() {
    this.close();
    this.listener.state("connecting");
    const query = new URLSearchParams(this.filter);
    query.set("client_name", "console");
    if (this.cursor) query.set("after", this.cursor);
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
    this.watch();
  }

  /** Disconnects. The cursor stays. */
  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  watch() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), SILENCE_MAX);
  }

  retry() {
    this.close();
    this.listener.state("connecting");
    const wait = Math.min(RETRY_MAX, 500 * 2 ** this.tries++);
    this.timer = setTimeout(() => this.open(), wait * (0.5 + Math.random() / 2));
  }

  /** An EventSource tells no reason, so the same is asked once more. */
  async explain() {
    this.close();
    const stop = new AbortController();
    try {
      await ask(/** @type {string} */ (this.url), { signal: stop.signal, headers: { accept: "text/event-stream" } });
      stop.abort();
      this.retry();
    } catch (error) {
      if (!(error instanceof Problem) || error.status === 0 || error.status === 429 || error.status >= 500) this.retry();
      else this.listener.state("ended", error);
    }
  }
}
