// What a Node service asks of blobcast, checked against a real broker. `../drive.py` sets the environment.

import { credentials, status, type ServiceError } from "@grpc/grpc-js";
import assert from "node:assert/strict";
import { appendFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";
import { promisify } from "node:util";
import { TaskStatus, type Event } from "./gen/blobcast/v1/event.js";
import {
  EventServiceClient,
  GetLogInfoRequest,
  type GetLogInfoResponse,
  StartPosition,
  SubscribeRequest,
  type SubscribeResponse,
  WaitTaskRequest,
  type WaitTaskResponse,
} from "./gen/blobcast/v1/event_service.js";
import { channelOptions, follow, reason, violations } from "./resume.js";

const { BLOBCAST_GRPC, BLOBCAST_INGEST, INTEROP_CONTROL, INTEROP_HISTORY, INTEROP_NODES } = process.env as Record<string, string>;
const callMilliseconds = 30_000; // no call here waits longer
const [burst, crashAt] = [60, 20];

const connect = (address: string) => new EventServiceClient(address, credentials.createInsecure(), channelOptions);
const client = connect(BLOBCAST_GRPC);
const nodes = INTEROP_NODES.split(",").map(connect);
const waitTask = promisify<WaitTaskRequest, WaitTaskResponse>(client.waitTask.bind(client));
const getLogInfo = promisify<GetLogInfoRequest, GetLogInfoResponse>(client.getLogInfo.bind(client));

/** What one check posted and what one subscription saw of it: a line for the checker. */
class History {
  acknowledged: { event_id: string; task_id: string }[] = [];
  observed: { event_id: string; cursor: string; task_id: string }[] = [];

  /** Plays the vendor: repeats the callback until it is answered 200. */
  async post(product: string, task_id: string): Promise<void> {
    const body = { generation_id: task_id, status: "completed", video_url: `https://cdn.example/${task_id}.mp4` };
    const deadline = Date.now() + callMilliseconds;
    for (;;) {
      try {
        const answer = await fetch(`${BLOBCAST_INGEST}/webhook/${product}`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(body),
          signal: AbortSignal.timeout(callMilliseconds),
        });
        const { event_id } = (await answer.json()) as { event_id: string };
        assert.equal(answer.status, 200);
        this.acknowledged.push({ event_id, task_id });
        return;
      } catch (error) {
        if (Date.now() > deadline) throw error;
        await setTimeout(20);
      }
    }
  }

  saw({ eventId, cursor, taskId }: Event): void {
    this.observed.push({ event_id: eventId, cursor, task_id: taskId });
  }

  check(): void {
    const ids = (entries: { event_id: string }[]) => entries.map(({ event_id }) => event_id);
    assert.deepEqual(ids(this.observed), ids(this.acknowledged));
    appendFileSync(INTEROP_HISTORY, JSON.stringify(this) + "\n");
  }
}

async function subscribeBeforeTheCallback(): Promise<void> {
  const history = new History();
  const statuses = [TaskStatus.TASK_STATUS_COMPLETED, TaskStatus.TASK_STATUS_OVERDUE];
  const request = SubscribeRequest.fromPartial({ filter: { taskIds: ["before-1"], statuses }, untilTerminal: true });
  const kinds = [];
  const stream = client.subscribe(request, { deadline: Date.now() + callMilliseconds });
  for await (const { content } of stream as AsyncIterable<SubscribeResponse>) {
    kinds.push(content?.$case);
    if (content?.$case === "caughtUp") await history.post("veo", "before-1");
    if (content?.$case === "event") {
      const event = content.value;
      history.saw(event);
      assert.equal(event.product, "veo");
      assert.equal(event.status, TaskStatus.TASK_STATUS_COMPLETED);
      assert.ok(event.terminal);
      assert.equal(event.overdue, undefined);
      assert.deepEqual(event.outputs.map(({ url }) => url), ["https://cdn.example/before-1.mp4"]);
    }
  }
  assert.deepEqual(kinds, ["subscribed", "caughtUp", "event", "completed"]);
  history.check();
}

async function subscribeAfterTheCallback(): Promise<void> {
  const history = new History();
  await history.post("veo", "after-1");
  const request = SubscribeRequest.fromPartial({ filter: { taskIds: ["after-1"] }, untilTerminal: true });
  for await (const event of follow([client], request)) history.saw(event);
  history.check();
}

