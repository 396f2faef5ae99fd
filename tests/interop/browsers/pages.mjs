// The pages of a web application, on an origin of its own. It has the client's library and the generated code, and no script else.

import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { join, normalize } from "node:path";

const MODULES = "/node_modules";
const IMPORTS = {
  "@bufbuild/protobuf": `${MODULES}/@bufbuild/protobuf/dist/esm/index.js`,
  "@connectrpc/connect": `${MODULES}/@connectrpc/connect/dist/esm/index.js`,
  "@connectrpc/connect-web": `${MODULES}/@connectrpc/connect-web/dist/esm/index.js`,
};
for (const part of ["codegenv2", "wire", "wkt"]) {
  IMPORTS[`@bufbuild/protobuf/${part}`] = `${MODULES}/@bufbuild/protobuf/dist/esm/${part}/index.js`;
}
for (const part of ["protocol", "protocol-connect", "protocol-grpc-web"]) {
  IMPORTS[`@connectrpc/connect/${part}`] = `${MODULES}/@connectrpc/connect/dist/esm/${part}/index.js`;
}
const PAGE = `<!doctype html><title>An application</title><link rel="icon" href="data:,">
<script type="importmap">${JSON.stringify({ imports: IMPORTS })}</script>`;

/** Serves them; returns their origin, and what ends them. */
export async function serve(directory, port) {
  const server = createServer((request, answer) => {
    const path = normalize(new URL(request.url, "http://page").pathname);
    const file = join(directory, path);
    if (path === "/") answer.writeHead(200, { "content-type": "text/html" }).end(PAGE);
    else if (path.endsWith(".js") && existsSync(file)) createReadStream(file).pipe(answer.writeHead(200, { "content-type": "text/javascript" }));
    else answer.writeHead(404).end();
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return { origin: `http://127.0.0.1:${port}`, close: () => server.close() };
}
