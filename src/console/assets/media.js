// Shows outputs. The browser loads them from where the vendor keeps them, and only when asked to; the broker never does.

import { h, put, webUrl } from "./dom.js";
import { session } from "./api.js";
import { button } from "./parts.js";

/** @param {Record<string, any>} output @returns {HTMLElement} */
export function output({ kind, url }) {
  const address = webUrl(url);
  const place = h("div.output");
  if (!address) {
    put(place, h("code.wrap", null, url.slice(0, 2000)));
    return place;
  }
  const what = { OUTPUT_KIND_IMAGE: "image", OUTPUT_KIND_VIDEO: "video" }[/** @type {string} */ (kind)];
  const link = h("a.wrap.mono", { href: address.href, target: "_blank", rel: "noopener noreferrer" }, `${address.host}${address.pathname}`.slice(0, 300));
  const isAllowed = address.protocol === "https:" && session.media !== "off"
    && (!session.mediaHosts?.length || session.mediaHosts.includes(address.hostname));
  if (!what || !isAllowed) {
    put(place, link);
    return place;
  }

  const frame = h("div.frame");
  const load = () => {
    const failed = () => put(frame, h("span", null, `The ${what} could not be loaded. Its link may have expired.`));
    const media = what === "video"
      ? h("video", { controls: true, preload: "metadata", playsinline: true, onerror: failed, "aria-label": "Output" })
      : h("img", { alt: "Output", referrerpolicy: "no-referrer", decoding: "async", onerror: failed });
    media.src = address.href;
    put(frame, media);
  };
  put(frame, button(`Load ${what} from ${address.hostname}`, load));
  if (session.media === "auto") load();
  put(place, frame, link);
  return place;
}