async function subscribeByProduct(): Promise<void> {
  const [history, others] = [new History(), new History()];
  const stream = client.subscribe(SubscribeRequest.fromPartial({ filter: { products: ["sora"] } }), {
    deadline: Date.now() + callMilliseconds,
  });
  for await (const { content } of stream as AsyncIterable<SubscribeResponse>) {
    if (content?.$case === "caughtUp") {
      for (let number = 0; number < 3; number++) {
        await history.post("sora", `product-${number}`);
        await others.post("seedance", `other-${number}`);
      }
    }
    if (content?.$case === "event") {
      history.saw(content.value);
      if (history.observed.length === 3) break;
    }
  }
  stream.cancel();
  history.check();
}

async function waitDone(): Promise<void> {
  const history = new History();
  const request = WaitTaskRequest.fromPartial({ taskId: "wait-1", product: "veo", timeout: { seconds: 30n } });
  const waiting = waitTask(request);
  await history.post("veo", "wait-1");
  for (const { done, event } of [await waiting, await waitTask(request)]) {
    assert.ok(done);
    assert.equal(event?.eventId, history.acknowledged[0]?.event_id);
  }
}

async function waitTimedOut(): Promise<void> {
  const request = WaitTaskRequest.fromPartial({ taskId: "never", timeout: { nanos: 200_000_000 } });
  assert.deepEqual(await waitTask(request), { done: false, event: undefined });
}

async function errorReason(): Promise<void> {
  const request = SubscribeRequest.fromPartial({ start: { $case: "afterCursor", value: "not a cursor" } });
  const error = await refused(follow([client], request).next());
  assert.equal(error.code, status.INVALID_ARGUMENT);
  assert.equal(reason(error), "INVALID_REQUEST");
  assert.deepEqual(violations(error), ["after_cursor"]);
}

/** One subscription across an outage that callbacks race: each event that was answered 200 comes, once, in order. */
async function resume(clients: EventServiceClient[], product: string, how: string): Promise<void> {
  const history = new History();
  const post = async () => {
    let outage;
    for (let number = 0; number < burst; number++) {
      if (number === crashAt) outage = control(how);
      await history.post(product, `${product}-${number}`);
    }
    await outage;
    await history.post(product, `${product}-last`);
  };

  await history.post(product, `${product}-first`);
  const request = SubscribeRequest.fromPartial({
    filter: { products: [product] },
    start: { $case: "position", value: StartPosition.START_POSITION_EARLIEST },
    clientName: "interop-node",
  });
  let posting;
  for await (const event of follow(clients, request)) {
    history.saw(event);
    if (event.taskId === `${product}-first`) posting = post();
    if (event.taskId === `${product}-last`) break;
  }
  await posting;
  history.check();
}

async function anotherLog(): Promise<void> {
  const { head } = await getLogInfo({ afterCursor: "" });
  await control("replace");
  const request = SubscribeRequest.fromPartial({ start: { $case: "afterCursor", value: head } });
  const error = await refused(follow([client], request).next());
  assert.equal(error.code, status.FAILED_PRECONDITION);
  assert.equal(reason(error), "EPOCH_MISMATCH");
}

async function refused(call: Promise<unknown>): Promise<ServiceError> {
  return call.then(
    () => assert.fail("the broker took what it should refuse"),
    (error) => error,
  );
}

async function control(what: string): Promise<void> {
  const answer = await fetch(`${INTEROP_CONTROL}/${what}`, { method: "POST" });
  assert.equal(answer.status, 204);
}

const checks: [string, () => Promise<void>][] = [
  ["subscribe by task before its callback", subscribeBeforeTheCallback],
  ["subscribe by task after its callback", subscribeAfterTheCallback],
  ["subscribe by product", subscribeByProduct],
  ["wait for a task", waitDone],
  ["wait for a task in vain", waitTimedOut],
  ["read an error's reason", errorReason],
  ["resume after kill -9", () => resume([client], "kling", "crash")],
  ["resume after a graceful restart", () => resume([client], "gemini", "restart")],
  ["resume at the next address", () => resume(nodes, "hailuo", "cut")],
  ["a cursor of another log is refused", anotherLog],
];

for (const [name, check] of checks) {
  try {
    await check();
  } catch (error) {
    console.log(`not ok ${name}`);
    throw error;
  }
  console.log(`ok ${name}`);
}
for (const one of [client, ...nodes]) one.close();
