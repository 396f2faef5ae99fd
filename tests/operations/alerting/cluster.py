"""Troubles of a node of a cluster, with a NATS server of its own."""

import json
import os
import shutil
import socket
import subprocess
import urllib.request

from .broker import Failed, expect, free_port, until
from .story import story

PATIENCE_SECONDS = 60
READY, SKIPPED = "blobcast_cluster_ready", 'blobcast_cluster_frames_total{what="foreign"}'
DIFFERS = 'blobcast_cluster_mismatch{what="chain"}'
MISMATCH = 'blobcast_cluster_mismatch{what="configuration"}'
SKEW, BEHIND_SECONDS = "blobcast_cluster_clock_skew_seconds", "blobcast_cluster_stream_lag_seconds"
BYTES, BYTES_MAX = "blobcast_cluster_stream_bytes", "blobcast_cluster_stream_bytes_max"


class Nats:
    """One server, which the story ends."""

    def __init__(self, at, syncs=True, users=None):
        self.program = os.environ.get("NATS_SERVER") or shutil.which("nats-server")
        if not self.program:
            raise Failed("no nats-server: set NATS_SERVER, or put it into PATH (deploy/cluster/fetch-nats brings one)")
        self.clients, self.monitoring, self.process = free_port(), free_port(), None
        self.directory = at.directory / "nats"
        self.directory.mkdir()
        self.syncs, self.users = syncs, users or {}
        self.configure()
        at.disks.append(self)  # what the story ends
        self.start()

    def configure(self):
        """`users` have permissions by their names; without any, nobody is asked."""
        sync = "sync_interval: always" if self.syncs else ""
        users = [
            f"{{ user: {name}, password: password, permissions: {permissions} }}"
            for name, permissions in self.users.items()
        ]
        (self.directory / "nats.conf").write_text(
            f"listen: 127.0.0.1:{self.clients}\nhttp: 127.0.0.1:{self.monitoring}\nmax_payload: 8MB\n"
            f"jetstream {{ store_dir: {json.dumps(str(self.directory / 'data'))}, max_file_store: 1GB, {sync} }}\n"
            + (f"authorization {{ users: [ {', '.join(users)} ] }}\n" if users else "")
        )

    def start(self):
        with (self.directory / "log").open("a") as log:
            command = [self.program, "-c", self.directory / "nats.conf"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until("the NATS server", self.is_healthy)

    def is_healthy(self):
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.monitoring}/healthz", timeout=PATIENCE_SECONDS
            ) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self):
        self.process.kill()
        self.process.wait()

    def settings(self, **more):
        """Of a node."""
        return {
            "cluster.servers": f"nats://127.0.0.1:{self.clients}",
            "cluster.monitoring_urls": f"http://127.0.0.1:{self.monitoring}",
            "cluster.replicas": 1,
            "cluster.node": "a",
            "cluster.stream_bytes_max": "64MiB",
        } | {f"cluster.{key}": value for key, value in more.items()}

    def publish(self, subject, body):
        with Connection(self.clients) as connection:
            connection.publish(subject, body)

    def next_of(self, subject):
        """The next message of a subject."""
        with Connection(self.clients) as connection:
            connection.send(f"SUB {subject} 1")
            return connection.message()

    def request(self, subject):
        with Connection(self.clients) as connection:
            connection.send("SUB _INBOX.alerts 1")
            connection.send(f"PUB {subject} _INBOX.alerts 0\r\n")
            return connection.message()


