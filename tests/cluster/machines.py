"""Six machines, and a spare one: three NATS servers and three nodes on one bridge, each in a network namespace of its own; and
what can happen to the network between them and to their disks.

All of it is made within namespaces of this process (see `run`), so it is gone when the process is, whatever ended it.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests/durability"))
import lib
from delay import Delay
from lib import Failed

NETWORK = "10.77.0"
SERVERS = {"nats-1": 1, "nats-2": 2, "nats-3": 3}  # and the last number of the address
SPARE = "nats-4"  # a machine without a server
NODES = {"a": 11, "b": 12, "c": 13}
MACHINES = SERVERS | {SPARE: 4} | NODES
CALLERS = "callers"  # everything that uses the nodes, on no machine of the six: on the bridge itself
HERE = 254
CLIENTS, ROUTES, MONITOR = 4222, 6222, 8222
NAME = "main"
SYSTEM = "system"  # the account, user and password by which a server is removed; everybody else needs no name
STREAM, SUBJECT = f"BLOBCAST_{NAME}", f"blobcast.{NAME}.log"

PATIENCE_SECONDS = 120  # for what takes some on an idle machine
POLL_SECONDS = 0.1
DISK_MIB = 256
# ext4's own way to end as in a power cut: nothing more is written, not even what the journal still has to.
EXT4_SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2


def until(what, probe, seconds=PATIENCE_SECONDS):
    """Waits until `probe` returns something, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        if found := probe():
            return found
        if time.monotonic() > deadline:
            raise Failed(f"waited {seconds} s for {what}")
        time.sleep(POLL_SECONDS)


def do(*command, **options):
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout
    except subprocess.CalledProcessError as error:
        raise Failed(f"{' '.join(map(str, command))}: {error.stderr.strip()}") from None


def address_of(name):
    return f"{NETWORK}.{(MACHINES | {CALLERS: HERE})[name]}"


