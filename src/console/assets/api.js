// Calls the broker: the same JSON as on the gRPC listener, below this page's own address, with the session's cookie.

/** An answer that is an error, as RFC 9457 has it, or no answer at all (status 0). */
export class Problem extends Error {
  /** @param {number} status @param {Json} body */
  constructor(status, body) {
    super(body.detail || body.title || `HTTP ${status}`);
    this.status = status;
    this.reason = String(body.reason ?? "");
    this.requestId = String(body.request_id ?? "");
    this.violations = /** @type {Json[]} */ (body.violations ?? []);
  }
}

const ANSWER_MAX = 10_000;

/** `since`: when the oldest request was sent that nothing was heard after, or 0. */
export const contact = { since: 0 };

/** @param {string} why */
export function noAnswer(why = "The broker does not answer. It may be restarting, or the network is down.") {
  dispatchEvent(new CustomEvent("no-answer"));
  return new Problem(0, { detail: why });
}

/**
 * What the broker sends, if it comes in time.
 * @template T
 * @param {Promise<T>} promise
 * @returns {Promise<T>}
 */
export async function inTime(promise) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(noAnswer("No answer for 10 s: the broker hangs, or the network is down.")), ANSWER_MAX);
  });
  try {
    return await Promise.race([promise, /** @type {Promise<never>} */ (late)]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * One unary RPC.
 * @param {string} rpc
 * @param {Json} [request]
 * @param {AbortSignal} [signal]
 * @returns {Promise<Json>}
 */
export async function call(rpc, request = {}, signal) {
  const answer = await json(await ask(`v1/${rpc}`, { method: "POST", body: JSON.stringify(request), signal }));
  // What a page has asked for is not asked for once more by the top bar.
  if (rpc === (session.admin ? "GetOverview" : "GetLogInfo")) dispatchEvent(new CustomEvent("state", { detail: answer }));
  return answer;
}

let isOut = false;

/**
 * The answer to a request, if it is a good one.
 * @param {string} path relative to the page
 * @param {RequestInit} [init]
 * @returns {Promise<Response>}
 */
export async function ask(path, init = {}) {
  // Pages that refresh themselves go on below the login.
  if (isOut && path !== "session") throw new Problem(401, { detail: "Log in first." });
  const headers = new Headers(init.headers);
  if (init.body) headers.set("content-type", "application/json");
  const stop = new AbortController();
  const signal = init.signal ? AbortSignal.any([init.signal, stop.signal]) : stop.signal;
  contact.since ||= Date.now();
  let answer;
  try {
    answer = await inTime(fetch(path, { cache: "no-store", ...init, headers, signal }));
  } catch (error) {
    stop.abort();
    if (init.signal?.aborted || error instanceof Problem) throw error;
    throw noAnswer();
  }
  contact.since = 0;
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await body(answer));
  if (problem.status === 401 && !isOut) {
    isOut = true;
    dispatchEvent(new CustomEvent("signed-out"));
  }
  throw problem;
}

/** @param {Response} answer @returns {Promise<Json>} */
export async function json(answer) {
  return answer.status === 204 ? {} : inTime(answer.json());
}

/** @param {Response} answer @returns {Promise<Json>} */
async function body(answer) {
  const text = await answer.text().catch(() => "");
  try {
    return JSON.parse(text);
  } catch {
    return { title: answer.statusText, detail: text.slice(0, 400) };
  }
}

/**
 * What the session may do, and what the console is set to. Read once, and again after a login.
 * @type {Json}
 */
export const session = {};

/** Reads the session. */
export async function readSession() {
  const answer = await json(await ask("session"));
  for (const key of Object.keys(session)) delete session[key];
  Object.assign(session, answer);
  isOut = !session.open && !session.client;
}
