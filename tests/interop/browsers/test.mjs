// What pages and Node see of a broker that crashes, with which origin and which token. test.mjs BROKER DIRECTORY MODULES

import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { EventSource } from "eventsource";
import { chromium } from "playwright-core";
import { Broker, freePort, until } from "./console/broker.mjs";
import { serve } from "./pages.mjs";

const [program, directory, modules] = process.argv.slice(2);
const BURST = 60, CRASH_AT = 20, SECONDS = 60;

const known = await serve(modules, await freePort()), unknown = await serve(modules, await freePort());
const origins = `[grpc]\ncors_origins = ["${known.origin}"]\n`;
const open = new Broker(program, `${directory}/open`), closed = new Broker(program, `${directory}/closed`);
process.on("exit", () => [open, closed].forEach((broker) => broker.process?.kill("SIGKILL")));
await open.start(origins);
const { secret, section, line } = JSON.parse(await open.run("token", "new", "client", "page", "--product", "tickets", "--product", "web", "--output", "json"));
await writeFile(`${directory}/credentials.toml`, `[${section}]\n${line}\n`, { mode: 0o600 });
const closedOptions = `credentials_file = "${directory}/credentials.toml"\n${origins}`;
await closed.start(closedOptions);
const options = new Map([[open, origins], [closed, closedOptions]]);
const address = (broker) => `http://127.0.0.1:${broker.ports.grpc}`;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });

/** Plays the vendor: repeats the callback until it is answered 200. */
async function post(broker, product, task) {
  const body = JSON.stringify({ generation_id: task, status: "completed", video_url: `https://cdn.example/${task}.mp4` });
  const target = `http://127.0.0.1:${broker.ports.ingest}/webhook/${product}`;
  let event;
  await until(`the callback of ${task}`, async () => {
    const answer = await fetch(target, { method: "POST", headers: { "content-type": "application/json" }, body }).catch(() => null);
    event = answer?.ok && await answer.json().catch(() => null);
    return event;
  }, SECONDS);
  return { event_id: event.event_id, task_id: task };
}

/** Posts while the broker is killed and comes back, and compares what was acknowledged with what `seen` returns in the end. */
async function followed(broker, product, seen) {
  const acknowledged = [];
  let outage;
  for (let number = 0; number < BURST; number++) {
    if (number === CRASH_AT) {
      await until("the first events", async () => (await seen()).length > 0, SECONDS);
      outage = broker.kill().then(() => broker.start(options.get(broker)));
    }
    acknowledged.push(await post(broker, product, `${product}-${number}`));
  }
  await outage;
  acknowledged.push(await post(broker, product, `${product}-last`));
  await until("the last event", async () => (await seen()).some((one) => one.task_id === `${product}-last`), SECONDS);
  const observed = await seen();
  assert.deepEqual(observed.map((one) => one.event_id), acknowledged.map((one) => one.event_id));
  appendFileSync(`${directory}/history.jsonl`, `${JSON.stringify({ acknowledged, observed })}\n`);
}

async function page(of) {
  const context = await browser.newContext();
  const opened = await context.newPage();
  await opened.goto(of.origin);
  await opened.evaluate(() => {
    /** Follows an address as the documents say. */
    window.follow = (address) => {
      const source = new EventSource(address);
      Object.assign(window, { source, seen: [], kinds: [], errors: 0 });
      for (const kind of ["subscribed", "caught_up", "completed", "problem"]) source.addEventListener(kind, () => window.kinds.push(kind));
      source.addEventListener("event", ({ data }) => window.note(data));
      source.addEventListener("error", () => { window.errors += 1; });
    };
    window.note = (data) => {
      const { eventId, cursor, taskId } = JSON.parse(data);
      window.seen.push({ event_id: eventId, cursor, task_id: taskId });
    };
  });
  return opened;
}

const isClosed = (of) => until("the end of the stream", () => of.evaluate(() => window.source.readyState === EventSource.CLOSED), SECONDS);

