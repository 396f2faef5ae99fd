// The console's files from a directory, in front of a broker that answers everything else. serve.mjs DIRECTORY BROKER [PORT]
// A changed file is there with the next reload of the page, with the headers and refusals of the broker's own.

import { readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml" };

/** Listens on `port`, any if 0; `admin` is the port of the broker's admin listener on this machine. */
export async function serve(directory, admin, port = 0) {
  const server = createServer(async (asked, answer) => {
    const name = asked.method === "GET" && decodeURI(new URL(asked.url, "http://x").pathname).match(/^\/ui\/(.*)$/)?.[1];
    const file = name === "" ? "index.html" : name;
    const text = file && extname(file) in TYPES ? await readFile(join(directory, normalize(`/${file}`))).catch(() => null) : null;
    // The broker knows not every new file, but always the page, whose headers and refusals are the same.
    const path = text ? "/ui/" : asked.url;
    const headers = { ...asked.headers };
    if (text) for (const one of ["if-none-match", "accept-encoding"]) delete headers[one];
    const onward = request({ host: "127.0.0.1", port: admin, path, method: asked.method, headers, agent: false }, (got) => {
      const own = { ...got.headers };
      for (const one of ["connection", "transfer-encoding", "keep-alive"]) delete own[one];
      if (text && got.statusCode === 200) {
        got.resume();
        for (const one of ["etag", "content-length"]) delete own[one];
        return answer.writeHead(200, { ...own, "content-type": TYPES[extname(file)], "cache-control": "no-store" }).end(text);
      }
      answer.writeHead(got.statusCode, own);
      answer.flushHeaders();
      got.pipe(answer);
      got.on("close", () => got.complete || answer.destroy());
    });
    onward.on("error", () => answer.destroy());
    answer.on("close", () => onward.destroy());
    asked.pipe(onward);
  });
  await new Promise((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  return server;
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [directory, broker, port] = process.argv.slice(2);
  const server = await serve(directory, Number(broker.split(":").at(-1)), Number(port ?? 0));
  console.log(`http://127.0.0.1:${server.address().port}/ui/`);
}
