// The same question in other tongues: for a shell and for a program. Pure.

import { session } from "./api.js";

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const bearer = () => session.shown.needsToken ? `-H "authorization: Bearer $BLOBCAST_TOKEN" ` : "";
const scheme = () => session.shown.grpcTls ? "https" : "http";

/** @param {string} taskId @param {string} product */
export function taskAsCurl(taskId, product) {
  // curl takes these two out of a path.
  if (taskId === "." || taskId === "..") {
    return `curl ${bearer()}-H 'content-type: application/json' -d ${quoted(JSON.stringify({ taskId, product }))} ${quoted(`${scheme()}://${session.shown.grpcAddress}/v1/GetTask`)}`;
  }
  const query = product ? `?product=${encodeURIComponent(product)}` : "";
  return `curl ${bearer()}${quoted(`${scheme()}://${session.shown.grpcAddress}/v1/tasks/${encodeURIComponent(taskId)}${query}`)}`;
}

/** @param {string} taskId @param {string} product */
export function taskAsGrpcurl(taskId, product) {
  const request = JSON.stringify(product ? { task_id: taskId, product } : { task_id: taskId });
  const plain = session.shown.grpcTls ? "" : "-plaintext ";
  return `grpcurl ${plain}${bearer()}-d ${quoted(request)} ${session.shown.grpcAddress} blobcast.v1.EventService/GetTask`;
}

/** @param {string} taskId @param {string} product */
export function taskAsPython(taskId, product) {
  const token = session.shown.needsToken;
  const channel = session.shown.grpcTls
    ? `grpc.secure_channel("${session.shown.grpcAddress}", grpc.ssl_channel_credentials())`
    : `grpc.insecure_channel("${session.shown.grpcAddress}")`;
  const of = product ? `, product=${JSON.stringify(product)}` : "";
  return [
    token ? "import os\n" : null,
    "import grpc",
    "from blobcast.v1 import event_service_pb2, event_service_pb2_grpc",
    "",
    `with ${channel} as channel:`,
    "    events = event_service_pb2_grpc.EventServiceStub(channel)",
    token ? `    metadata = [("authorization", "Bearer " + os.environ["BLOBCAST_TOKEN"])]` : null,
    `    request = event_service_pb2.GetTaskRequest(task_id=${JSON.stringify(taskId)}${of})`,
    `    for event in events.GetTask(request${token ? ", metadata=metadata" : ""}).events:`,
    "        print(event.status_text, [output.url for output in event.outputs])",
  ].filter((line) => line !== null).join("\n");
}

/**
 * A callback to try a URL with.
 * @param {string} url
 */
export function testCallback(url) {
  const body = { generation_id: `test-${Date.now()}`, status: "completed", video_url: "https://cdn.runblob.io/videos/test.mp4" };
  return `curl -H 'content-type: application/json' -d ${quoted(JSON.stringify(body))} ${quoted(url)}`;
}
