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

from attacks import proxy_header
from support import SERVER_NAME, Failed, callback, until

PAUSE_SECONDS = 0.05  # between two callbacks
TIMEOUT_SECONDS = 10
CUSTOMER = "203.0.113.7"


class Customers:
    """Who posts, and who listens."""

    def __init__(self, broker, path):
        self.broker, self.path = broker, path
        self.context = ssl.create_default_context(cafile=broker.settings["ingest.tls_certificate_file"])
        # Of each task, when its callback was due and how long its answer took; and when its event arrived.
        self.posted, self.seen, self.failures = {}, {}, []
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
        except Exception as error:  # noqa: BLE001 # each is a callback that was not answered
            found = type(error).__name__
        if found == 200:
            self.posted[task] = due, time.monotonic() - due
        else:
            self.failures.append((due, found))

    def between(self, begin, end):
        """Latencies of the answers and of the events, and the failures, of callbacks that were due in this time."""
        posted = {task: latency for task, (due, latency) in list(self.posted.items()) if begin <= due < end}
        events = [self.seen[task] - self.posted[task][0] for task in posted if task in self.seen]
        return list(posted.values()), events, [found for due, found in self.failures if begin <= due < end]

    def end(self):
        self.going = False
        self.poster.join()
        until("every event", lambda: self.posted.keys() <= self.seen.keys(), TIMEOUT_SECONDS)
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


def tell(name, did, found, *memory):
    latencies, events, failures = found
    at = lambda values, part: f"{1000 * sorted(values)[min(len(values) - 1, int(len(values) * part))]:.0f}" if values else "-"
    told = [str(len(latencies) + len(failures)), str(len(failures)), at(latencies, 0.5), at(latencies, 0.99), at(events, 0.99)]
    row(name, did, *told, *(f"{number:.0f}" for number in memory))


def row(name, did, *numbers):
    print(f"floods: {name:<25} {'  '.join(f'{number:>9}' for number in numbers)}  {did}", flush=True)
