// A broker on ports of its own, and callbacks for it.

import { execFile, spawn } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { serve } from "./serve.mjs";

/** A port below those that the system gives to clients, so that a broker finds it free again after a crash. */
export async function freePort() {
  for (;;) {
    const port = 12_000 + Math.floor(Math.random() * 18_000);
    const server = createServer();
    const free = await new Promise((resolve) => {
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => resolve(true));
    });
    if (!free) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

export class Broker {
  constructor(program, directory) {
    mkdirSync(directory, { recursive: true });
    Object.assign(this, { program, directory });
  }

  async start(options = "") {
    this.ports ??= { ingest: await freePort(), grpc: await freePort(), admin: await freePort() };
    const { ingest, grpc } = this.ports;
    // With ASSETS, the console's files come from that directory.
    if (process.env.ASSETS && !this.front) this.front = await serve(process.env.ASSETS, this.behind = await freePort(), this.ports.admin);
    const admin = this.behind ?? this.ports.admin;
    writeFileSync(`${this.directory}/blobcast.toml`, options);
    this.process = spawn(this.program, ["serve", "--config", `${this.directory}/blobcast.toml`, "--data-dir", `${this.directory}/${this.data ?? "data"}`,
      "--ingest-listen", `127.0.0.1:${ingest}`, "--grpc-listen", `127.0.0.1:${grpc}`, "--admin-listen", `127.0.0.1:${admin}`], { stdio: "ignore" });
    await until("the broker", async () => (await fetch(`http://127.0.0.1:${admin}/readyz`).catch(() => null))?.ok);
  }

  get console() { return `http://127.0.0.1:${this.ports.admin}/ui/`; }

  async kill(signal = "SIGKILL") {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill(signal);
    await ended;
    if (signal === "SIGTERM") this.front?.close().closeAllConnections();
  }

  async callback(product, body, query = "") {
    const answer = await fetch(`http://127.0.0.1:${this.ports.ingest}/webhook/${product}${query}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: typeof body === "string" ? body : JSON.stringify(body),
    });
    return answer.status;
  }

  run(...words) {
    const { grpc, admin } = this.ports ?? {};
    const env = { ...process.env, ...(this.ports && { BLOBCAST_ADMIN_URL: `http://127.0.0.1:${admin}`, BLOBCAST_GRPC_URL: `http://127.0.0.1:${grpc}` }) };
    return new Promise((resolve, reject) => execFile(this.program, words, { env }, (error, out) => error ? reject(error) : resolve(out)));
  }
}

export async function until(what, is, seconds = 30) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    if (await is()) return;
    if (Date.now() > end) throw new Error(`waited for ${what}, ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
