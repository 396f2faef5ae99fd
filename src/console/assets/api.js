// Calls the broker: the same JSON as on the gRPC listener, below this page's own address, with the session's cookie.

/** @typedef {Record<string, any>} Json */

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

/**
 * One unary RPC.
 * @param {string} rpc
 * @param {Json} [request]
 * @param {AbortSignal} [signal]
 * @returns {Promise<Json>}
 */
export async function call(rpc, request = {}, signal) {
  return json(await ask(`v1/${rpc}`, { method: "POST", body: JSON.stringify(request), signal }));
}

/**
 * The answer to a request, if it is a good one.
 * @param {string} path relative to the page
 * @param {RequestInit} [init]
 * @returns {Promise<Response>}
 */
export async function ask(path, init = {}) {
  const headers = new Headers(init.headers);
  if (init.body) headers.set("content-type", "application/json");
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...init, headers });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(0, { detail: "The broker does not answer. It may be restarting, or the network is down." });
  }
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await body(answer));
  if (problem.status === 401) dispatchEvent(new CustomEvent("signed-out"));
  throw problem;
}

/** @param {Response} answer @returns {Promise<Json>} */
export async function json(answer) {
  return answer.status === 204 ? {} : answer.json();
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
}
