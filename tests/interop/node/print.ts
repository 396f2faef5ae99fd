// Prints the events of a product from the oldest on, a JSON object a line, for as long as it takes. `../silence` cuts it off.

import { credentials } from "@grpc/grpc-js";
import { EventServiceClient, StartPosition, SubscribeRequest } from "./gen/blobcast/v1/event_service.js";
import { channelOptions, follow } from "./resume.js";

const { BLOBCAST_GRPC, INTEROP_HEARTBEAT } = process.env as Record<string, string>;

const clients = BLOBCAST_GRPC.split(",").map(
  (address) => new EventServiceClient(address, credentials.createInsecure(), channelOptions),
);
const request = SubscribeRequest.fromPartial({
  filter: { products: ["veo"] },
  start: { $case: "position", value: StartPosition.START_POSITION_EARLIEST },
  heartbeatInterval: { seconds: BigInt(INTEROP_HEARTBEAT) },
});
for await (const { eventId, cursor, taskId } of follow(clients, request)) {
  console.log(JSON.stringify({ event_id: eventId, cursor, task_id: taskId }));
}
