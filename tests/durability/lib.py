"""What the scripts beside this one share: callbacks as the vendor posts them, and what the log must say."""

import collections
import dataclasses
import http.client
import itertools
import json
import pathlib
import random
import sys
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import broker
from broker import READY_SECONDS, Failed, NotStarted  # noqa: F401 # for the scripts

RECENT = 20  # what is posted again is one of the last so many: retention is sure to have them still


@dataclasses.dataclass(eq=False)
class Callback:
    """One callback, and what came of it. The number is in its body, so no two say the same."""

    number: int
    task: str | None  # None: its body is not JSON, so it is for the quarantine
    path: str
    body: str
    posted_at: float | None = None  # when it was sent first
    acknowledged_at: float | None = None  # when its first 2xx was here
    event_id: str | None = None  # from that answer


class Ledger:
    """Every callback that was ever posted, and every name that was ever seen."""

    def __init__(self, rng, token=""):
        self.rng, self.token = rng, token
        self.lock = threading.Lock()
        self.callbacks = []
        self.recent = collections.deque(maxlen=RECENT)
        self.cursors, self.events = {}, {}  # cursor -> event id, number -> (event id, cursor)

    def next(self, bytes_max):
        """Mostly something new; also what was posted before or is being posted, what contradicts it, and what is not JSON."""
        with self.lock:
            dice = self.rng.random()
            if self.recent and dice < 0.2:
                return self.rng.choice(self.recent)
            task = self.rng.choice(self.recent).task if self.recent and dice < 0.35 else None
            return self.new(int(bytes_max * self.rng.random() ** 3), task, broken=dice > 0.9)

    def new(self, size, task=None, broken=False, filler=None):
        number = len(self.callbacks)
        path, filler = f"/webhook/veo?ref={number}{self.token and '&token=' + self.token}", filler or "x" * size
        if broken:
            callback = Callback(number, None, path, f"not JSON: {number} {filler}")
        else:
            url = f"https://a.example/{number}"
            body = {
                "generation_id": task or f"task-{number}",
                "status": "completed",
                "video_url": url,
                "filler": filler,
            }
            callback = Callback(number, body["generation_id"], path, json.dumps(body))
            self.recent.append(callback)
        self.callbacks.append(callback)
        return callback

    def post(self, connection, callback):
        """Posts it, and holds the answer against what was answered before. None if there was none; else the status."""
        known = callback.acknowledged_at is not None
        callback.posted_at = callback.posted_at or time.monotonic()
        try:
            connection.request("POST", callback.path, callback.body)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        if answer.status // 100 != 2:
            return answer.status
        said = json.loads(text)
        with self.lock:
            if answer.status != (202 if callback.task is None else 200):
                raise Failed(f"callback {callback.number} was answered {answer.status} {said}")
            if callback.task is not None:
                if (known and not said["duplicate"]) or callback.event_id not in (None, said["event_id"]):
                    raise Failed(f"callback {callback.number} was event {callback.event_id}, and is now {said}")
                callback.event_id = said["event_id"]
            callback.acknowledged_at = callback.acknowledged_at or time.monotonic()
        return answer.status

    def saw(self, event):
        """Notes an event that somebody was shown: cursor, event and callback belong together for ever. Returns the callback."""
        number = int(event["outputs"][0]["url"].rsplit("/", 1)[1])
        name = event["event_id"], event["cursor"]
        with self.lock:
            if self.cursors.setdefault(event["cursor"], event["event_id"]) != event["event_id"]:
                raise Failed(
                    f"cursor {event['cursor']} named {self.cursors[event['cursor']]}, and now {event['event_id']}"
                )
            if self.events.setdefault(number, name) != name:
                raise Failed(f"callback {number} was (event, cursor) {self.events[number]}, and now {name}")
            callback = self.callbacks[number]
            if event["task_id"] != callback.task or callback.event_id not in (None, event["event_id"]):
                raise Failed(f"callback {number} was answered with event {callback.event_id}, and is shown as {event}")
            return callback

    def check_log(self, events, acknowledged, end_known=True):
        """`events` is the whole log. Without its end (reading broke off) what is there must be right all the same."""
        rising([event["cursor"] for event in events], gaps=False)
        found = [self.saw(event) for event in events]
        for event, callback in zip(events, found, strict=True):
            if event.get("raw_body") != callback.body:
                raise Failed(f"callback {callback.number} comes back with another body: {str(event)[:1000]}")
        # Retention forgets from the front: what was posted after a retained event was acknowledged came behind it.
        trimmed = bool(events) and place(events[0]["cursor"]) > 1
        since = min((c.acknowledged_at for c in found if c.acknowledged_at), default=0.0) if trimmed else 0.0
        wanted = {c for c in acknowledged if c.task is not None and c.posted_at > since}
        if end_known and wanted.difference(found):
            missing = sorted(c.number for c in wanted.difference(found))
            raise Failed(f"{len(missing)} of {len(wanted)} acknowledged callbacks are not in the log: {missing[:20]}")
        return len(found)

    def check_quarantine(self, kept, acknowledged, end_known=True, damaged=0):
        """`damaged` of the acknowledged callbacks are listed without anything that would tell which they are."""
        found = [self.callbacks[int(callback["target"].rsplit("ref=", 1)[1].split("&")[0])] for callback in kept]
        for callback, entry in zip(found, kept, strict=True):
            if callback.task is not None or len(callback.body) != entry["body_bytes"]:
                raise Failed(f"callback {callback.number} is in quarantine as {entry}")
        if len(set(found)) != len(found):
            twice = [callback.number for callback, count in collections.Counter(found).items() if count > 1]
            raise Failed(f"callbacks are in quarantine twice: {twice[:20]}")
        missing = {c for c in acknowledged if c.task is None}.difference(found)
        if end_known and len(missing) > damaged:
            raise Failed(f"acknowledged callbacks are not in quarantine: {sorted(c.number for c in missing)[:20]}")

    def acknowledged(self):
        return [callback for callback in self.callbacks if callback.acknowledged_at is not None]


def place(cursor):
    return int(cursor[16:32], 16)


def rising(cursors, gaps):
    for one, other in itertools.pairwise(cursors):
        if one[:16] != other[:16] or place(other) <= place(one) or (not gaps and place(other) != place(one) + 1):
            raise Failed(f"cursor {other} comes behind {one}")


class Broker(broker.Broker):
    """One that takes any number of bytes a minute: other scripts test that limit, and here much is posted quickly."""

    def __init__(self, binary, directory, settings=None, **more):
        super().__init__(binary, directory, {"ingest.bytes_per_minute_max": 0} | (settings or {}), **more)


def whole_log(broker):
    return broker.read_whole("events", "--include-raw")


def quarantine(broker):
    return broker.read_whole("quarantine", "list")


def run(main, arguments):
    """Runs a script's main with a seed that is told, so that its choices can be made again."""
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    name = pathlib.Path(sys.argv[0]).name
    try:
        print(f"{name}: {main(arguments, random.Random(seed))} (seed {seed})")
    except Failed as failed:
        raise SystemExit(f"{name}: {failed}\n{name}: repeat its choices with --seed {seed}") from None