const checks = {
  async "Node's EventSource follows over a crash"() {
    const source = new EventSource(`${address(open)}/v1/events/stream?product=node`);
    const seen = [];
    let subscribed = 0;
    source.addEventListener("subscribed", () => { subscribed += 1; });
    source.addEventListener("event", ({ data }) => {
      const { eventId, cursor, taskId } = JSON.parse(data);
      seen.push({ event_id: eventId, cursor, task_id: taskId });
    });
    await until("the stream", () => subscribed === 1, SECONDS);
    await followed(open, "node", () => seen);
    source.close();
    assert.equal(subscribed, 2, "it was not away");
  },

  async "Chromium's EventSource follows over a crash, from another origin"() {
    const chrome = await page(known);
    await chrome.evaluate((address) => window.follow(address), `${address(open)}/v1/events/stream?product=chromium`);
    await until("the stream", () => chrome.evaluate(() => window.kinds.includes("caught_up")), SECONDS);
    await followed(open, "chromium", () => chrome.evaluate(() => window.seen));
    assert.equal(await chrome.evaluate(() => window.kinds.filter((kind) => kind === "subscribed").length), 2);
    await chrome.context().close();
  },

  async "tickets follow over a crash, with a token that is never in an address"() {
    const chrome = await page(known);
    const addresses = [];
    chrome.on("request", (request) => addresses.push(request.url()));
    await chrome.evaluate(([broker, token]) => {
      const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
      window.seen = [];
      window.tickets = 0;
      const again = () => setTimeout(follow, 200);
      async function follow() {
        const body = JSON.stringify({ filter: { products: ["tickets"] }, after_cursor: window.last });
        const answer = await fetch(`${broker}/v1/stream-tickets`, { method: "POST", headers, body }).catch(() => null);
        if (!answer?.ok) return again();
        const { ticket } = await answer.json();
        window.tickets += 1;
        const source = new EventSource(`${broker}/v1/events/stream?ticket=${ticket}`);
        source.addEventListener("subscribed", ({ lastEventId }) => { window.last = lastEventId || window.last; window.open = true; });
        source.addEventListener("event", ({ data, lastEventId }) => { window.last = lastEventId; window.note(data); });
        source.addEventListener("error", () => { source.close(); again(); });
      }
      follow();
    }, [address(closed), secret]);
    await until("the stream", () => chrome.evaluate(() => window.open), SECONDS);
    await followed(closed, "tickets", () => chrome.evaluate(() => window.seen));
    assert.ok(await chrome.evaluate(() => window.tickets) >= 2, "it was not away");
    assert.ok(addresses.length > 2 && addresses.every((one) => !one.includes(secret)));
    await chrome.context().close();
  },

  async "a stream that was complete ends with 204, and is not begun anew"() {
    const chrome = await page(known);
    const statuses = [];
    chrome.on("response", (answer) => statuses.push(answer.status()));
    await chrome.evaluate((address) => window.follow(address), `${address(open)}/v1/events/stream?task_id=done&until_terminal=true`);
    await until("the stream", () => chrome.evaluate(() => window.kinds.includes("caught_up")), SECONDS);
    await post(open, "veo", "done");
    await isClosed(chrome);
    assert.deepEqual(await chrome.evaluate(() => window.seen.map((one) => one.task_id)), ["done"]);
    assert.deepEqual(await chrome.evaluate(() => window.kinds), ["subscribed", "caught_up", "completed"]);
    assert.deepEqual(statuses.slice(-2), [200, 204]);
    await chrome.context().close();
  },

  async "connect-web calls from another origin, with a token, and reads errors and streams"() {
    const chrome = await page(known);
    const told = await chrome.evaluate(async ([broker, token]) => {
      const { createClient, ConnectError } = await import("@connectrpc/connect");
      const { createGrpcWebTransport } = await import("@connectrpc/connect-web");
      const { EventService } = await import("/gen/blobcast/v1/event_service_pb.js");
      const client = createClient(EventService, createGrpcWebTransport({ baseUrl: broker }));
      const headers = { authorization: `Bearer ${token}` };
      const error = async (call) => {
        try { await call; return "no error"; } catch (caught) {
          const it = ConnectError.from(caught);
          return { code: it.code, details: it.details.map((one) => one.type), id: it.metadata.get("x-request-id") };
        }
      };
      window.listen = async () => {
        window.contents = [];
        for await (const { content } of client.subscribe({ filter: { taskIds: ["web-1"] }, untilTerminal: true }, { headers })) window.contents.push(content.case);
        window.over = true;
      };
      const { head } = await client.getLogInfo({}, { headers, timeoutMs: 20_000 });
      return {
        head,
        unknown: await error(client.getTask({ taskId: "none", product: "web" }, { headers })),
        denied: await error(client.getTask({ taskId: "none", product: "veo" }, { headers })),
        nobody: await error(client.getLogInfo({})),
      };
    }, [address(closed), secret]);
    assert.ok(told.head);
    const NOT_FOUND = 5, PERMISSION_DENIED = 7, UNAUTHENTICATED = 16;
    for (const [answer, code] of [[told.unknown, NOT_FOUND], [told.denied, PERMISSION_DENIED], [told.nobody, UNAUTHENTICATED]]) {
      assert.equal(answer.code, code);
      assert.ok(answer.details.includes("google.rpc.ErrorInfo") && answer.id, JSON.stringify(answer));
    }

    const listening = chrome.evaluate(() => window.listen());
    await until("the stream", () => chrome.evaluate(() => window.contents?.includes("caughtUp")), SECONDS);
    await post(closed, "web", "web-1");
    await listening;
    assert.deepEqual(await chrome.evaluate(() => window.contents), ["subscribed", "caughtUp", "event", "completed"]);
    await chrome.context().close();
  },

  async "pages of unknown origins get nothing"() {
    const chrome = await page(unknown);
    await post(open, "veo", "secret");
    await chrome.evaluate((address) => window.follow(address), `${address(open)}/v1/events/stream?position=earliest`);
    await isClosed(chrome);
    assert.deepEqual(await chrome.evaluate(() => [window.seen, window.kinds]), [[], []]);
    const told = await chrome.evaluate(async (broker) => {
      const { createClient } = await import("@connectrpc/connect");
      const { createGrpcWebTransport } = await import("@connectrpc/connect-web");
      const { EventService } = await import("/gen/blobcast/v1/event_service_pb.js");
      const client = createClient(EventService, createGrpcWebTransport({ baseUrl: broker }));
      return [await fetch(`${broker}/v1/events`).then(() => "read", (error) => error.name), await client.getLogInfo({}).then(() => "read", (error) => error.name)];
    }, address(open));
    assert.deepEqual(told, ["TypeError", "ConnectError"]);
    await chrome.context().close();
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`not ok ${name}\n${error.stack}`);
  }
}
await browser.close();
await open.kill("SIGTERM");
await closed.kill("SIGTERM");
known.close();
unknown.close();
process.exit(failed ? 1 : 0);
