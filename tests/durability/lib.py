"""What the scripts beside this one share: a broker's process, callbacks as the vendor posts them, and what the log must say."""

import collections
import dataclasses
import http.client
import json
import os
import pathlib
import queue
import random
import signal
import subprocess
import sys
import threading
import time

READY_SECONDS = 60  # a debug build on a busy machine, with journals to replay, needs some
ANSWER_SECONDS = 30
RECENT = 20  # what is posted again is one of the last so many: retention is sure to have them still


class Wrong(Exception):
    """A promise that was not kept, or a broker that does not run."""


class Refused(Wrong):
    """The broker ended before it was ready; the text is what it said."""


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

    def new(self, size, task=None, broken=False):
        number = len(self.callbacks)
        path, filler = f"/webhook/veo?ref={number}{self.token and '&token=' + self.token}", "x" * size
        if broken:
            callback = Callback(number, None, path, f"not JSON: {number} {filler}")
        else:
            url = f"https://a.example/{number}"
            body = {"generation_id": task or f"task-{number}", "status": "completed", "video_url": url, "filler": filler}
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
                raise Wrong(f"callback {callback.number} was answered {answer.status} {said}")
            if callback.task is not None:
                if known and not said["duplicate"] or callback.event_id not in (None, said["event_id"]):
                    raise Wrong(f"callback {callback.number} was event {callback.event_id}, and is now {said}")
                callback.event_id = said["event_id"]
            callback.acknowledged_at = callback.acknowledged_at or time.monotonic()
        return answer.status

    def saw(self, event):
        """Notes an event that somebody was shown: cursor, event and callback belong together for ever. Returns the callback."""
        number = int(event["outputs"][0]["url"].rsplit("/", 1)[1])
        name = event["event_id"], event["cursor"]
        with self.lock:
            if self.cursors.setdefault(event["cursor"], event["event_id"]) != event["event_id"]:
                raise Wrong(f"cursor {event['cursor']} named {self.cursors[event['cursor']]}, and now {event['event_id']}")
            if self.events.setdefault(number, name) != name:
                raise Wrong(f"callback {number} was (event, cursor) {self.events[number]}, and now {name}")
            callback = self.callbacks[number]
            if event["task_id"] != callback.task or callback.event_id not in (None, event["event_id"]):
                raise Wrong(f"callback {number} was answered with event {callback.event_id}, and is shown as {event}")
            return callback

    def check_log(self, events, acknowledged, end_known=True):
        """`events` is the whole log. Without its end (reading broke off) what is there must be right all the same."""
        rising([event["cursor"] for event in events], gaps=False)
        found = [self.saw(event) for event in events]
        for event, callback in zip(events, found):
            if event.get("raw_body") != callback.body:
                raise Wrong(f"callback {callback.number} comes back with another body: {str(event)[:1000]}")
        # Retention forgets from the front: what was posted after a retained event was acknowledged came behind it.
        trimmed = bool(events) and place(events[0]["cursor"]) > 1
        since = min((c.acknowledged_at for c in found if c.acknowledged_at), default=0.0) if trimmed else 0.0
        wanted = {c for c in acknowledged if c.task is not None and c.posted_at > since}
        if end_known and wanted.difference(found):
            missing = sorted(c.number for c in wanted.difference(found))
            raise Wrong(f"{len(missing)} of {len(wanted)} acknowledged callbacks are not in the log: {missing[:20]}")
        return len(found)

    def check_quarantine(self, kept, acknowledged, end_known=True):
        found = [self.callbacks[int(callback["target"].rsplit("ref=", 1)[1].split("&")[0])] for callback in kept]
        for callback, entry in zip(found, kept):
            if callback.task is not None or len(callback.body) != entry["body_bytes"]:
                raise Wrong(f"callback {callback.number} is in quarantine as {entry}")
        if len(set(found)) != len(found):
            twice = [callback.number for callback, count in collections.Counter(found).items() if count > 1]
            raise Wrong(f"callbacks are in quarantine twice: {twice[:20]}")
        missing = {c for c in acknowledged if c.task is None}.difference(found)
        if end_known and missing:
            raise Wrong(f"acknowledged callbacks are not in quarantine: {sorted(c.number for c in missing)[:20]}")

    def acknowledged(self):
        return [callback for callback in self.callbacks if callback.acknowledged_at is not None]


