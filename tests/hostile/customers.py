"""The well-behaved: who posts and who listens while others attack, and what it costs them and the broker."""

import concurrent.futures
import http.client
import json
import pathlib
import re
import socket
import ssl
import subprocess
import threading
import time
import typing

from attacks import proxy_header
from support import SERVER_NAME, Failed, callback, until

PAUSE_SECONDS = 0.05  # between two callbacks
TIMEOUT_SECONDS = 10
CUSTOMER = "203.0.113.7"


class Call(typing.NamedTuple):
    """A callback that is due; without an outcome as long as it has neither been answered nor failed."""

    due: float
    outcome: int | str | None = None  # the status, or what went wrong
    latency: float | None = None  # from when it was due, of whichever outcome


class Customers:
    """Who posts, and who listens."""

    def __init__(self, broker, path):
        self.broker, self.path = broker, path
        self.context = ssl.create_default_context(cafile=broker.settings["ingest.tls_certificate_file"])
        # Of each task its callback, from before it is posted; and when its event arrived.
        self.calls, self.seen = {}, {}
        self.going = True
        url = f"http://{broker.grpc[0]}:{broker.grpc[1]}"
        self.listening = subprocess.Popen(
            [broker.binary, "listen", "--output", "json", "--grpc-url", url],
            stdout=subprocess.PIPE,
            stderr=(broker.directory / "listen.log").open("w"),
            text=True,
        )
        threading.Thread(target=self.listen, daemon=True).start()
        until("the subscription", lambda: broker.metrics().get('blobcast_subscriptions{state="live"}') == 1)
        self.poster = threading.Thread(target=self.post_on, daemon=True)
        self.poster.start()

    def listen(self):
        for line in self.listening.stdout:
            event = json.loads(line)
            self.seen[event.get("event", event)["task_id"]] = time.monotonic()

    def post_on(self):
        due, number = time.monotonic(), 0
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            while self.going:
                self.calls[f"good-{number}"] = Call(due)
                pool.submit(self.post, f"good-{number}", due)
                due, number = due + PAUSE_SECONDS, number + 1
                time.sleep(max(0, due - time.monotonic()))

    def post(self, task, due):
        try:
            with socket.create_connection(self.broker.ingest, TIMEOUT_SECONDS) as raw:
                # http.client writes head and body apart, and the body would wait for the head's acknowledgement.
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if "ingest.proxy_protocol" in self.broker.settings:
                    raw.sendall(proxy_header(CUSTOMER))
                with self.context.wrap_socket(raw, server_hostname=SERVER_NAME) as stream:
                    connection = http.client.HTTPConnection(SERVER_NAME)
                    connection.sock = stream
                    connection.request("POST", self.path, callback(task))
                    answer = connection.getresponse()
                    answer.read()
                    found = answer.status
        except Exception as error:  # each is a callback that was not answered
            found = type(error).__name__
        self.calls[task] = Call(due, found, time.monotonic() - due)

    def due_between(self, begin, end):
        return {task: call for task, call in list(self.calls.items()) if begin <= call.due < end}

    def answered_between(self, begin, end):
        """How many of those due in this time have been answered 200 by now."""
        return sum(call.outcome == 200 for call in self.due_between(begin, end).values())

    def between(self, begin, end):
        """Latencies of the answers and of the events, and the failures, of all callbacks that were due in this time.

        Waits until each has an outcome and each that was answered 200 its event: those that hang are no less due.
        """
        # They are made in the order in which they are due.
        until("the callbacks that are due", lambda: max(call.due for call in list(self.calls.values())) >= end)
        due = self.due_between(begin, end)
        if abs(len(due) - (end - begin) / PAUSE_SECONDS) > 1:
            raise Failed(f"{len(due)} callbacks were due within {end - begin:.2f} s, one every {PAUSE_SECONDS} s")
        until("every callback's outcome", lambda: all(self.calls[task].outcome is not None for task in due))
        outcomes = {task: self.calls[task] for task in due}
        posted = {task: call for task, call in outcomes.items() if call.outcome == 200}
        until("the events of all that was answered 200", lambda: posted.keys() <= self.seen.keys(), TIMEOUT_SECONDS)
        events = [self.seen[task] - call.due for task, call in posted.items()]
        failures = [call.outcome for call in outcomes.values() if call.outcome != 200]
        return [call.latency for call in posted.values()], events, failures

    def end(self):
        self.going = False
        self.poster.join()
        posted = {task for task, call in self.calls.items() if call.outcome == 200}
        until("every event", lambda: posted <= self.seen.keys(), TIMEOUT_SECONDS)
        self.listening.terminate()
        self.listening.wait()
        told = (self.broker.directory / "listen.log").read_text()
        if "connecting again" in told:
            raise Failed(f"the subscription had to connect again:\n{told}")


class Memory:
    """The broker's, in MiB."""

    def __init__(self, broker):
        self.process = pathlib.Path(f"/proc/{broker.process.pid}")

    def now(self, line="VmRSS"):
        return int(re.search(rf"{line}:\s+(\d+) kB", (self.process / "status").read_text())[1]) / 1024

    def forget_peak(self):
        (self.process / "clear_refs").write_text("5")

    def peak(self):
        return self.now("VmHWM")


def percentile(values, part):
    """In seconds; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def tell(name, did, found, *memory):
    latencies, events, failures = found
    at = lambda values, part: f"{1000 * percentile(values, part):.0f}" if values else "-"
    told = [
        str(len(latencies) + len(failures)),
        str(len(failures)),
        at(latencies, 0.5),
        at(latencies, 0.99),
        at(events, 0.99),
    ]
    row(name, did, *told, *(f"{number:.0f}" for number in memory))


def row(name, did, *numbers):
    print(f"floods: {name:<25} {'  '.join(f'{number:>9}' for number in numbers)}  {did}", flush=True)
