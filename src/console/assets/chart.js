// Small charts in SVG. They say in words, too, what they show.

import { h, svg } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 288, HEIGHT = 44;

/**
 * A row of bars, the oldest first; the last `counts.length` spans of time.
 * @param {number[]} counts
 * @param {{label: string, style?: string, from: string, to: string}} texts
 */
export function bars(counts, { label, style = "accent", from, to }) {
  const top = Math.max(1, ...counts), step = WIDTH / Math.max(1, counts.length);
  const total = counts.reduce((sum, count) => sum + count, 0);
  const drawn = counts.map((count, at) => {
    const height = count === 0 ? 0 : Math.max(2, (count / top) * (HEIGHT - 2));
    return height ? svg(`rect.${style}`, { x: at * step, y: HEIGHT - height, width: Math.max(0.8, step - 0.6), height }) : null;
  });
  const said = `${label}: ${number(total)} in all, at most ${number(Math.max(0, ...counts))}`;
  return h("figure.chart", null,
    svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
      svg("line.ground", { x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }), drawn),
    h("figcaption", null, h("span", null, from), h("span", null, to)));
}

/** @param {number} used @param {number} whole @param {string} label */
export function meter(used, whole, label) {
  const share = whole > 0 ? Math.min(1, used / whole) : 0;
  return svg("svg.meter", { viewBox: "0 0 100 6", preserveAspectRatio: "none", role: "img", "aria-label": `${label}: ${Math.round(share * 100)} %` },
    svg("rect.ground", { width: 100, height: 6 }),
    svg(`rect.${share > 0.9 ? "warn" : "accent"}`, { width: share * 100, height: 6 }));
}
