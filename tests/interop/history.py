"""What a check posts as the vendor, what it sees of that, and how it asks `drive.py` for an outage. For Python's checks."""

import http.client
import json
import os
import time
import urllib.request

CALL_SECONDS = 30  # no call in a check waits longer
BURST, CRASH_AT = 60, 20


class History:
    """What one check posted and what one subscription saw of it: a line for the checker."""

    def __init__(self):
        self.acknowledged, self.observed = [], []

    def post(self, product, task_id):
        """Plays the vendor: repeats the callback until it is answered 200."""
        body = {"generation_id": task_id, "status": "completed", "video_url": f"https://cdn.example/{task_id}.mp4"}
        request = urllib.request.Request(
            f"{os.environ['BLOBCAST_INGEST']}/webhook/{product}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
                    assert answer.status == 200, answer.status
                    event_id = json.load(answer)["event_id"]
                self.acknowledged.append({"event_id": event_id, "task_id": task_id})
                return
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def burst(self, product, how, pool):
        """Posts while the broker goes away and comes back; `-last` is the last one."""
        for number in range(BURST):
            if number == CRASH_AT:
                outage = pool.submit(control, how)
            self.post(product, f"{product}-{number}")
        outage.result()
        self.post(product, f"{product}-last")

    def saw(self, event_id, cursor, task_id):
        self.observed.append({"event_id": event_id, "cursor": cursor, "task_id": task_id})

    def check(self):
        acknowledged, observed = ([one["event_id"] for one in all] for all in (self.acknowledged, self.observed))
        assert acknowledged == observed, f"acknowledged {acknowledged}, observed {observed}"
        with open(os.environ["INTEROP_HISTORY"], "a") as file:
            print(json.dumps(vars(self)), file=file)


def control(what):
    """Crashes, restarts or replaces the broker; returns when it is ready again."""
    request = urllib.request.Request(f"{os.environ['INTEROP_CONTROL']}/{what}", method="POST")
    urllib.request.urlopen(request).close()


def run(checks):
    """Runs them in order, a line each; the first that fails ends it."""
    for name, check in checks.items():
        try:
            check()
        except BaseException:
            print(f"not ok {name}", flush=True)
            raise
        print(f"ok {name}", flush=True)