def place(cursor):
    return int(cursor[16:32], 16)


def rising(cursors, gaps):
    for one, other in zip(cursors, cursors[1:]):
        if one[:16] != other[:16] or place(other) <= place(one) or not gaps and place(other) != place(one) + 1:
            raise Wrong(f"cursor {other} comes behind {one}")


class Broker:
    """A broker's process, and what it takes to start the same one again: with the same addresses, on the same data."""

    def __init__(self, binary, data_dir, prefix=(), **settings):
        self.binary, self.data_dir, self.prefix = os.path.abspath(binary), str(data_dir), list(prefix)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BLOBCAST_")}
        # What a URL may bring is shown elsewhere; here much is brought quickly.
        clean["BLOBCAST_INGEST__BYTES_PER_MINUTE_MAX"] = "0"
        self.environment = clean | {f"BLOBCAST_{name}": str(value) for name, value in settings.items()}
        self.addresses = {"ingest": "127.0.0.1:0", "grpc": "127.0.0.1:0", "admin": "127.0.0.1:0"}
        self.log = []
        self.process = None

    def spawn(self):
        listen = [f"--{name}-listen={address}" for name, address in self.addresses.items()]
        self.log = []
        self.process = subprocess.Popen(
            [*self.prefix, self.binary, "serve", f"--data-dir={self.data_dir}", *listen],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip
        ready = queue.Queue()
        threading.Thread(target=self.read_log, args=(self.process.stderr, self.log, ready), daemon=True).start()
        return ready

    @staticmethod
    def read_log(stream, log, ready):
        with stream:
            for line in stream:
                log.append(line)
                if '"message":"ready"' in line:
                    ready.put(json.loads(line))
        ready.put(None)

    def start(self):
        """Returns when it is ready; Refused if it ends before that."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                line = self.spawn().get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                self.stop(signal.SIGKILL)
                raise Wrong(f"the broker is not ready after {READY_SECONDS} s:\n{self.tail()}") from None
            if line is not None:
                self.addresses = {name: line[name] for name in self.addresses}
                return self
            self.process.wait()
            # While it was down, some outgoing connection may have been given one of its ports.
            if "in use" not in self.tail() or "in use by another process" in self.tail():
                raise Refused(self.tail())
            if time.monotonic() > deadline:
                raise Wrong(self.tail())

    def stop(self, how):
        self.process.send_signal(how)
        return self.process.wait(READY_SECONDS)

    def connect(self):
        return http.client.HTTPConnection(self.addresses["ingest"], timeout=ANSWER_SECONDS)

    def client(self, *words, **options):
        environment = self.environment | {"BLOBCAST_GRPC_URL": f"http://{self.addresses['grpc']}"}
        return subprocess.Popen([self.binary, *words], env=environment, text=True, stdin=subprocess.DEVNULL, **options)

    def read(self, *words):
        """What a command of the client prints as JSON, and its complaint if it failed, else None."""
        process = self.client(*words, "--output", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, complaint = process.communicate(timeout=READY_SECONDS)
        return [json.loads(line) for line in out.splitlines()], complaint if process.returncode else None

    def read_whole(self, *words):
        found, complaint = self.read(*words)
        if complaint is not None:
            raise Wrong(f"`blobcast {' '.join(words)}` failed: {complaint}")
        return found

    def tail(self):
        return "".join(self.log[-20:])


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
    except Wrong as wrong:
        raise SystemExit(f"{name}: {wrong}\n{name}: repeat its choices with --seed {seed}") from None
