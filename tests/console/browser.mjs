// A Chromium, and pages that report whatever they should not do.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export class Browser {
  /** Hosts of `elsewhere`, by name, are at these ports of this machine; a page may ask for nothing else outside its origin. */
  static async launch(elsewhere = {}) {
    const rules = Object.entries(elsewhere).map(([host, port]) => `MAP ${host} 127.0.0.1:${port}`).join(",");
    const browser = new Browser();
    browser.elsewhere = elsewhere;
    browser.failures = [];
    browser.chromium = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: ["--no-sandbox", ...(rules ? [`--host-resolver-rules=${rules}`] : [])] });
    return browser;
  }

  fail(text) {
    this.failures.push(text);
    console.error(`FAILED ${text}`);
  }

  /** A window of its own, without cookies, that is to stay with `origin`. */
  async open(origin, options = {}) {
    const context = await this.chromium.newContext({ viewport: { width: 1600, height: 900 }, ...options });
    const page = await context.newPage();
    await page.addInitScript(() => {
      window.violations = [];
      document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
    });
    page.on("pageerror", (error) => this.fail(`a script failed: ${error.message}`));
    page.on("dialog", (dialog) => { this.fail(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
    page.on("request", (request) => {
      const url = new URL(request.url());
      const isOwn = url.origin === new URL(origin).origin || ["blob:", "data:"].includes(url.protocol);
      if (!isOwn && !(url.hostname in this.elsewhere)) this.fail(`a request to ${url}`);
    });
    return page;
  }

  async check(name, page) {
    const violations = await page.evaluate(() => window.violations);
    if (violations.length) this.fail(`${name}: ${violations.join(", ")}`);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    if (over > 0) this.fail(`${name}: ${over} pixels wider than its window`);
    // What scrolls or ends in an ellipsis with its whole text in a title can be read; a table must not need it in a wide window.
    const cut = await page.evaluate(() => [...document.body.querySelectorAll("*")].filter((one) => {
      const { overflowX, textOverflow } = getComputedStyle(one);
      if (one.scrollWidth <= one.clientWidth || one.clientWidth <= 1 || overflowX === "visible") return false;
      if (one.matches(".scroll")) return true;
      return overflowX !== "auto" && overflowX !== "scroll" && !one.matches("input, select") && !(textOverflow === "ellipsis" && (one.title || one.querySelector("[title]")));
    }).map((one) => `${one.tagName}.${one.className} ${one.textContent.slice(0, 40)}`));
    if (cut.length) this.fail(`${name}: cut off: ${cut.join(", ")}`);
  }

  /** axe-core runs in a world of its own, where the page's policy does not keep it out. */
  async accessible(name, page) {
    const session = await page.context().newCDPSession(page);
    const { frameTree } = await session.send("Page.getFrameTree");
    const { executionContextId } = await session.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id, worldName: "axe" });
    const run = (expression) => session.send("Runtime.evaluate", { expression, contextId: executionContextId, awaitPromise: true, returnByValue: true });
    await run(AXE);
    const { result } = await run("axe.run().then((found) => found.violations.map((one) => one.id + ': ' + one.nodes.map((node) => node.target).slice(0, 3).join(' ')))");
    for (const finding of result.value ?? ["axe-core did not run"]) this.fail(`${name}: ${finding}`);
    await session.detach();
  }

  close() { return this.chromium.close(); }
}

/** Goes to a page of the console and waits until it shows `ready`. */
export async function go(page, broker, route, ready) {
  await page.goto(`${broker.console}#/${route}`);
  await page.waitForSelector(`[data-page="${route.split(/[/?]/)[0] || "overview"}"] >> ${ready}`);
}
