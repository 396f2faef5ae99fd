// Every page with real callbacks, on a broker that needs no login.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { Browser, go } from "./browser.mjs";
import { Broker, until } from "./broker.mjs";

const HOSTILE = { id: "<script>x</script>", prompt: "<img src=x onerror=alert(1)>", label: "<svg onload=alert(1)>", rtl: "\u202Eabc" };
const WIDTHS = [360, 900, 1600], THEMES = ["light", "dark"];

/** With `pictures`, each page is kept there as it looks. */
export async function pages({ program, directory, pictures }) {
  const broker = new Broker(program, directory);
  await broker.start();
  const browser = await Browser.launch();
  const end = async () => {
    await browser.close();
    await broker.kill("SIGTERM");
  };
  const tests = {
  async "the first page says how to send a callback and turns with the first one"() {
    const page = await browser.open(broker.console);
    await go(page, broker, "", "text=callback_url");
    assert.match(await page.textContent("main"), /curl .*webhook\/veo/);
    await broker.callback("veo", { generation_id: "first", status: "completed", video_url: "https://cdn.runblob.io/videos/a.mp4" }, "?team=ads");
    await page.waitForSelector("text=The first callback is durable");
    await browser.check("first page", page);
    await page.context().close();
  },

  async "every page in both themes and three widths, with hostile callbacks"() {
    const long = "x".repeat(250);
    await broker.callback("sora", { generation_id: HOSTILE.id, status: "failed", prompt: HOSTILE.prompt, error_message: HOSTILE.label }, `?a=${encodeURIComponent(HOSTILE.label)}&long=${long}&rtl=${encodeURIComponent(HOSTILE.rtl)}`);
    await broker.callback("kling", { generation_id: "k1", status: "processing" });
    await broker.callback("veo", "{\"status\":");
    await broker.callback("veo", { status: "completed", prompt: "no id" });
    await broker.callback("..%2f%3Cscript%3E", {});
    const routes = { overview: ["", ".tiles"], live: ["live", ".live-state.is-live"], events: ["events", "td.c-task"], task: ["task/first?product=veo", ".life"],
      hostile: [`task/${encodeURIComponent(HOSTILE.id)}`, ".life"], unknown: ["task/nothing", ".empty"], refused: ["refused", "h1"], quarantine: ["quarantine", "td.c-cause a"],
      subscriptions: ["subscriptions", ".panel"], ended: ["subscriptions/ended", ".panel"], expectations: ["expectations", ".panel"], urls: ["urls", "form.stack"], configuration: ["configuration", "tbody tr"] };
    for (const theme of THEMES) for (const width of WIDTHS) {
      const page = await browser.open(broker.console, { viewport: { width, height: 900 }, colorScheme: theme });
      for (const [name, [route, ready]] of Object.entries(routes)) {
        const label = `${name} ${width} ${theme}`;
        await go(page, broker, route, ready);
        await browser.check(label, page);
        await browser.accessible(label, page);
        if (pictures) { mkdirSync(pictures, { recursive: true }); await page.screenshot({ path: `${pictures}/${name}-${width}-${theme}.png` }); }
        assert.equal(await page.locator("main script, main img, main svg[onload]").count(), 0, label);
      }
      await page.context().close();
    }
  },

  async "a paused tail misses nothing, also over a crash of the broker"() {
    const page = await browser.open(broker.console);
    await go(page, broker, "live", ".live-state.is-live");
    await broker.callback("veo", { generation_id: "before", status: "completed" });
    await page.waitForSelector("text=before");
    await page.click("text=Pause");
    for (let at = 0; at < 5; at++) await broker.callback("veo", { generation_id: `paused-${at}`, status: "completed" });
    await page.waitForSelector("text=5 behind");
    assert.equal(await page.locator("text=paused-").count(), 0);
    await page.click("text=Resume");
    await page.waitForSelector("text=paused-4");
    assert.equal(await page.locator("td.c-task >> text=paused-").count(), 5);

    await broker.kill();
    await broker.start();
    for (let at = 0; at < 5; at++) await broker.callback("veo", { generation_id: `after-${at}`, status: "completed" });
    await page.waitForSelector("text=after-4", { timeout: 30_000 });
    const ids = await page.locator("td.c-task").allTextContents();
    assert.deepEqual(ids.slice(0, 5), [4, 3, 2, 1, 0].map((at) => `after-${at}`));
    assert.equal(new Set(ids).size, ids.length);
    await page.context().close();
  },

  async "prompts and media wait for a click"() {
    const page = await browser.open(broker.console);
    await broker.callback("veo", { generation_id: "shown", status: "completed", prompt: "a red fox", video_url: "https://cdn.runblob.io/videos/shown.mp4" });
    await go(page, broker, "task/shown?product=veo", ".life");
    assert.ok(!(await page.textContent("main")).includes("a red fox"));
    assert.equal(await page.locator("video, img").count(), 0);
    await page.click("text=Show prompt");
    await page.waitForSelector("text=a red fox");
    await browser.check("task", page);
    await page.context().close();
  },

  async "a quarantined callback is released with a correction, and others are discarded by their count"() {
    const page = await browser.open(broker.console);
    await go(page, broker, "quarantine", "td.c-cause a");
    await page.click("td.c-cause a >> nth=1");
    await page.click("text=Preview");
    await page.waitForSelector("text=release it with its `task_id`");
    await page.fill("input[name=taskId]", "given");
    await page.click("text=Preview");
    await page.click("summary >> text=given");
    await page.waitForSelector('pre >> text="revision": 1');
    await browser.check("preview", page);
    await browser.accessible("preview", page);
    await page.click("button.main");
    await page.waitForSelector("text=Released as 1 event");
    await go(page, broker, "quarantine", "td.c-cause a");
    for (const box of await page.locator("td.c-check input").all()) await box.check();
    await page.click("text=Discard 2");
    await page.fill("dialog input", "2");
    await page.click("dialog button.main");
    await page.waitForSelector("text=Nothing is in quarantine");
    await browser.check("quarantine", page);
    await page.context().close();
  },

  async "a test callback is sent, and the task shows who waits for it and how often it was repeated"() {
    const page = await browser.open(broker.console);
    await go(page, broker, "urls", "form.stack");
    await page.fill("input[placeholder='/webhook/veo']", "/webhook/sora?team=ads");
    await page.click("button:text-is('Send')");
    await page.waitForSelector(".note >> text=200");
    await browser.check("test callback", page);
    await browser.accessible("test callback", page);
    await page.click("a >> text=test-");
    await page.waitForSelector(".life");
    await go(page, broker, "task/nothing", ".empty");
    await page.waitForSelector("text=Nobody waits for it.");

    const waiting = broker.run("wait", "waited", "--product", "veo", "--timeout", "60s");
    for (let times = 0; times < 3; times++) await broker.callback("veo", { generation_id: "waited", status: "processing" });
    await until("the wait", async () => (await broker.run("subscriptions", "--task-id", "waited")).includes("WaitTask"));
    await go(page, broker, "task/waited?product=veo", ".life");
    await page.waitForSelector("text=Who waits for it");
    assert.match(await page.textContent("main"), /WaitTask.*since/s);
    assert.match(await page.textContent("main"), /repeated 2×, last /);
    await browser.check("waited for", page);
    await browser.accessible("waited for", page);
    await broker.callback("veo", { generation_id: "waited", status: "completed" });
    await waiting;
    await page.context().close();
  },

  async "only the keyboard"() {
    const page = await browser.open(broker.console);
    await go(page, broker, "events", "td.c-task");
    await page.keyboard.press("/");
    await page.keyboard.type("first");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".life");
    assert.match(page.url(), /#\/task\/first$/);
    await page.context().close();
  },
};
  return { browser, tests, end };
}
