"""Troubles that the vendor's status API shows: lost callbacks, and tasks that do not end."""

import contextlib
import http.server
import json
import threading

from .broker import Failed, until
from .story import story

ENDS = {"lost": "completed", "slow": "processing"}
RECOVERED = 'blobcast_reconcile_recovered_total{product="veo"}'
USABLE = 'blobcast_vendor_key_usable{key="main"}'


@story("CallbacksLost", "TasksOverdue")
def lost_callbacks(at):
    """A callback is never sent, and a task does not end."""
    with vendor() as url:
        broker = asking(at, url)
        until("a good key", lambda: broker.metrics().get(USABLE) == 1)
        at.scrape(broker, 6)
        expect_task(broker, "lost")
        until("the lost callback", lambda: broker.metrics()[RECOVERED] == 1)
        at.scrape(broker, 6, {"CallbacksLost": "vendor_key main"})
        expect_task(broker, "slow")
        until("a late task", lambda: broker.metrics()["blobcast_tasks_overdue"] == 1)
        at.scrape(broker, 40, {"TasksOverdue": "processing"}, and_still=["CallbacksLost"])


def asking(at, url):
    settings = {"enabled": "true", "base_url": url, "expect_within": "veo=1s"}
    broker = at.broker({f"reconcile.{name}": value for name, value in settings.items()})
    broker.add_vendor_key("main", "good")
    return broker


def expect_task(broker, task):
    expected = broker.run("expect", "veo", task)
    if expected.returncode != 0:
        raise Failed(expected.stderr)


@contextlib.contextmanager
def vendor():
    """The URL of an API that takes the key `good`, and knows these tasks."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        server.server_close()


class Api(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        task = self.path.rsplit("/", 1)[1]
        if self.headers["authorization"] != "Bearer good":
            self.answer(401, {"detail": "no such key"})
        elif task not in ENDS:
            self.answer(404, {"detail": "no such generation"})
        else:
            video = "https://cdn.example.com/1.mp4" if ENDS[task] == "completed" else None
            self.answer(200, {"generation_id": task, "status": ENDS[task], "video_url": video})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass
