// The nodes of the cluster, as the node sees them that answers.

import { h, put } from "../dom.js";
import { call } from "../api.js";
import { bytes, number } from "../format.js";
import { cell, empty, facts, heading, panel, row, table } from "../parts.js";
import { meter } from "../chart.js";

/** @param {Context} context */
export async function show({ root, signal }) {
  const { cluster, head } = await call("GetLogInfo", {}, signal);
  if (!cluster) return put(root, heading("Cluster"), panel(null, empty("This broker is alone.", "Several brokers with one log are a cluster: see docs/cluster.md.")));
  const rows = cluster.nodes.map((/** @type {any} */ node, /** @type {number} */ at) => row(
    cell("c-client", h("b", null, node.name), at === 0 ? h("span.mark", null, "answers") : null, node.name === cluster.writer ? h("span.mark", null, "writes") : null),
    cell("c-status", h(`span.status.is-${node.mismatches.length ? "failed" : node.ready ? "completed" : "processing"}`, null,
      node.mismatches.length ? `differs: ${node.mismatches.join(", ")}` : node.ready === undefined ? "not told" : node.ready ? "takes callbacks" : "takes none")),
    cell("c-lag.right", number(node.streamLag)),
    cell("c-count.right", node.place === undefined ? "–" : number(node.place)),
    cell("c-version.mono.soft", node.version)));
  const columns = [{ name: "node", class: "c-client" }, { name: "state", class: "c-status" }, { name: "behind", class: "c-lag.right" },
    { name: "newest event", class: "c-count.right" }, { name: "version", class: "c-version" }];
  const [used, most] = [Number(cluster.streamBytes), Number(cluster.streamBytesMax)];
  put(root, heading(`Cluster ${cluster.name}`, h("span.soft", null, `seen from node ${cluster.node}`)),
    cluster.problem ? h("div.trouble", { role: "alert" }, cluster.problem) : null,
    cluster.hole ? h("div.trouble", { role: "alert" }, "This node follows the stream no more. Reads go on; see docs/cluster.md.") : null,
    panel("Nodes", rows.length ? table("Nodes", columns, rows) : empty("The nodes are shown to administrators only.")),
    panel("Stream", h("div.pad", null, facts([
      ["writer", cluster.writer || "not known yet"],
      ["not seen yet", `${number(cluster.streamLag)} messages`],
      ["size", most ? `${bytes(used)} of ${bytes(most)}` : "not known yet"],
      ["head", h("span.mono.wrap", null, head)],
    ]), most ? meter(used, most, "Stream") : null)));
}