class Connection:
    """The little of NATS's protocol that is needed."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.lines = self.socket.makefile("rb")
        self.send('CONNECT {"verbose":false,"pedantic":false,"name":"alerts"}')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

    def send(self, line):
        self.socket.sendall(line.encode() + b"\r\n")

    def publish(self, subject, body):
        """It has arrived when this returns."""
        self.send(f"PUB {subject} {len(body)}\r\n{body}")
        self.send("PING")
        while not self.lines.readline().startswith(b"PONG"):
            pass

    def message(self):
        while True:
            words = self.lines.readline().split()
            if not words or words[0] == b"-ERR":
                raise Failed(f"NATS: {words}")
            if words[0] == b"MSG":
                return self.lines.read(int(words[-1]))
            if words[0] == b"PING":
                self.send("PONG")


@story("ClusterFramesSkipped", "ClusterLogsDiffer", "ClusterDown", "ClusterNodeNotReady", "ClusterHole")
def cluster_in_trouble(at):
    """Somebody else publishes; another node says that its log differs; NATS is away, and comes back without the stream."""
    nats = Nats(at)
    broker = at.broker(nats.settings())
    until("a node that is ready", lambda: broker.metrics()[READY] == 1)
    expect(broker.post(), 200)
    at.scrape(broker, 6)
    nats.publish("blobcast.main.log", "nonsense")
    until("it to be passed over", lambda: broker.metrics()[SKIPPED] == 1)
    at.scrape(broker, 3, {"ClusterFramesSkipped": '{what="foreign"} 1'})
    at.scrape(broker, 20)

    nats.end()
    not_ready = dict.fromkeys(("ClusterDown", "ClusterNodeNotReady"), "a, not ready: NATS cannot be reached")
    at.scrape(broker, 3, not_ready, when=lambda metrics: metrics[READY] == 0)
    nats.start()
    at.scrape(broker, 3, when=lambda metrics: metrics[READY] == 1)

    until("a difference", lambda: contradict(nats) or broker.metrics()[DIFFERS] == 1)
    contradict(nats)
    at.scrape(broker, 3, {"ClusterLogsDiffer": r"\nz +\S+ .* chain\n"})

    nats.request("$JS.API.STREAM.DELETE.BLOBCAST_main")
    and_still = ["ClusterLogsDiffer", "ClusterDown", "ClusterNodeNotReady"]
    is_hole = lambda metrics: metrics["blobcast_cluster_hole"] == 1
    at.scrape(broker, 3, {"ClusterHole": "a, not ready: .*BLOBCAST_main"}, and_still=and_still, when=is_hole)


def contradict(nats):
    say(nats, chain="another")


def say(nats, **changes):
    """A node that says what the other one has just said, but for this."""
    said = json.loads(nats.next_of("blobcast.main.nodes.a"))
    nats.publish("blobcast.main.nodes.z", json.dumps(said | {"author": "00"} | changes))


@story("ClusterClocksDiffer", "ClusterMismatch")
def another_machine_that_is_not_alike(at):
    """Another node has another clock, then another configuration, and both are set right."""
    nats = Nats(at)
    broker = at.broker(nats.settings())
    until("a node that is ready", lambda: broker.metrics()[READY] == 1)
    at.scrape(broker, 6)
    said = json.loads(nats.next_of("blobcast.main.nodes.a"))
    clock = said["clock_micros"] - 3_600_000_000

    def is_apart(metrics):
        say(nats, clock_micros=clock)
        return metrics[SKEW] > 3_600

    at.scrape(broker, 3, {"ClusterClocksDiffer": f"{SKEW} 36"}, when=is_apart)
    at.scrape(broker, 3, when=lambda metrics: say(nats) or metrics[SKEW] == 0)

    common = said["common"]
    common["configuration"]["log.retention_age_max"] = "another"

    def differs(metrics):
        say(nats, common=common)
        return metrics[MISMATCH] == 1

    at.scrape(broker, 12, {"ClusterMismatch": r"\nz +\S+ .* log.retention_age_max\n"}, when=differs)
    at.scrape(broker, 3, when=lambda metrics: say(nats) or metrics[MISMATCH] == 0)


@story("ClusterLagging", "ClusterNodeNotReady", "ClusterDown")
def a_node_that_gets_no_messages(at):
    """The NATS server comes back, and lets a node ask for the stream's end, but not for its messages."""
    users = {"a": "{}", "b": "{}"}
    nats = Nats(at, users=users)
    password = at.directory / "password"
    password.write_text("password")
    of = lambda name: nats.settings(node=name, user=name, password_file=password)
    broker = at.broker(of("a"))
    other = at.broker(of("b") | {"credentials_file": broker.credentials_path})
    for node in (broker, other):
        until("a node that is ready", lambda node=node: node.metrics()[READY] == 1)
    at.scrape(broker, 6)
    nats.end()
    users["a"] = '{ publish: { deny: ["$JS.API.CONSUMER.>", "$JS.API.DIRECT.>", "blobcast.main.log"] } }'
    nats.configure()
    nats.start()
    until("the other one to go on", lambda: other.metrics()[READY] == 1)
    is_behind = lambda metrics: metrics[BEHIND_SECONDS] > 30
    and_still = ["ClusterNodeNotReady", "ClusterDown"]
    at.scrape(broker, 3, {"ClusterLagging": r"stream +\d+ messages behind"}, and_still=and_still, when=is_behind)


@story("ClusterSyncNotShown", "ClusterStreamFilling")
def small_stream_without_syncs(at):
    """The NATS server does not sync, and the stream gets full."""
    nats = Nats(at, syncs=False)
    broker = at.broker(nats.settings(sync="warn", stream_bytes_max="1MiB") | {"ingest.body_bytes_max": "64KiB"})
    until("a node that is ready", lambda: broker.metrics()[READY] == 1)
    at.scrape(broker, 8, {"ClusterSyncNotShown": "does not have sync_interval: always"})

    def is_filling(metrics):
        return metrics[BYTES] > 0.8 * metrics[BYTES_MAX] > 0

    def fill():
        before = broker.metrics()[BYTES]
        expect(broker.post(filler_bytes=60_000), 200)
        return until("the stream to grow", lambda: broker.metrics()[BYTES] > before) and is_filling(broker.metrics())

    until("a stream that is nearly full", fill)
    filling = {"ClusterStreamFilling": r"\d+ of 1048576 bytes are used, [89]\d %"}
    at.scrape(broker, 8, filling, and_still=["ClusterSyncNotShown"])
