// Writes times, numbers and words as people read them. Pure.

const TWO = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const CLOCK = new Intl.DateTimeFormat(undefined, /** @type {any} */ ({ ...TWO, fractionalSecondDigits: 3 }));
const SECOND = new Intl.DateTimeFormat(undefined, /** @type {any} */ (TWO));
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
/** The zone in which this browser writes times. */
export const ZONE = new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts().find((part) => part.type === "timeZoneName")?.value ?? "";
const NUMBER = new Intl.NumberFormat("en");

/** @param {string | undefined} time RFC 3339 @returns {Date | null} */
export function date(time) {
  const read = time ? new Date(time) : null;
  return read && Number.isFinite(read.getTime()) ? read : null;
}

/** @param {string | undefined} time */
export const clock = (time) => format(CLOCK, time);
/** @param {string | undefined} time */
export const full = (time) => format(FULL, time);

/**
 * The time of today, and the day of any other.
 * @param {string | undefined} time
 */
export function moment(time) {
  const at = date(time);
  if (!at) return "";
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? SECOND.format(at) : `${DAY.format(at)}, ${SECOND.format(at)}`;
}

/** @param {Intl.DateTimeFormat} by @param {string | undefined} time */
function format(by, time) {
  const at = date(time);
  return at ? by.format(at) : "";
}

/**
 * A number, or a 64-bit one that is a string in JSON.
 * @param {any} value
 */
export function number(value) {
  const read = Number(value ?? 0);
  return NUMBER.format(Number.isFinite(read) ? read : 0);
}

/**
 * `one("event", 3)` is "3 events".
 * @param {string} word
 * @param {any} count
 */
export function counted(word, count) {
  return `${number(count)} ${word}${Number(count) === 1 ? "" : "s"}`;
}

/** @param {any} value */
export function bytes(value) {
  let size = Number(value ?? 0);
  if (size < 1024) return `${size} B`;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    size /= 1024;
    if (size < 1024 || unit === "TiB") return `${size < 10 ? size.toFixed(1) : Math.round(size)} ${unit}`;
  }
  return "";
}

/**
 * A span in words: "63 s", "14 min", "5.1 d".
 * @param {number} milliseconds
 */
export function span(milliseconds) {
  const all = Math.max(0, milliseconds) / 1000;
  if (all < 1) return `${Math.round(all * 1000)} ms`;
  if (all < 100) return `${Math.round(all)} s`;
  if (all < 100 * 60) return `${Math.round(all / 60)} min`;
  if (all < 48 * 3600) return `${Math.round(all / 3600)} h`;
  const days = all / 86400;
  return `${days < 10 ? Number(days.toFixed(1)) : Math.round(days)} d`;
}

/**
 * A duration of protobuf JSON, "604800s", in milliseconds.
 * @param {string | undefined} text
 */
export function duration(text) {
  return Number.parseFloat(text ?? "0") * 1000 || 0;
}

/**
 * How long ago, or in how long.
 * @param {string | undefined} time
 */
export function ago(time) {
  const at = date(time);
  if (!at) return "never";
  const past = Date.now() - at.getTime();
  return past >= 0 ? `${span(past)} ago` : `in ${span(-past)}`;
}

/**
 * From the task's creation at the vendor to its end, by the vendor's clock.
 * @param {Json} event
 */
export function took(event) {
  const [from, to] = [date(event.createdAt), date(event.completedAt)];
  return from && to && to >= from ? span(to.getTime() - from.getTime()) : "";
}

/**
 * A value of an enum in words: `TASK_STATUS_COMPLETED` is "completed".
 * @param {string} prefix
 * @param {any} value
 */
export function word(prefix, value) {
  return String(value ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");
}

/**
 * The text of a body, which is base64 in JSON, with its JSON indented. `null` if it is no text.
 * @param {string | undefined} base64
 * @returns {string | null}
 */
export function bodyText(base64) {
  const raw = Uint8Array.from(atob(base64 ?? ""), (character) => character.charCodeAt(0));
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(raw);
  } catch {
    return null;
  }
}

/** Deeper or longer than this, indenting helps nobody and makes a browser slow: blanks grow with depth times lines. */
const DEPTH_MAX = 100, INDENTED_MAX = 512 * 1024;
export const SHOWN_MAX = 256 * 1024;

/**
 * JSON indented, by its text: numbers and the order of keys stay as they were sent. What is no JSON, or too deep or too long, stays
 * as it is, and `why` says so.
 * @param {string} text
 * @returns {{text: string, why: string}}
 */
export function indented(text) {
  const asItIs = (/** @type {string} */ why) => ({ text, why });
  if (text.length > SHOWN_MAX) return asItIs("Not indented: it is too long.");
  try {
    JSON.parse(text);
  } catch {
    return asItIs("");
  }
  let out = "", depth = 0, inString = false;
  const line = () => `\n${"  ".repeat(depth)}`;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (inString) {
      out += character;
      if (character === "\\") out += text[++at];
      else if (character === '"') inString = false;
    } else if (character === '"') { inString = true; out += character; }
    else if (/\s/.test(character)) continue;
    else if (character === "{" || character === "[") {
      let next = at + 1;
      while (/\s/.test(text[next])) next++;
      if (text[next] === "}" || text[next] === "]") { out += character + text[next]; at = next; }
      else if (++depth > DEPTH_MAX) return asItIs(`Not indented: it is nested more than ${DEPTH_MAX} deep.`);
      else out += character + line();
    }
    else if (character === "}" || character === "]") { depth--; out += line() + character; }
    else if (character === ",") out += character + line();
    else out += character === ":" ? ": " : character;
    if (out.length > INDENTED_MAX) return asItIs("Not indented: it would be too long.");
  }
  return { text: out, why: "" };
}

/** Characters that cannot be seen, or that change how their neighbours are read: controls, directions, zero widths. */
export const UNSEEN = /([\p{Cc}\p{Cf}\u034f\u115f\u1160\u17b4\u17b5\u2028\u2029\u3164\uffa0])/u;

/** @param {string} character */
export const codePoint = (character) => `U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}`;

/**
 * A name with each character that cannot be seen written out.
 * @param {any} text
 */
export const seen = (text) => String(text ?? "").split(UNSEEN).map((part, at) => at % 2 ? `[${codePoint(part)}]` : part).join("");

/**
 * Text for base64.
 * @param {string} text
 */
export function base64(text) {
  let binary = "";
  for (const byte of new TextEncoder().encode(text)) binary += String.fromCharCode(byte);
  return btoa(binary);
}
