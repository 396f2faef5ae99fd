// Shows outputs. The browser loads them from where the vendor keeps them, and only when asked to; the broker never does.

import { h, put, webUrl } from "./dom.js";
import { session } from "./api.js";
import { button, copyButton, name } from "./parts.js";

let violations = 0;
document.addEventListener("securitypolicyviolation", () => violations++);

/** @param {Json} output @returns {HTMLElement} */
export function output({ kind, url }) {
  const address = webUrl(url);
  const place = h("div.output");
  if (!address || isOwnHost(address)) {
    put(place, h("code.wrap", null, name(url.slice(0, 2000))));
    if (address) {
      put(place, ...place.childNodes, h("p.soft", null, "No link: it is on this console's own host, and a cookie does not know ports."),
        h("div.actions", null, copyButton("Copy the address", () => url)));
    }
    return place;
  }
  const what = kind === "OUTPUT_KIND_IMAGE" ? "image" : kind === "OUTPUT_KIND_VIDEO" ? "video" : "";
  const link = h("a.wrap.mono", { href: address.href, target: "_blank", rel: "noopener noreferrer" }, `${address.host}${address.pathname}`.slice(0, 300));
  const isAllowed = address.protocol === "https:" && session.media !== "off"
    && (!session.mediaHosts?.length || session.mediaHosts.some((/** @type {string} */ host) => host.toLowerCase() === address.host));
  if (!what || !isAllowed) {
    put(place, link);
    return place;
  }

  const frame = h("div.frame");
  const load = () => {
    const before = violations;
    const failed = () => put(frame, h("span", null, violations > before ? `The ${what} is not at a host in console.media_hosts.`
      : `The ${what} could not be loaded. Its link may have expired.`));
    const media = what === "video"
      ? h("video", { controls: true, preload: "metadata", playsinline: true, onerror: failed, "aria-label": "Output" })
      : h("img", { alt: "Output", referrerpolicy: "no-referrer", decoding: "async", onerror: failed });
    media.src = address.href;
    put(frame, media);
  };
  put(frame, button(`Load ${what} from ${address.host}`, load));
  if (session.media === "auto") load();
  put(place, frame, link);
  return place;
}

/**
 * Whether a request would carry the session's cookie: it is good for the host, whatever the port.
 * @param {URL} address
 */
function isOwnHost({ hostname }) {
  const plain = (/** @type {string} */ host) => host.replace(/\.$/, "");
  return plain(hostname) === plain(location.hostname);
}
