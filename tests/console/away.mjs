// What the pages say when the broker hangs, is away, is another one, or ends the session; and many tabs at once.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { Browser, go } from "./browser.mjs";
import { Broker, until } from "./broker.mjs";

const LIVE = ".live-state.is-live";

export async function away({ program, directory }) {
  const open = new Broker(program, `${directory}/open`);
  await open.start();
  const guarded = new Broker(program, `${directory}/guarded`);
  mkdirSync(guarded.directory, { recursive: true });
  const credentials = `${guarded.directory}/credentials.toml`;
  const ops = JSON.parse(await guarded.run("token", "new", "client", "ops", "--all-products", "--admin", "--output", "json"));
  const other = JSON.parse(await guarded.run("token", "new", "client", "other", "--all-products", "--output", "json"));
  const keep = (...clients) => writeFileSync(credentials, `[clients]\n${clients.map(({ line }) => line).join("\n")}\n`, { mode: 0o600 });
  keep(ops, other);
  await guarded.start(`credentials_file = "${credentials}"\n`);
  const browser = await Browser.launch();
  const end = async () => {
    await browser.close();
    await Promise.all([open, guarded].map((broker) => broker.kill("SIGTERM")));
  };

  const done = (generation_id) => ({ generation_id, status: "completed" });
  const row = (page, id) => page.waitForSelector(`td.c-task >> text=${id}`);
  async function logIn(page, { secret }) {
    await page.fill("#token", secret);
    await page.click("form >> text=Log in");
    await page.waitForSelector("#token", { state: "detached" });
  }
  /** What a browser does with a tab behind another one; without a window it does not. */
  const turn = (page, isHidden) => page.evaluate((is) => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => is });
    document.dispatchEvent(new Event("visibilitychange"));
  }, isHidden);
  const streams = async (broker) => {
    const listed = await broker.run("subscriptions", "--output", "json");
    return listed.split("\n").filter(Boolean).length;
  };

  const tests = {
    async "seven tabs load, four of them follow the log, and a hidden one goes on at its cursor"() {
      const first = await browser.open(open.console);
      await go(first, open, "live", LIVE);
      const pages = [first];
      for (let at = 1; at < 8; at++) {
        const page = await first.context().newPage();
        await page.goto(`${open.console}#/live`);
        await page.waitForSelector(at < 4 ? LIVE : "text=four other tabs");
        pages.push(page);
      }
      assert.equal(await streams(open), 4);
      await turn(first, true);
      await pages[4].waitForSelector(LIVE);
      await turn(pages[1], true);
      await pages[5].waitForSelector(LIVE);
      await open.callback("veo", done("while-hidden"));
      await row(pages[4], "while-hidden");
      assert.equal(await first.locator("text=while-hidden").count(), 0);
      for (const page of pages.slice(1)) await page.close();
      await turn(first, false);
      await row(first, "while-hidden");
      await browser.check("many tabs", first);
      await first.context().close();
    },

    async "a broker that hangs is said, and one that is away, also by a page that was not open before"() {
      const page = await browser.open(open.console);
      await open.callback("veo", done("before"));
      await go(page, open, "events", "td.c-task");
      open.process.kill("SIGSTOP");
      try {
        const asked = [];
        page.on("request", (one) => asked.push(one.url()));
        await page.waitForSelector(".state.is-bad >> text=/no answer for 1\\d s/");
        await page.click("nav >> text=Callback URLs");
        await page.waitForSelector(".trouble >> text=No answer for 10 s");
        assert.ok(asked.filter((url) => url.endsWith("GetOverview")).length < 5, asked.join(" "));
      } finally {
        open.process.kill("SIGCONT");
      }
      await page.waitForSelector(".state.is-good");
      await open.kill();
      await page.click("nav >> text=Configuration");
      await page.waitForSelector(".trouble >> text=The broker does not answer");
      await page.waitForSelector(".state.is-bad >> text=no answer");
      await open.start();
      await page.click("text=Try again");
      await page.waitForSelector("tbody tr");
      await page.context().close();
    },

    async "a tail says that the log is another one, and follows it from its beginning"() {
      const page = await browser.open(open.console);
      await go(page, open, "live", LIVE);
      await open.kill();
      open.data = "other";
      await open.start();
      await open.callback("veo", done("of-the-new-log"));
      await page.click("text=Follow the new log from its beginning");
      await row(page, "of-the-new-log");
      await page.context().close();
    },

    async "a client's name does not turn around what stands beside it"() {
      const page = await browser.open(open.console);
      const stop = new AbortController();
      const query = new URLSearchParams({ client_name: "\u202Eexe.tnega" });
      const stream = fetch(`${open.console}v1/events/stream?${query}`, { signal: stop.signal });
      await stream;
      await go(page, open, "subscriptions", "td.c-client");
      const texts = await page.locator("td.c-client bdi").allTextContents();
      assert.ok(texts.some((text) => /^127\.0\.0\.1:\d+$/.test(text)), texts.join(" | "));
      assert.ok(texts.every((text) => !text.includes("\u202E")), texts.join(" | "));
      stop.abort();
      await go(page, open, "expectations", "text=Set reconcile.enabled");
      await browser.check("expectations", page);
      await page.context().close();
    },

    async "a proxy that holds streams back is guessed"() {
      const holding = createServer((asked, answer) => {
        const isStream = asked.url.includes("/events/stream");
        const onward = request({ host: "127.0.0.1", port: open.ports.admin, path: asked.url, method: asked.method, headers: asked.headers }, (got) => {
          answer.writeHead(got.statusCode, got.headers);
          if (isStream) answer.flushHeaders();
          else got.pipe(answer);
        });
        onward.on("error", () => answer.destroy());
        answer.on("close", () => onward.destroy());
        asked.pipe(onward);
      });
      await new Promise((resolve) => holding.listen(0, "127.0.0.1", resolve));
      const origin = `http://127.0.0.1:${holding.address().port}`;
      const page = await browser.open(origin);
      await page.goto(`${origin}/ui/#/live`);
      await page.waitForSelector(".live-note >> text=does a proxy hold streams back");
      await page.context().close();
      holding.close().closeAllConnections();
    },

    async "a page whose scripts are refused says so"() {
      const page = await browser.open(open.console);
      await page.route("**/*.js", (route) => route.fulfill({ status: 403 }));
      await page.goto(open.console);
      await page.waitForSelector("text=The scripts of this page did not come");
      await page.context().close();
    },

    async "names that every object has are no pages, and a code does not stay in the address"() {
      const page = await browser.open(open.console);
      for (const name of ["constructor", "__proto__", "toString"]) {
        await page.goto(`${open.console}#/${name}`);
        await page.waitForSelector(`[data-page="${name}"] >> text=Not here`);
      }
      await page.evaluate(() => { location.hash = "code=secret"; });
      await page.waitForSelector('[data-page="overview"]');
      assert.ok(!page.url().includes("code"), page.url());
      await page.context().close();
    },

    async "a session that ends while the tail is paused says why, and nothing is missed after the login"() {
      const page = await browser.open(guarded.console);
      await page.goto(guarded.console);
      await logIn(page, ops);
      await go(page, guarded, "live", LIVE);
      await guarded.callback("veo", done("m-1"));
      await row(page, "m-1");
      await page.click("text=Pause");
      await guarded.callback("veo", done("m-2"));
      await page.waitForSelector("text=1 behind");
      assert.match(page.url(), /after=/);
      keep(other);
      await page.waitForSelector("dialog >> text=Your session has ended");
      assert.ok(!await page.isVisible("main") && !await page.isVisible(".state"));
      await browser.accessible("login again", page);
      keep(ops, other);
      await guarded.callback("veo", done("m-3"));
      await until("the client", async () => (await logInBy(guarded, ops)) === 204);
      await logIn(page, ops);
      await page.click("text=Resume");
      for (const id of ["m-1", "m-2", "m-3"]) await row(page, id);
      assert.doesNotMatch(page.url(), /after=/);

      // The same while it follows, and with a reload in between.
      keep(other);
      await page.waitForSelector("dialog >> text=Your session has ended");
      keep(ops, other);
      await guarded.callback("veo", done("m-4"));
      await until("the client", async () => (await logInBy(guarded, ops)) === 204);
      await page.context().clearCookies();
      await page.reload();
      await logIn(page, ops);
      await row(page, "m-4");
      await page.context().close();
    },

    async "what was typed is there after another login of the same client only"() {
      const page = await browser.open(guarded.console);
      await page.goto(guarded.console);
      await logIn(page, ops);
      await guarded.callback("veo", "{\"status\":");
      await go(page, guarded, "quarantine", "td.c-cause a");
      await page.click("td.c-cause a");
      await page.fill("input[name=taskId]", "typed");
      await page.context().clearCookies();
      await page.click("button.main");
      await page.waitForSelector("dialog >> text=Your session has ended");
      await logIn(page, ops);
      assert.equal(await page.inputValue("input[name=taskId]"), "typed");

      await page.context().clearCookies();
      await page.click("button.main");
      await page.waitForSelector("dialog >> text=Your session has ended");
      await logIn(page, other);
      await page.waitForSelector('[data-page="events"]');
      assert.equal(await page.locator("text=Not here").count(), 0);
      await page.context().close();
    },
  };
  return { browser, tests, end };
}

async function logInBy(broker, { secret }) {
  const url = new URL(broker.console);
  const answer = await fetch(`${url}session`, { method: "POST", headers: { "content-type": "application/json", origin: url.origin }, body: JSON.stringify({ token: secret }) });
  return answer.status;
}
