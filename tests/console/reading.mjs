// What pages say of callbacks that were made to mislead, and how pages are used: filters, focus, dialogs.

import assert from "node:assert/strict";
import { Browser, go } from "./browser.mjs";
import { Broker, until } from "./broker.mjs";

export async function reading({ program, directory }) {
  const broker = new Broker(program, directory);
  await broker.start();
  const browser = await Browser.launch({ "cdn.test": 9 });
  const end = async () => {
    await browser.close();
    await broker.kill("SIGTERM");
  };
  const opened = async (route, ready, options) => {
    const page = await browser.open(broker.console, options);
    await go(page, broker, route, ready);
    return page;
  };
  const tests = {
  async "an output at the console's own host is neither loaded nor linked"() {
    const own = "https://127.0.0.1:9/a.png";
    await broker.callback("nanobanana", { generation_id: "own", status: "completed", image_url: own });
    await broker.callback("nanobanana", { generation_id: "other", status: "completed", image_url: "https://cdn.test/a.png" });
    const page = await opened("task/own", ".output");
    assert.match(await page.textContent(".output"), /127\.0\.0\.1:9\/a\.png.*own host/);
    assert.equal(await page.locator(".output a, .output img, .output >> text=Load").count(), 0);
    await go(page, broker, "task/other", ".output >> text=cdn.test");
    assert.equal(await page.locator(".output a").count(), 1);
    await page.context().close();
  },

  async "a body that is deeply nested is shown as it is"() {
    for (const depth of [12_000, 60_000]) await broker.callback("veo", "[".repeat(depth) + "]".repeat(depth));
    await broker.callback("veo", `[${"{},".repeat(200_000)}{}]`);
    const page = await opened("quarantine", "td.c-cause a");
    for (let at = 0; at < 3; at++) {
      await go(page, broker, "quarantine", "td.c-cause a");
      await page.click(`td.c-cause a >> nth=${at}`);
      await page.click("text=Show body");
      await page.waitForSelector("text=/Not indented: it is (too long|nested)/");
      assert.ok((await page.locator(".body-view pre").textContent()).length <= 256 * 1024);
    }
    await page.context().close();
  },

  async "labels stand on their own, and what cannot be seen is written out"() {
    await broker.callback("veo", { generation_id: "a\u200Bb", status: "completed" }, `?zz=1&a=${encodeURIComponent("x\u202E")}&team=${encodeURIComponent("\u202Ecba")}`);
    const page = await opened(`task/${encodeURIComponent("a\u200Bb")}`, ".life");
    assert.equal(await page.textContent("h1"), "aU+200Bb");
    assert.deepEqual(await page.locator(".facts .pair-of").allTextContents(), ["a=xU+202E", "team=U+202Ecba", "zz=1"]);
    await page.click(".facts .pair-of >> text=team");
    await page.waitForSelector("[data-page=events] >> td.c-task");
    assert.equal(await page.locator("td.c-task").count(), 1);
    assert.ok(!/[\u202E\u200B]/.test(await page.textContent("tbody")));
    await page.context().close();
  },

  async "Enter in a dialog does what its main button says"() {
    const page = await opened("quarantine", "td.c-cause a");
    await page.check("text=all on this page");
    await page.click("text=Discard 3");
    await page.fill("dialog input", "2");
    await page.keyboard.press("Enter");
    assert.equal(await page.locator("dialog").count(), 1);
    await page.fill("dialog input", "3");
    await page.keyboard.press("Enter");
    await page.waitForSelector("text=Nothing is in quarantine");
    await page.context().close();
  },

  async "the quarantine has the newest first, and one reason at a time"() {
    await broker.callback("veo", "not json");
    await broker.callback("veo", { status: "completed" });
    const page = await opened("quarantine", "td.c-cause a");
    assert.deepEqual(await page.locator("td.c-cause a").allTextContents(), ["no task id", "not json"]);
    assert.ok(!(await page.textContent("main")).includes("(--"));
    await page.click(".facets >> text=not json 1");
    await until("one reason", async () => await page.locator("td.c-cause").count() === 1);
    assert.match(page.url(), /reason=not_json/);
    await page.context().close();
  },

  async "the overview renews itself around the focus and the selection"() {
    const page = await opened("", ".tiles");
    await page.locator("td.c-task a").first().focus();
    await page.evaluate(() => getSelection().selectAllChildren(document.querySelector(".facts .mono")));
    const before = await page.textContent(".tiles");
    await broker.callback("veo", { generation_id: "renewed", status: "completed" });
    await page.waitForFunction((text) => document.querySelector(".tiles").textContent !== text, before);
    assert.equal(await page.evaluate(() => document.activeElement.tagName), "A");
    assert.notEqual(await page.evaluate(() => getSelection().toString()), "");
    await page.evaluate(() => { document.activeElement.blur(); getSelection().removeAllRanges(); });
    await page.waitForSelector("td.c-task >> text=renewed");
    await page.context().close();
  },

  async "a client's name neither hides its lag nor turns its address around"() {
    const long = "x".repeat(128), turned = "\u202Eexe.tneilc";
    const laggard = { client: "", clientName: long, peer: "127.0.0.1:1", state: "SUBSCRIPTION_STATE_STALLED", lag: "12345" };
    await broker.callback("veo", { generation_id: "behind", status: "completed" });
    for (const width of [360, 900, 1600]) {
      const page = await browser.open(broker.console, { viewport: { width, height: 900 } });
      await page.route("**/v1/GetOverview", async (route) => {
        const answer = await route.fetch();
        await route.fulfill({ response: answer, json: { ...await answer.json(), laggards: [laggard], subscriptionCount: "1" } });
      });
      await page.route("**/v1/ListSubscriptions", (route) => route.fulfill({ json: { nextPageToken: "", subscriptions:
        [{ ...laggard, taskIdCount: 0, deliveredCount: "1", openedAt: new Date().toISOString() }, { ...laggard, clientName: turned, taskIdCount: 0, deliveredCount: "1", openedAt: new Date().toISOString() }] } }));
      await go(page, broker, "", ".tiles");
      assert.ok(await page.locator("td.c-lag").isVisible());
      await browser.check(`a long name on the overview ${width}`, page);
      await go(page, broker, "subscriptions", "td.c-client");
      assert.deepEqual(await page.locator("td.c-client >> nth=1").locator("div bdi").allTextContents(), ["U+202Eexe.tneilc", "127.0.0.1:1"]);
      await browser.check(`a long name among subscriptions ${width}`, page);
      await page.context().close();
    }
  },

  async "the configuration tells what is not the default"() {
    const page = await opened("configuration?changed", "tbody tr");
    const keys = (await page.locator("td.c-cause").allTextContents()).sort();
    assert.ok(keys.includes("grpc.listen") && keys.length >= 4 && keys.length < 12, keys.join());
    await page.context().close();
  },

  async "a link with a time means the same in every zone, and tables say theirs"() {
    const queries = [];
    for (const timezoneId of ["America/New_York", "Asia/Tokyo"]) {
      const page = await browser.open(broker.console, { timezoneId });
      page.on("request", (request) => /v1\/events\?/.test(request.url()) && queries.push(new URL(request.url()).searchParams.get("since")));
      await go(page, broker, "events?since=2026-01-01T16:00:00Z", "td.c-task");
      assert.equal(await page.inputValue("[aria-label=since]"), timezoneId === "Asia/Tokyo" ? "2026-01-02T01:00" : "2026-01-01T11:00");
      assert.match(await page.textContent("th.c-time"), /time \S+/);
      await page.fill("[aria-label=since]", "2026-01-01T12:00:00");
      await page.waitForFunction((hour) => location.hash.includes(`T${hour}%3A00%3A00Z`), timezoneId === "Asia/Tokyo" ? "03" : "17");
      await page.context().close();
    }
    assert.equal(new Date(queries[0]).getTime(), Date.parse("2026-01-01T16:00:00Z"));
    assert.equal(queries.filter((one) => one === queries[0]).length, 2, queries.join());
  },

  async "a later contradiction appears on the page of a task that had ended"() {
    await broker.callback("veo", { generation_id: "twice", status: "completed", video_url: "https://cdn.test/a.mp4" });
    const page = await opened("task/twice", ".life");
    assert.equal(await page.title(), "\u2068twice\u2069 · completed · blobcast");
    await broker.callback("veo", { generation_id: "twice", status: "failed" });
    await page.waitForSelector(".life >> text=conflict");
    await page.context().close();
  },

  async "an order's number leads to its task"() {
    await broker.callback("veo", { generation_id: "of-an-order", status: "completed" }, "?ref=order-42");
    const page = await opened("task/order-42", ".empty");
    await page.click(".empty .pair-of >> text=ref");
    await page.waitForSelector("[data-page=events] >> text=of-an-order");
    await page.fill("#find input", "ref=order-42");
    await page.keyboard.press("Enter");
    await page.waitForSelector("[data-page=events] >> text=of-an-order");
    await page.fill("#find input", "ref=none");
    await page.keyboard.press("Enter");
    await page.click("text=is it a task >> a >> text=ref=none");
    await page.waitForSelector("[data-page=task]");
    await page.context().close();
  },

  async "a filter keeps its place under the keyboard"() {
    const page = await opened("events", "td.c-task");
    await page.locator(".toggle >> text=failed").focus();
    await page.keyboard.press("Enter");
    await page.waitForSelector(".toggle[aria-pressed=true] >> text=failed");
    await page.waitForFunction(() => document.activeElement.textContent === "failed");
    await page.context().close();
  },

  async "refusals are found by cause and by text"() {
    assert.equal(await broker.callback("veo", "x".repeat(8 << 20)).catch(() => 413), 413);
    await until("the refusal", async () => (await (await fetch(`http://127.0.0.1:${broker.ports.grpc}/v1/ListRefusals`, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" })).json()).refusals.length);
    const page = await opened("refused", "td.c-cause");
    const all = await page.locator("td.c-cause").count();
    await page.fill("[type=search][aria-label^=Find]", "no such text");
    await page.keyboard.press("Enter");
    await page.waitForSelector("text=No refusal matches");
    await go(page, broker, "refused", "td.c-cause");
    await page.click(".facets button");
    await page.waitForSelector(".facets [aria-pressed=true]");
    assert.ok(await page.locator("td.c-cause").count() <= all && all > 0);
    await page.context().close();
  },

  async "a page of a list that is no more leads to the first"() {
    const page = await browser.open(broker.console);
    await page.goto(`${broker.console}#/events?page_token=junk`);
    await page.click("text=First page");
    await page.waitForSelector("td.c-task");
    await page.goto(`${broker.console}#/task/`);
    await page.waitForSelector(".trouble");
    assert.equal((await page.textContent(".trouble")).match(/128/g).length, 1);
    await page.context().close();
  },

  async "a label may have any name"() {
    const page = await opened("urls", "form.stack");
    await page.fill("[name=labels]", "__proto__=x\nconstructor=y");
    const asked = page.waitForRequest(/MintCallbackUrl/);
    await page.click("text=Make the URL");
    assert.match((await asked).postData(), /"__proto__":"x"/);
    await page.context().close();
  },
};
  return { browser, tests, end };
}
