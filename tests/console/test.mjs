// The console in a browser. test.mjs BROKER DIRECTORY [PICTURES]
// Fails on a violation of the content policy, an error of a script, a request to another origin, a finding of axe-core, a page that
// is wider than its window, and markup made of data.

import assert from "node:assert/strict";
import { away } from "./away.mjs";
import { pages } from "./pages.mjs";
import { proxy } from "./proxy.mjs";
import { reading } from "./reading.mjs";
import { sessions } from "./sessions.mjs";
import { tail } from "./tail.mjs";

const [program, directory, pictures] = process.argv.slice(2);
const failures = [];
for (const group of [pages, reading, sessions, away, tail, proxy]) {
  const { browser, tests, end } = await group({ program, directory: `${directory}/${group.name}`, pictures });
  for (const [name, test] of Object.entries(tests)) {
    if (!name.includes(process.env.ONLY ?? "")) continue;
    try {
      await test();
      console.log(`ok ${name}`);
    } catch (error) {
      browser.fail(`${name}: ${error.stack}`);
    }
  }
  await end();
  failures.push(...browser.failures);
}
assert.equal(failures.length, 0, `${failures.length} failures`);
