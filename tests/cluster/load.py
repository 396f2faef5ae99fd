"""What uses the cluster while it is in trouble: callers who post at every node in turn and repeat what was not acknowledged;
subscribers who go on at another node with their last cursor; readers who ask one node for what another has acknowledged."""

import collections
import contextlib
import http.client
import itertools
import json
import random
import subprocess
import threading
import time

from lib import Failed, place

POSTERS = 12
PAUSE_SECONDS = 0.05  # of a poster, between two callbacks: some hundred a second together
AGAIN_SECONDS = 0.5  # until what was not acknowledged is posted again; the vendor waits 30 s
ANSWER_SECONDS = 6  # the broker takes 4 at most
DWELL_SECONDS = 2, 6  # of a subscriber at one node
READ_SECONDS = 15
LAST_SECONDS = 60


class Callers:
    """Post until told to stop. What they were told is in the ledger; here is when, and what was refused."""

    def __init__(self, nodes, ledger, body_bytes, seed):
        self.nodes, self.ledger, self.body_bytes = list(nodes), ledger, body_bytes
        self.over, self.lock, self.failures = threading.Event(), threading.Lock(), []
        self.acknowledged_at, self.refused = [], collections.Counter()
        self.recent = collections.deque(maxlen=200)  # (node, callback), for readers
        self.threads = [
            threading.Thread(target=self.post_on, args=(number, random.Random(seed + number)), daemon=True)
            for number in range(POSTERS)
        ]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join(ANSWER_SECONDS + LAST_SECONDS)

    def post_on(self, number, rng):
        turns = itertools.islice(itertools.cycle(self.nodes), number, None)
        connections = {node.name: connection_to(node) for node in self.nodes}
        try:
            while not self.over.wait(rng.uniform(0, 2 * PAUSE_SECONDS)):
                callback = self.ledger.next(self.body_bytes)
                while not self.post(connections, next(turns), callback):
                    # Posted again it would be another: the quarantine knows no duplicates.
                    if callback.task is None or self.over.wait(AGAIN_SECONDS):
                        break
        except Exception as failure:
            self.failures.append(failure)

    def post(self, connections, node, callback):
        status = self.ledger.post(connections[node.name], callback)
        with self.lock:
            if status in (200, 202):
                self.acknowledged_at.append(time.monotonic())
                if status == 200:
                    self.recent.append((node, callback))
                return True
            self.refused[status or "unanswered"] += 1
        if status not in (None, 429, 503):
            raise Failed(f"callback {callback.number} was answered {status} by node {node.name}")
        return False

    def post_rest(self):
        """As the vendor would: everything that nobody has acknowledged yet."""
        connections = {node.name: connection_to(node) for node in self.nodes}
        turns = itertools.cycle(self.nodes)
        deadline = time.monotonic() + LAST_SECONDS
        rest = [one for one in self.ledger.callbacks if one.task and one.posted_at and not one.acknowledged_at]
        for callback in rest:
            while not self.post(connections, next(turns), callback):
                if time.monotonic() > deadline:
                    raise Failed(f"callback {callback.number} is not taken by any node within {LAST_SECONDS} s")
                time.sleep(AGAIN_SECONDS)

    def longest_silence(self):
        return max((later - one for one, later in itertools.pairwise(sorted(self.acknowledged_at))), default=0.0)


def connection_to(node):
    return http.client.HTTPConnection(*node.ingest, timeout=ANSWER_SECONDS)


class Subscriber:
    """`blobcast listen`, which is ended now and then, and goes on at another node where it was."""

    def __init__(self, nodes, path, seed, on_expired):
        self.nodes, self.path, self.rng, self.on_expired = list(nodes), path, random.Random(seed), on_expired
        self.over, self.events, self.complaints = threading.Event(), [], []
        self.thread = threading.Thread(target=self.hop, daemon=True)
        self.thread.start()

    def hop(self):
        for node in itertools.cycle(self.rng.sample(self.nodes, len(self.nodes))):
            if self.over.is_set():
                return
            self.stay(node, self.rng.uniform(*DWELL_SECONDS))

    def stay(self, node, seconds):
        begin = self.events[-1]["cursor"] if self.events else "earliest"
        listen = [
            "listen",
            "--from",
            begin,
            "--on-expired",
            self.on_expired,
            "--output",
            "json",
            "--name",
            self.path.name,
        ]
        with self.path.open("ab") as complaints:
            process = node.client(*listen, stdout=subprocess.PIPE, stderr=complaints)
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if line.endswith("\n"):
                    self.events.append(json.loads(line))
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        # It ends by itself only after an error that no retry can help.
        if process.returncode > 0:
            self.complaints.append(f"{node.name}: {self.path.read_text()[-500:]}")
            self.over.wait(0.2)

    def reach(self, cursor):
        """Until it has come to this event of the log."""
        deadline = time.monotonic() + LAST_SECONDS
        while cursor and (not self.events or place(self.events[-1]["cursor"]) < place(cursor)):
            if time.monotonic() > deadline:
                said = "\n".join(self.complaints[-3:])
                raise Failed(f"{self.path.name} does not come to the end of the log in {LAST_SECONDS} s: {said}")
            time.sleep(0.1)

    def stop(self):
        self.over.set()
        self.thread.join(LAST_SECONDS)


class Reader:
    """Asks a node for a task that another node has just acknowledged an event of. It must not say that there is no such task; if it
    knows an earlier event of the task it may answer with that, and so it is counted."""

    def __init__(self, nodes, callers, seed, state):
        self.nodes, self.callers, self.rng, self.state = list(nodes), callers, random.Random(seed), state
        self.over, self.found, self.older, self.refused, self.missed = threading.Event(), 0, 0, 0, []
        self.thread = threading.Thread(target=self.read_on, daemon=True)
        self.thread.start()

    def read_on(self):
        while not self.over.wait(0.2):
            with contextlib.suppress(IndexError):
                node, callback = self.callers.recent[-1]
                self.read(self.rng.choice([other for other in self.nodes if other is not node]), node, callback)

    def read(self, there, node, callback):
        process = there.client("get", callback.task, "--output", "json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, complaint = process.communicate(timeout=READ_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.refused += 1
            return
        if process.returncode == 0:
            if callback.event_id in {json.loads(line)["event_id"] for line in out.splitlines()}:
                self.found += 1
            else:
                self.older += 1
            return
        if "NOT_FOUND" not in complaint and "not found" not in complaint:
            self.refused += 1
            return
        ago = time.monotonic() - callback.acknowledged_at
        said = f"acknowledged by {node.name} {ago:.1f} s ago, not read from {there.name}: {callback.task}"
        self.missed.append(f"{said}: {complaint.strip()}; then {self.state()}")

    def stop(self):
        self.over.set()
        self.thread.join(READ_SECONDS + 5)
