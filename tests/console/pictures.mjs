// Pictures of the Overview and of a task. pictures.mjs BROKER DIRECTORY TO

import { Browser, go } from "./browser.mjs";
import { Broker } from "./broker.mjs";

const [program, directory, to] = process.argv.slice(2);
const PRODUCTS = ["veo", "sora", "kling", "seedance", "nanobanana"], TEAMS = ["ads", "studio", "shop"];
const broker = new Broker(program, directory);
await broker.start();
const browser = await Browser.launch();

const time = (seconds) => new Date(Date.now() - seconds * 1000).toISOString();
for (let at = 0; at < 60; at++) {
  const product = PRODUCTS[at * 7 % PRODUCTS.length], id = `gen_${(at * 2654435761 % 2 ** 32).toString(16).padStart(8, "0")}`;
  const query = `?team=${TEAMS[at % 3]}&ref=order-${4200 + at}`;
  const failed = at % 11 === 6;
  if (at % 4) await broker.callback(product, { generation_id: id, status: "processing", created_at: time(40 + at) }, query);
  if (at % 9 === 4) continue;
  await broker.callback(product, failed
    ? { generation_id: id, status: "failed", error_code: "CONTENT_POLICY", error_message: "The prompt was refused.", created_at: time(40 + at), completed_at: time(at % 7) }
    : { generation_id: id, status: "completed", video_url: `https://cdn.runblob.io/videos/${id}.mp4`, created_at: time(40 + at), completed_at: time(at % 7) }, query);
}
await broker.callback("veo", { status: "completed", prompt: "no id" });

const task = { generation_id: "gen_7d31f0c2", prompt: "A paper boat on a rainy street, slow dolly in", model: "veo-3.1", seed: 42, created_at: time(95) };
await broker.callback("veo", { ...task, status: "pending" }, "?team=ads&ref=order-42");
await broker.callback("veo", { ...task, status: "processing" }, "?team=ads&ref=order-42");
await broker.callback("veo", { ...task, status: "completed", video_url: "https://cdn.runblob.io/videos/7d31f0c2.mp4", completed_at: time(12) }, "?team=ads&ref=order-42");

const page = await browser.open(broker.console, { viewport: { width: 1200, height: 740 }, colorScheme: "light", locale: "en-US", timezoneId: "UTC" });
// A day's callbacks, and a reader that is behind: this broker is some seconds old.
await page.route("**/v1/GetOverview", async (route) => {
  const answer = await route.fetch(), now = await answer.json();
  const wave = (minute) => Math.round(14 + 9 * Math.sin((minute - 300) / 230) + minute * 7919 % 6);
  now.history.callbacks = Array.from({ length: 1440 }, (_, minute) => String(wave(minute)));
  now.history.refusals = Array.from({ length: 1440 }, (_, minute) => String(minute > 610 && minute < 640 ? 3 : minute % 311 === 0 ? 1 : 0));
  Object.assign(now, { eventCount: "214870", eventBytes: "168820736", oldestEventAt: time(6 * 86_400), expectationCount: "12", overdueCount: "1", subscriptionCount: "7",
    diskFreeBytes: String(312 * 2 ** 30), diskTotalBytes: String(480 * 2 ** 30), lastBackupAt: time(5_400),
    laggards: [["render-queue", "STALLED", "1284"], ["billing", "CATCHING_UP", "37"], ["shop", "LIVE", "2"]].map(([client, state, lag]) => ({ client, clientName: "", peer: "", state: `SUBSCRIPTION_STATE_${state}`, lag })) });
  await route.fulfill({ response: answer, json: now });
});
await go(page, broker, "", ".tiles");
await page.screenshot({ path: `${to}/console-overview.png` });
await go(page, broker, "task/gen_7d31f0c2?product=veo", ".life");
await page.screenshot({ path: `${to}/console-task.png` });
await browser.close();
await broker.kill("SIGTERM");
