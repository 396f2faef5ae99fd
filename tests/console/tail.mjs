// The live page while more comes than anybody reads.

import assert from "node:assert/strict";
import { Browser, go } from "./browser.mjs";
import { Broker } from "./broker.mjs";

const CALLBACKS = 5_000, PER_SECOND = 1_000, AT_ONCE = 16;
/** The most rows that the page keeps. */
const ROWS_MAX = 300;

export async function tail({ program, directory }) {
  const broker = new Broker(program, directory);
  await broker.start();
  const browser = await Browser.launch();
  const end = async () => {
    await browser.close();
    await broker.kill("SIGTERM");
  };

  /** Callbacks at `PER_SECOND`, or as fast as this machine can. */
  async function send(prefix) {
    const began = Date.now();
    let next = 0;
    const caller = async () => {
      for (let at = next++; at < CALLBACKS; at = next++) {
        const early = began + at * 1000 / PER_SECOND - Date.now();
        if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
        assert.equal(await broker.callback("veo", { generation_id: `${prefix}-${at}`, status: "completed" }), 200);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, caller));
  }

  /** Waits until the page says that so many came, and returns how many of them it did not draw. */
  async function leftOut(page, total) {
    const text = `of ${total.toLocaleString("en")} not drawn`;
    await page.waitForSelector(`.live-note >> text=${text}`);
    const note = await page.textContent(".live-note");
    return Number(note.match(/^([\d,]+) events? of/)[1].replaceAll(",", ""));
  }

  const tests = {
    async "a tail at a thousand events a second stays usable, counts what it leaves out, and misses nothing on pause"() {
      const page = await browser.open(broker.console, { locale: "en-US" });
      await go(page, broker, "live", ".live-state.is-live");
      const sent = send("first");
      // Usable: a filter can be typed and the page be left and found again while they come.
      await page.waitForSelector("td.c-task >> text=first-");
      await page.click("text=Pause");
      await page.waitForSelector("text=/paused · [\\d,]+ behind/");
      const paused = await page.locator("td.c-task").first().textContent();
      await sent;
      assert.equal(await page.locator("td.c-task").first().textContent(), paused);
      await page.click("text=Resume");

      const rows = () => page.locator("td.c-task").count();
      const first = await leftOut(page, CALLBACKS);
      assert.ok(first > 0 && await rows() <= ROWS_MAX);
      // The newest row is one of the last that were sent, at any of the callers.
      await page.waitForFunction((least) => Number(document.querySelector("td.c-task")?.textContent.split("-")[1]) >= least, CALLBACKS - AT_ONCE);

      await send("second");
      const second = await leftOut(page, 2 * CALLBACKS);
      assert.ok(second > first && await rows() <= ROWS_MAX);
      await browser.check("a fast tail", page);
      await page.context().close();
    },
  };
  return { browser, tests, end };
}