class Network:
    """A bridge with a machine at each port. What is blocked vanishes without an answer, as in a network that is cut."""

    def __init__(self):
        self.blocked, self.slow, self.delay = set(), None, None
        os.makedirs("/run/netns", exist_ok=True)
        do("mount", "-t", "tmpfs", "none", "/run/netns")
        do("ip", "link", "set", "lo", "up")
        do("ip", "link", "add", "name", "bridge", "type", "bridge")
        do("ip", "address", "add", f"{NETWORK}.{HERE}/24", "dev", "bridge")
        do("ip", "link", "set", "bridge", "up")
        for name in MACHINES:
            do("ip", "netns", "add", name)
            do("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            do("ip", "link", "set", f"to-{name}", "master", "bridge", "up")
            do("ip", "-n", name, "address", "add", f"{address_of(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                do("ip", "-n", name, "link", "set", device, "up")

    def inside(self, name):
        """What begins a command that is to run on the machine."""
        return ["nsenter", f"--net=/run/netns/{name}", "--"]

    def block(self, source, target):
        """One way only."""
        self.blocked.add((source, target))
        self.apply(source)

    def cut(self, ones, others):
        """Both ways."""
        for one in ones:
            for other in others:
                self.block(one, other)
                self.block(other, one)

    def heal(self):
        blocked, self.blocked = self.blocked, set()
        slow, self.slow = self.slow, None
        for source in {source for source, _ in blocked} | ({slow} if slow else set()):
            self.apply(source)
        if slow:
            do(*self.inside(slow), "tc", "qdisc", "delete", "dev", "eth0", "root")
        if self.delay:
            self.delay.stop()
            self.delay = None
            do("ip", "link", "delete", "late")
            do("ip", "link", "set", f"to-{slow}", "master", "bridge", "arp", "on")

    def apply(self, name):
        targets = [address_of(target) for source, target in self.blocked if source == name]
        rules = ["flush ruleset", "add table inet faults"]
        rules.append("add chain inet faults out { type filter hook output priority 0; }")
        rules += [f"add rule inet faults out ip daddr {target} drop" for target in targets]
        if self.slow == name and self.delay:
            rules.append("add rule inet faults out numgen random mod 100 == 0 drop")
        do(*self.inside(name), "nft", "-f", "-", input="\n".join(rules) + "\n")

    def make_slow(self, name):
        """Everything that the machine sends: 200 ms, one packet of a hundred lost, 1 Mbit/s; by netem, or without it by hand."""
        self.slow = name
        discipline = [*self.inside(name), "tc", "qdisc", "add", "dev", "eth0", "root"]
        try:
            do(*discipline, "netem", "delay", "200ms", "20ms", "loss", "1%", "rate", "1mbit")
            by = "netem"
        except Failed:
            do(*discipline, "tbf", "rate", "1mbit", "burst", "32kb", "latency", "400ms")
            do("ip", "link", "set", f"to-{name}", "nomaster", "arp", "off")
            do("ip", "link", "add", "name", "late", "arp", "off", "type", "veth", "peer", "name", "to-late")
            do("ip", "link", "set", "to-late", "master", "bridge", "up")
            do("ip", "link", "set", "late", "up")
            self.delay = Delay(f"to-{name}", "late", 0.2)
            self.apply(name)
            by = "hand"
        return f"200 ms, 1 % lost, 1 Mbit/s, by {by}"


class Disk:
    """A small ext4 of a machine's own."""

    def __init__(self, directory):
        self.path, self.image = pathlib.Path(directory), pathlib.Path(f"{directory}.image")
        self.path.mkdir(parents=True)
        with self.image.open("wb") as image:
            image.truncate(DISK_MIB << 20)
        do("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
        self.mount()

    def mount(self):
        # Not even ext4's own commits, each five seconds, may keep what nobody has synced.
        do("mount", "-o", "loop,commit=600", self.image, self.path)

    def sync(self):
        do("sync", "-f", self.path)

    def unmount(self):
        until(
            f"{self.path} to be idle", lambda: not subprocess.run(["umount", self.path], capture_output=True).returncode
        )

    def cut_power(self):
        """What was not synced is gone for good; what still uses the disk gets errors, as from one that fails."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def fill(self):
        with (self.path / "filler").open("ab", buffering=0) as filler:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)) == size:
                        pass

    def empty(self):
        (self.path / "filler").unlink()


class Server:
    """One NATS server, on the machine of its name if not on another."""

    def __init__(self, binary, network, directory, name, sync, disk=False, machine=None):
        self.binary, self.network, self.name, self.process = binary, network, name, None
        self.machine = machine or name
        self.directory = directory / name
        self.directory.mkdir(parents=True)
        self.data = self.directory / "data"
        self.disk = Disk(self.data) if disk else None
        self.log_path, self.configuration = self.directory / "server.log", self.directory / "nats.conf"
        routes = ", ".join(f"nats://{address_of(other)}:{ROUTES}" for other in SERVERS)
        address = address_of(self.machine)
        # Without `sync` it is NATS's default: every two minutes.
        self.configuration.write_text(
            f"server_name: {name}\nlisten: {address}:{CLIENTS}\nhttp: {address}:{MONITOR}\nmax_payload: 8MB\n"
            f"jetstream {{ store_dir: {self.data}, max_memory_store: 64MB, max_file_store: 20GB"
            f"{', sync_interval: always' if sync else ''} }}\n"
            f"cluster {{ name: campaign, listen: {address}:{ROUTES}, routes: [ {routes} ] }}\n"
            f"accounts {{ {SYSTEM}: {{ users: [ {{ user: {SYSTEM}, password: {SYSTEM} }} ] }}\n"
            "  all: { jetstream: enabled, users: [ { user: all, password: all } ] } }\n"
            f"no_auth_user: all\nsystem_account: {SYSTEM}\nlame_duck_duration: 30s\nlame_duck_grace_period: 5s\n"
        )

    def start(self):
        with self.log_path.open("a") as log:
            command = [*self.network.inside(self.machine), self.binary, "-c", self.configuration]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def send(self, how):
        self.process.send_signal(how)

    def kill(self, how=signal.SIGKILL):
        if self.alive():
            self.send(how)
        self.process.wait(PATIENCE_SECONDS)

    def end_as_lame_duck(self):
        """As before an upgrade: it hands over what it leads, sends its clients away, and ends."""
        self.kill(signal.SIGUSR2)

    def get(self, path):
        """What its monitoring answers; None if it does not."""
        try:
            with urllib.request.urlopen(f"http://{address_of(self.machine)}:{MONITOR}/{path}", timeout=2) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def copy(self):
        shutil.copytree(self.data, self.directory / "copy")

    def restore(self):
        """The copy takes the place of the data."""
        shutil.rmtree(self.data)
        shutil.move(self.directory / "copy", self.data)

    def version(self):
        return (self.get("varz") or {}).get("version")

    def is_healthy(self):
        return (self.get("healthz") or {}).get("status") == "ok"


class Servers:
    """The three of them, and what is asked of them together."""

    def __init__(self, binary, network, directory, sync, disks=False):
        self.make = lambda name, machine=None: Server(binary, network, directory, name, sync, disks, machine)
        self.all = {name: self.make(name) for name in SERVERS}

    def __iter__(self):
        return iter(self.all.values())

    def __getitem__(self, name):
        return self.all[name]

    def start(self):
        """Those that do not run; returns when all are healthy."""
        for server in self:
            if not server.alive():
                server.start()
        until("three healthy NATS servers", lambda: all(server.is_healthy() for server in self))

    def request(self, subject, body=b"", seconds=5, user=None):
        """An answer of the cluster's API, by whichever server has one."""
        for server in self:
            if server.alive():
                with contextlib.suppress(OSError, EOFError):
                    return json.loads(request(address_of(server.machine), subject, body, seconds, user))
        return {}

    def add(self, name, machine):
        """An empty one, which joins the others."""
        self.all[name] = self.make(name, machine)
        self.all[name].start()
        return self.all[name]

    def remove(self, server):
        """From the cluster, for good: its replicas are made anew at another server."""
        body = json.dumps({"peer": server.name}).encode()
        ask = lambda: self.request("$JS.API.SERVER.REMOVE", body, user=SYSTEM)
        answer = until("the answer to a removal", ask)
        if not answer.get("success"):
            raise Failed(f"server {server.name} cannot be removed: {answer}")
        del self.all[server.name]

    def members(self):
        """Of the group that makes streams and consumers, as its leader sees them: whether each is current, by its name."""
        for server in self:
            meta = (server.get("jsz") or {}).get("meta_cluster", {}) if server.alive() else {}
            if meta.get("leader") == server.name:
                return {server.name: True} | {one["name"]: is_current(one) for one in meta.get("replicas", [])}
        return {}

    def replicas(self):
        """Of the stream, likewise."""
        cluster = self.stream().get("cluster", {})
        others = {one["name"]: is_current(one) for one in cluster.get("replicas") or []}
        return others | ({cluster["leader"]: True} if cluster.get("leader") else {})

    def stream(self):
        return self.request(f"$JS.API.STREAM.INFO.{STREAM}", seconds=2)

    def leader(self):
        """Of the stream."""
        name = until("the stream to have a leader", lambda: self.stream().get("cluster", {}).get("leader"))
        return self[name]

    def consumers(self):
        """By which nodes have read the stream, or do, and from which servers, each by its name."""
        listed = self.request(f"$JS.API.CONSUMER.LIST.{STREAM}").get("consumers") or []
        server = lambda one: one.get("cluster", {}).get("leader")
        return {one["name"]: (one["config"].get("description"), server(one)) for one in listed}

    def step_down(self, **placement):
        """Whether another leader was made."""
        body = json.dumps({"placement": placement}).encode() if placement else b""
        return self.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", body, seconds=2).get("success", False)

    def make_leader(self, server, seconds=30):
        """Of the stream; false if it does not become that."""
        deadline = time.monotonic() + seconds
        while self.leader() is not server:
            if time.monotonic() > deadline:
                return False
            self.step_down(preferred=server.name)
            time.sleep(0.5)
        return True

    def followers(self):
        leader = self.leader()
        return [server for server in self if server is not leader]

    def meta_leader(self):
        """Of the group that makes streams and consumers."""
        ask = lambda: next((got for server in self if server.alive() and (got := server.get("jsz"))), {})
        return self[until("a meta leader", lambda: ask().get("meta_cluster", {}).get("leader"))]


def is_current(replica):
    return replica["current"] and not replica.get("offline", False) and not replica.get("lag", 0)


def request(host, subject, body=b"", seconds=5, user=None):
    """One request and its reply, in NATS's protocol."""
    with socket.create_connection((host, CLIENTS), timeout=seconds) as connection, connection.makefile("rb") as lines:
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "name": "campaign"}
        options |= {"user": user, "pass": user} if user else {}
        inbox = f"_INBOX.campaign.{time.monotonic_ns()}"
        connection.sendall(
            f"CONNECT {json.dumps(options)}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} {len(body)}\r\n".encode()
            + body
            + b"\r\n"
        )
        while True:
            words = lines.readline().split()
            if not words:
                raise EOFError("the server has closed the connection")
            if words[0] == b"MSG":
                return lines.read(int(words[-1]) + 2)[:-2]
            if words[0] == b"HMSG":  # of headers alone: nobody listens there
                raise EOFError(lines.read(int(words[-1]) + 2).decode(errors="replace"))
            if words[0] == b"PING":
                connection.sendall(b"PONG\r\n")
            if words[0] == b"-ERR":
                raise EOFError(b" ".join(words).decode())


class Node(lib.Broker):
    """One node of the cluster. Its machine is in the network, its clients are not: they reach it whatever is cut."""

    def __init__(self, binary, network, directory, name, settings=None, disk=False, **more):
        self.name = name
        # Each begins with a server of its own.
        turn = list(NODES).index(name)
        servers = [*list(SERVERS)[turn:], *list(SERVERS)[:turn]]
        own = {
            "cluster.servers": ",".join(f"nats://{address_of(server)}:{CLIENTS}" for server in servers),
            "cluster.monitoring_urls": ",".join(f"http://{address_of(server)}:{MONITOR}" for server in servers),
            "cluster.name": NAME,
            "cluster.node": name,
            "ingest.allow_unverified": "true",
            "grpc.allow_anonymous": "true",
            "admin.allow_anonymous": "true",
        }
        super().__init__(binary, directory / name, own | (settings or {}), prefix=network.inside(name), **more)
        self.disk = Disk(self.directory / "disk") if disk else None
        if self.disk:
            self.settings["data_dir"] = self.disk.path / "data"
        address = address_of(name)
        self.addresses = {"ingest": f"{address}:8080", "grpc": f"{address}:50051", "admin": f"{address}:9090"}

    @property
    def data(self):
        return pathlib.Path(self.settings.get("data_dir", self.directory / "data"))

    def empty(self):
        """Its data, and what beside them says that there were some: as on a new disk."""
        shutil.rmtree(self.data)
        self.data.with_name(f".{self.data.name}.has-log").unlink()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def send(self, how):
        self.process.send_signal(how)

    def ready(self):
        """The status of /readyz and its text; None if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.addresses['admin']}/readyz", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None, ""

    def is_ready(self):
        return self.ready()[0] == 200

    def metric(self, name):
        """None while nobody answers."""
        try:
            return self.metrics().get(f"blobcast_cluster_{name}")
        except OSError:
            return None


class Nodes:
    def __init__(self, make):
        self.all = {name: make(name) for name in NODES}

    def __iter__(self):
        return iter(self.all.values())

    def __getitem__(self, name):
        return self.all[name]

    def start(self):
        for node in self:
            if not node.alive():
                node.spawn()
        self.wait_until_ready()

    def wait_until_ready(self, seconds=PATIENCE_SECONDS):
        deadline = time.monotonic() + seconds
        for node in self:
            while not node.is_ready():
                if not node.alive():
                    raise Failed(f"node {node.name} ended with {node.process.returncode}:\n{node.tail()}")
                if time.monotonic() > deadline:
                    raise Failed(f"node {node.name} is not ready after {seconds} s: {node.ready()}\n{node.tail()}")
                time.sleep(POLL_SECONDS)

    def writer(self):
        writers = lambda: [node for node in self if node.alive() and node.metric("is_writer")]
        return until("a writing node", writers)[0]

    def others(self):
        writer = self.writer()
        return [node for node in self if node is not writer]
