// Follows blobcast's events for as long as it takes, across broken connections and restarts of the broker.

import { status, type ServiceError } from "@grpc/grpc-js";
import { setTimeout } from "node:timers/promises";
import type { Event } from "./gen/blobcast/v1/event.js";
import type { EventServiceClient, SubscribeRequest, SubscribeResponse } from "./gen/blobcast/v1/event_service.js";
import { BadRequest, ErrorInfo } from "./gen/google/rpc/error_details.js";
import { Status } from "./gen/google/rpc/status.js";

export const channelOptions = {
  "grpc.keepalive_time_ms": 30_000, // notice a connection that died without a word
  "grpc.max_reconnect_backoff_ms": 5_000, // gRPC's own default is two minutes
};

/**
 * Yields every matching event, in order, until the broker says `completed`.
 *
 * When the stream breaks, continues behind the last cursor. Your own restarts are yours: store `event.cursor` once you
 * have handled the event, and begin with it as `afterCursor`. Throws what trying again cannot help, for example
 * OUT_OF_RANGE `CURSOR_EXPIRED`.
 */
export async function* follow(client: EventServiceClient, request: SubscribeRequest): AsyncGenerator<Event> {
  for (let failures = 0; ; failures++) {
    const stream = client.subscribe(request);
    try {
      for await (const { content } of stream as AsyncIterable<SubscribeResponse>) {
        failures = 0;
        if (content?.$case === "completed") return;
        if (content?.$case === "event") yield content.value;
        if (content) {
          const cursor = content.$case === "gap" ? content.value.to : content.value.cursor;
          request = { ...request, start: { $case: "afterCursor", value: cursor } };
        }
      }
    } catch (error) {
      if ((error as ServiceError).code !== status.UNAVAILABLE) throw error;
    } finally {
      stream.cancel();
    }
    await setTimeout((100 + 100 * Math.random()) * 2 ** Math.min(failures, 5));
  }
}

/** What went wrong, in a word that programs can rely on, for example `EPOCH_MISMATCH`. */
export function reason(error: ServiceError): string | undefined {
  const packed = detail(error, "google.rpc.ErrorInfo");
  return packed && ErrorInfo.decode(packed).reason;
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
