// The login: by a client's token, or by the code in the link that `blobcast console` prints.

import { h, put } from "./dom.js";
import { ask, session } from "./api.js";
import { trouble } from "./parts.js";

/** @param {HTMLElement} root @param {() => Promise<void>} done @param {string} [why] */
export async function login(root, done, why) {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  const place = h("div");
  const token = h("input", { type: "password", id: "token", name: "token", autocomplete: "current-password", required: true, spellcheck: "false" });
  const enter = async (/** @type {Record<string, string>} */ by) => {
    put(place);
    try {
      await ask("session", { method: "POST", body: JSON.stringify(by) });
      token.value = "";
      await done();
    } catch (error) {
      put(place, trouble(error));
    }
  };
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    enter({ token: token.value.trim() });
  };

  put(root, h("div.page.login", null,
    h("h1", null, "Log in"),
    why ? h("p.note", { role: "status" }, why) : null,
    h("form.stack", { onsubmit: submit },
      h("label", { for: "token" }, "Token of a client"),
      token,
      h("button.button.main", null, "Log in")),
    place,
    session.hasClients ? null : h("p.note", null, "No client is in the credentials file, and this listener can be reached from other machines. Add one with ", h("code", null, "blobcast token new client"), "."),
    h("p.soft", null, "A client with ", h("code", null, "admin = true"), " sees everything, any other its own products. ", h("code", null, "blobcast console --token-file PATH"), " prints a link that logs in once.")));

  if (code) {
    // It is good once: neither the history nor a bookmark should keep it.
    history.replaceState(null, "", "#/");
    await enter({ code });
  } else {
    token.focus();
  }
}
