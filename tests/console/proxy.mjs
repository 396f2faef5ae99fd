// The console below a path of a proxy: nginx by the block of docs/console.md.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { Browser } from "./browser.mjs";
import { Broker, freePort, until } from "./broker.mjs";

const PATH = "/tools/blobcast/";

export async function proxy({ program, directory }) {
  const broker = new Broker(program, `${directory}/broker`);
  await broker.start();
  const nginx = await startNginx(`${directory}/nginx`, broker.ports.admin);
  const browser = await Browser.launch();
  const end = async () => {
    nginx.process.kill();
    await browser.close();
    await broker.kill("SIGTERM");
  };

  const tests = {
    async "below a path of a proxy, pages, calls and the tail work as without one"() {
      const page = await browser.open(nginx.origin);
      await page.goto(`${nginx.origin}${PATH}ui/`);
      await page.waitForSelector("text=callback_url");
      await page.click("nav >> text=Live");
      await page.waitForSelector(".live-state.is-live");
      await broker.callback("veo", { generation_id: "through", status: "completed" });
      await page.waitForSelector("td.c-task >> text=through");
      await page.click("nav >> text=Callback URLs");
      await page.waitForSelector("form.stack");
      const form = page.locator("form.stack");
      await form.locator("button.main").click();
      // Without a signing key the answer is a refusal, but one by the broker.
      await page.waitForSelector(".trouble");
      assert.ok(new URL(page.url()).pathname === `${PATH}ui/`);
      await browser.check("behind nginx", page);
      await page.context().close();
    },
  };
  return { browser, tests, end };
}

async function startNginx(directory, admin) {
  const page = readFileSync(process.env.CONSOLE_PAGE, "utf8");
  const [, block] = page.match(/```nginx\n([^`]*)```/);
  assert.ok(block.includes(`location ${PATH} {`), block);
  mkdirSync(directory, { recursive: true });
  const port = await freePort();
  writeFileSync(`${directory}/nginx.conf`, `
daemon off; pid ${directory}/pid; error_log stderr; worker_processes 1;
events {}
http {
  access_log off;
  client_body_temp_path ${directory}; proxy_temp_path ${directory}; fastcgi_temp_path ${directory}; uwsgi_temp_path ${directory}; scgi_temp_path ${directory};
  server {
    listen 127.0.0.1:${port};
    ${block.replace("127.0.0.1:9090", `127.0.0.1:${admin}`)}
  }
}
`);
  const running = spawn("nginx", ["-p", directory, "-e", "stderr", "-c", `${directory}/nginx.conf`], { stdio: "ignore" });
  const origin = `http://127.0.0.1:${port}`;
  await until("nginx", async () => (await fetch(`${origin}${PATH}readyz`).catch(() => null))?.ok);
  return { process: running, origin };
}
