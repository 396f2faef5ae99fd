// Logins, the rights of a session and its end, and outputs that a browser loads from elsewhere.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:https";
import { Browser, go } from "./browser.mjs";
import { Broker, freePort, until } from "./broker.mjs";

const CDN = "cdn.runblob.io";
// One transparent pixel.
const IMAGE = Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==", "base64");

export async function sessions({ program, directory }) {
  mkdirSync(directory, { recursive: true });
  const credentials = `${directory}/credentials.toml`;
  const broker = new Broker(program, directory);
  const team = JSON.parse(await broker.run("token", "new", "client", "team", "--product", "veo", "--output", "json"));
  const ops = JSON.parse(await broker.run("token", "new", "client", "ops", "--all-products", "--admin", "--output", "json"));
  const keep = (...clients) => writeFileSync(credentials, `[clients]\n${clients.map(({ line }) => line).join("\n")}\n`, { mode: 0o600 });
  keep(team, ops);
  await broker.start(`credentials_file = "${credentials}"\n`);

  const cdn = await mediaServer(directory);
  const browser = await Browser.launch({ [CDN]: cdn.port });
  const end = async () => {
    cdn.server.close();
    await browser.close();
    await broker.kill("SIGTERM");
  };

  async function logIn(page, { secret }) {
    await page.goto(broker.console);
    await page.fill("#token", secret);
    await page.click("form >> text=Log in");
    await page.waitForSelector("text=Log out");
  }

  const tests = {
    async "a wrong token is refused, and a link logs in once"() {
      const page = await browser.open(broker.console);
      await page.goto(broker.console);
      await page.fill("#token", "bcast_wrong");
      await page.click("form >> text=Log in");
      await page.waitForSelector(".trouble");
      await browser.accessible("login", page);

      writeFileSync(`${directory}/ops.token`, ops.secret, { mode: 0o600 });
      const link = (await broker.run("console", "--token-file", `${directory}/ops.token`)).trim();
      await page.goto(link);
      await page.reload();
      await page.waitForSelector("text=Log out");
      assert.ok(!page.url().includes("code"), page.url());
      const [cookie] = await page.context().cookies();
      assert.ok(cookie.httpOnly && cookie.sameSite === "Strict", JSON.stringify(cookie));

      const other = await browser.open(broker.console);
      await other.goto(link);
      await other.waitForSelector(".trouble");
      assert.equal(await other.locator("text=Log out").count(), 0);
      await page.click("text=Log out");
      await page.waitForSelector("#token");
      await other.context().close();
      await page.context().close();
    },

    async "a client sees its own products, until its line is gone"() {
      await broker.callback("veo", { generation_id: "own", status: "completed" });
      await broker.callback("sora", { generation_id: "foreign", status: "completed" });
      const page = await browser.open(broker.console);
      await logIn(page, team);
      await go(page, broker, "events", "text=own");
      assert.equal(await page.locator("text=foreign").count(), 0);
      assert.equal(await page.locator("nav >> text=Quarantine").count(), 0);
      await browser.check("a team's events", page);

      await go(page, broker, "live", ".live-state.is-live");
      keep(ops);
      await page.waitForSelector("#token");
      // A line that is put back brings no session back.
      keep(team, ops);
      const proof = { method: "POST", headers: { "content-type": "application/json", origin: new URL(broker.console).origin }, body: JSON.stringify({ token: team.secret }) };
      await until("the line", async () => (await fetch(`${broker.console}session`, proof)).status === 204);
      await page.reload();
      await page.waitForSelector("#token");
      await page.context().close();
    },

    async "an output is loaded after a click, and its host learns nothing"() {
      await broker.callback("veo", { generation_id: "image", status: "completed", image_url: `https://${CDN}/images/a.png` });
      const page = await browser.open(broker.console, { ignoreHTTPSErrors: true });
      await logIn(page, ops);
      await go(page, broker, "task/image?product=veo", ".life");
      assert.deepEqual(cdn.requests, []);
      await page.click(`text=Load image from ${CDN}`);
      await page.waitForFunction(() => document.querySelector(".frame img")?.naturalWidth === 1);

      const paths = cdn.requests.map(({ url }) => url);
      assert.deepEqual(paths, ["/images/a.png"]);
      for (const { headers } of cdn.requests) {
        for (const name of ["referer", "cookie", "authorization", "origin"]) assert.equal(headers[name], undefined, name);
        assert.ok(!JSON.stringify(headers).includes(ops.secret));
      }
      await browser.check("an image", page);
      await page.context().close();
    },
  };
  return { browser, tests, end };
}

/** Where the vendor keeps outputs, by TLS; `requests` are those that came. */
async function mediaServer(directory) {
  execFileSync("openssl", ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
    "-subj", `/CN=${CDN}`, "-keyout", `${directory}/cdn.key`, "-out", `${directory}/cdn.crt`], { stdio: "ignore" });
  const requests = [];
  const server = createServer({ key: readFileSync(`${directory}/cdn.key`), cert: readFileSync(`${directory}/cdn.crt`) }, (request, answer) => {
    requests.push({ url: request.url, headers: request.headers });
    answer.writeHead(200, { "content-type": "image/png" }).end(IMAGE);
  });
  const port = await freePort();
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  await until("the stand-in for the vendor's host", () => server.listening);
  return { server, port, requests };
}
