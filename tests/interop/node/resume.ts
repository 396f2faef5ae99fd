// Follows blobcast's events for as long as it takes: across broken connections, silent ones, and restarts of the broker. With
// several nodes of a cluster it goes on at the next one.

import { status, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { setTimeout as sleep } from "node:timers/promises";
import type { Event } from "./gen/blobcast/v1/event.js";
import {
  StartPosition,
  type EventServiceClient,
  type SubscribeRequest,
  type SubscribeResponse,
} from "./gen/blobcast/v1/event_service.js";
import type { Duration } from "./gen/google/protobuf/duration.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

export const channelOptions = {
  "grpc.keepalive_time_ms": 30_000, // ask a quiet connection whether it still works …
  "grpc.keepalive_timeout_ms": 10_000, // … and give it so long to answer
  "grpc.max_reconnect_backoff_ms": 5_000, // gRPC's own default is two minutes
};

const heartbeatMilliseconds = 15_000; // a quiet stream says something this often, unless it tells otherwise
const [pauseMilliseconds, pauseMillisecondsMax] = [100, 10_000]; // before the first try to reconnect, and after many

/**
 * Yields every matching event, in order, until the broker says `completed`.
 *
 * `clients` has one for each node of a cluster, or one alone. When the stream breaks, continues behind the last cursor at the
 * next node, where the cursor is as good, and logs why. Your own restarts are yours: store `event.cursor` once you have
 * handled the event, and begin with it as `afterCursor`. Throws what trying again cannot help, for example OUT_OF_RANGE
 * `CURSOR_EXPIRED`.
 */
export async function* follow(clients: EventServiceClient[], request: SubscribeRequest): AsyncGenerator<Event> {
  for (let failures = 0, node = 0; ; failures++, node = (node + 1) % clients.length) {
    let askedFor = 0;
    try {
      for await (const { content } of messages(clients[node]!.subscribe(request))) {
        if (content?.$case === "completed") return;
        if (content?.$case === "event") yield content.value;
        if (content && (content.$case !== "subscribed" || startsAtHead(request))) {
          const cursor = content.$case === "gap" ? content.value.through : content.value.cursor;
          request = { ...request, start: { $case: "afterCursor", value: cursor } };
        }
        // Who greets and hangs up is still failing.
        if (content?.$case !== "subscribed" && content?.$case !== "goingAway") failures = 0;
      }
    } catch (error) {
      if (!isServiceError(error) || !passes(error)) throw error;
      askedFor = retryDelay(error);
      console.warn(`the stream broke, reconnecting: ${error.message}`);
    }
    const pause = Math.min(pauseMilliseconds * 2 ** failures, pauseMillisecondsMax);
    await sleep(Math.max(pause, askedFor) * (1 + Math.random() / 2));
  }
}

/**
 * Whether the place where the stream starts has to be kept: later the head is another one. Any other request is repeated as
 * it was until something was sent: retention may pass the place where it started.
 */
function startsAtHead({ start, filter }: SubscribeRequest): boolean {
  if (!start) return !filter?.taskIds.length;
  return start.$case === "position" && start.value === StartPosition.START_POSITION_LATEST;
}

/**
 * The stream's messages. Cancels it when three heartbeats are missing; the time you take for a message does not count.
 *
 * Keepalive alone is not enough: a proxy answers it for a broker that is gone. Only messages prove the whole path.
 */
async function* messages(stream: ClientReadableStream<SubscribeResponse>): AsyncGenerator<SubscribeResponse> {
  let silenceMax = 3 * heartbeatMilliseconds;
  const watch = () =>
    setTimeout(() => {
      console.warn(`nothing has come for ${silenceMax / 1000} s`);
      stream.cancel();
    }, silenceMax);
  let watchdog = watch();
  try {
    for await (const response of stream as AsyncIterable<SubscribeResponse>) {
      clearTimeout(watchdog);
      if (response.content?.$case === "subscribed") {
        const interval = response.content.value.limits?.heartbeatInterval;
        if (interval) silenceMax = 3 * milliseconds(interval);
      }
      yield response;
      watchdog = watch();
    }
  } finally {
    clearTimeout(watchdog);
    stream.cancel();
  }
}

/**
 * Whether trying again can help. Decided by who said it: an error without a reason of blobcast's came from something in
 * between, a proxy or the network, whatever its code. With one, the broker says that it is not there now (UNAVAILABLE), or
 * when to come back.
 */
export function passes(error: ServiceError): boolean {
  return !reason(error) || error.code === status.UNAVAILABLE || retryDelay(error) > 0;
}

/** What went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`; undefined if no broker said it. */
export function reason(error: ServiceError): string | undefined {
  const packed = detail(error, "google.rpc.ErrorInfo");
  const info = packed && ErrorInfo.decode(packed);
  return info?.domain === "blobcast" ? info.reason : undefined;
}

/** The milliseconds after which the broker asks to try again; 0 if it does not. */
export function retryDelay(error: ServiceError): number {
  const packed = detail(error, "google.rpc.RetryInfo");
  const delay = packed && RetryInfo.decode(packed).retryDelay;
  return delay ? milliseconds(delay) : 0;
}

/** The fields of a request that the broker refused. */
export function violations(error: ServiceError): string[] {
  const packed = detail(error, "google.rpc.BadRequest");
  return packed ? BadRequest.decode(packed).fieldViolations.map(({ field }) => field) : [];
}

function detail(error: ServiceError, type: string): Uint8Array | undefined {
  const [trailer] = error.metadata.get("grpc-status-details-bin");
  const details = trailer ? Status.decode(trailer as Buffer).details : [];
  return details.find(({ typeUrl }) => typeUrl.endsWith(`/${type}`))?.value;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}

function milliseconds({ seconds, nanos }: Duration): number {
  return Number(seconds) * 1000 + nanos / 1e6;
}
