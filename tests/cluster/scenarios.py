"""What is done to the cluster, each as a function of the campaign that runs. The load goes on all the while; in the end all is
brought back to order, unless the scenario says that the cluster has to tell of a loss."""

import dataclasses
import glob
import shutil
import signal
import time
import typing

from lib import Failed
from machines import NODES, SERVERS, STREAM, SUBJECT, until

KILL, STOP, GO, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM
CLOCK = {"a": "+10m", "b": "-10m"}
FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
TOLD_SECONDS = 60
FORGET_SECONDS = 240
SMALL_LOG = {"log.retention_bytes_max": "2MiB", "ingest.body_bytes_max": "480KiB"}


@dataclasses.dataclass
class Scenario:
    what: typing.Callable
    is_short: bool  # also in the short run
    sync: bool  # every write of NATS is synced before it is acknowledged
    disks: tuple  # "servers" and "nodes" that have a small file system of their own
    settings: dict  # of every node
    is_told: bool  # the stream has lost something: nodes have to tell, and none may serve anything wrong
    is_lost: bool  # something acknowledged is lost, and this script has to notice
    may_read_late: bool  # a leader that is cut off may not know the newest events
    clock: bool  # the nodes' clocks differ by minutes
    trims: bool  # retention forgets events while it runs

    @property
    def name(self):
        return self.what.__name__.replace("_", "-")

    def environment(self, directory, node):
        if not self.clock or node not in CLOCK:
            return {}
        libraries = glob.glob(FAKETIME)
        if not libraries:
            raise Failed("libfaketime is missing (Debian: faketime)")
        return {"LD_PRELOAD": libraries[0], "FAKETIME": CLOCK[node], "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


ALL = {}


def scenario(
    short=False, sync=True, disks=(), settings=None, told=False, lost=False, late=False, clock=False, trims=False
):
    def add(what):
        made = Scenario(what, short, sync, disks, settings or {}, told, lost, late, clock, trims)
        ALL[made.name] = made
        return what

    return add


def kill_for(campaign, machines, seconds, how=KILL):
    """Ends processes at once, and starts them again after a while."""
    for machine in machines:
        machine.kill(how)
    campaign.wait(seconds)
    for machine in machines:
        (machine.spawn if hasattr(machine, "spawn") else machine.start)()


def stop_for(campaign, machine, seconds):
    machine.send(STOP)
    try:
        campaign.wait(seconds)
    finally:
        machine.send(GO)


def all_ready(campaign):
    """Before the next fault, or after the last."""
    until("healthy NATS servers", lambda: all(server.is_healthy() for server in campaign.servers))
    campaign.nodes.wait_until_ready()
    campaign.wait(2)


def rounds(campaign, fault):
    """Once in a short run; several times in a long one, where the cluster has aged by the faults before."""
    for _ in range(campaign.arguments.rounds):
        fault()
        all_ready(campaign)


# kill -9


@scenario(short=True)
def kill_stream_leader(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.servers.leader()], campaign.rng.uniform(2, 12)))


@scenario()
def kill_meta_leader(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.servers.meta_leader()], campaign.rng.uniform(2, 12)))


@scenario()
def kill_both_followers(campaign):
    rounds(campaign, lambda: kill_for(campaign, campaign.servers.followers(), campaign.rng.uniform(2, 10)))


@scenario()
def kill_all_servers(campaign):
    rounds(campaign, lambda: kill_for(campaign, list(campaign.servers), campaign.rng.uniform(0, 5)))


@scenario(short=True)
def kill_writer(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.nodes.writer()], campaign.rng.uniform(0, 5)))


@scenario()
def kill_any_node(campaign):
    """Also while it starts."""

    def fault():
        node = campaign.rng.choice(list(campaign.nodes))
        for _ in range(3):
            kill_for(campaign, [node], campaign.rng.uniform(0, 1.5))
            campaign.wait(campaign.rng.uniform(0, 0.5))

    rounds(campaign, fault)


@scenario()
def kill_everything(campaign):
    def fault():
        for machine in [*campaign.nodes, *campaign.servers]:
            machine.kill()
        campaign.wait(campaign.rng.uniform(0, 3))
        campaign.servers.start()
        campaign.nodes.start()

    rounds(campaign, fault)


# SIGSTOP


@scenario()
def pause_stream_leader(campaign):
    rounds(campaign, lambda: stop_for(campaign, campaign.servers.leader(), campaign.rng.uniform(1, 20)))


@scenario()
def pause_follower(campaign):
    rounds(campaign, lambda: stop_for(campaign, campaign.servers.followers()[0], campaign.rng.uniform(1, 30)))


@scenario(short=True)
def pause_writer(campaign):
    """It wakes up in the middle of what it was about to write."""
    rounds(campaign, lambda: stop_for(campaign, campaign.nodes.writer(), campaign.rng.uniform(1, 15)))


@scenario()
def pause_other_node(campaign):
    rounds(campaign, lambda: stop_for(campaign, campaign.nodes.others()[0], campaign.rng.uniform(1, 15)))


@scenario()
def pause_every_process_in_turn(campaign):
    for machine in [*campaign.servers, *campaign.nodes]:
        stop_for(campaign, machine, campaign.rng.uniform(1, 8))
        campaign.wait(1)


# Partitions


def cut_for(campaign, ones, others, seconds):
    campaign.network.cut(ones, others)
    campaign.wait(seconds)
    campaign.network.heal()


def names(machines):
    return [machine.name for machine in machines]


@scenario(short=True, late=True)
def cut_leader_from_peers(campaign):
    """Nodes still reach it."""

    def fault():
        leader = campaign.servers.leader()
        cut_for(campaign, [leader.name], names(campaign.servers.followers()), campaign.rng.uniform(5, 25))

    rounds(campaign, fault)


@scenario(late=True)
def cut_writer_from_nats(campaign):
    """Others still reach NATS, and so nobody but NATS itself."""
    rounds(
        campaign,
        lambda: cut_for(campaign, [campaign.nodes.writer().name], list(SERVERS), campaign.rng.uniform(3, 20)),
    )


@scenario(late=True)
def cut_other_node_from_nats(campaign):
    rounds(
        campaign,
        lambda: cut_for(campaign, [campaign.nodes.others()[0].name], list(SERVERS), campaign.rng.uniform(3, 20)),
    )


@scenario(late=True)
def cut_server_from_nodes(campaign):
    """Its peers still reach it, so it stays what it is."""
    rounds(
        campaign,
        lambda: cut_for(campaign, [campaign.servers.leader().name], list(NODES), campaign.rng.uniform(3, 20)),
    )


@scenario(late=True)
def cut_everybody_from_everybody(campaign):
    machines = [*SERVERS, *NODES]
    rounds(campaign, lambda: cut_for(campaign, machines, machines, campaign.rng.uniform(3, 15)))


@scenario(late=True)
def block_leader_to_peers(campaign):
    """One way: it hears them, and they do not hear it; then the other way round."""

    def fault():
        leader, followers = campaign.servers.leader(), campaign.servers.followers()
        for follower in followers:
            campaign.network.block(leader.name, follower.name)
        campaign.wait(campaign.rng.uniform(5, 15))
        campaign.network.heal()
        all_ready(campaign)
        leader, followers = campaign.servers.leader(), campaign.servers.followers()
        for follower in followers:
            campaign.network.block(follower.name, leader.name)
        campaign.wait(campaign.rng.uniform(5, 15))
        campaign.network.heal()

    rounds(campaign, fault)


@scenario(late=True)
def block_writer_to_nats(campaign):
    """One way, then the other: it publishes and hears no answer."""

    def fault():
        for turned in (False, True):
            writer = campaign.nodes.writer().name
            for server in SERVERS:
                campaign.network.block(*((server, writer) if turned else (writer, server)))
            campaign.wait(campaign.rng.uniform(3, 12))
            campaign.network.heal()
            all_ready(campaign)

    rounds(campaign, fault)


@scenario(late=True)
def flapping(campaign):
    """A cut of 3 s each 3 s, each time somewhere else."""
    machines = [*SERVERS, *NODES]
    for _ in range(5 * campaign.arguments.rounds):
        one, other = campaign.rng.sample(machines, 2)
        cut_for(campaign, [one], [other, campaign.servers.leader().name], 3)
        campaign.wait(3)


@scenario()
def slow_link_to_a_follower(campaign):
    campaign.note(campaign.network.make_slow(campaign.servers.followers()[0].name))
    campaign.wait(15 * campaign.arguments.rounds)
    campaign.network.heal()


@scenario()
def slow_link_of_the_writer(campaign):
    campaign.note(campaign.network.make_slow(campaign.nodes.writer().name))
    campaign.wait(15 * campaign.arguments.rounds)
    campaign.network.heal()


# Disks


@scenario(disks=("servers",))
def full_disk_of_a_follower(campaign):
    follower = campaign.servers.followers()[0]
    follower.disk.fill()
    campaign.wait(20)
    follower.disk.empty()
    mend(campaign, follower)


@scenario(disks=("servers",))
def full_disk_of_the_stream_leader(campaign):
    leader = campaign.servers.leader()
    leader.disk.fill()
    campaign.wait(20)
    leader.disk.empty()
    mend(campaign, leader)


@scenario(disks=("nodes",))
def full_disk_of_the_writer(campaign):
    writer = campaign.nodes.writer()
    writer.disk.fill()
    campaign.wait(15)
    writer.disk.empty()
    all_ready(campaign)


@scenario(disks=("servers",))
def failing_disk_of_the_stream_leader(campaign):
    """Every read and write is an error from now on, until the machine is mended."""
    leader = campaign.servers.leader()
    leader.disk.cut_power()
    campaign.wait(15)
    power_up(campaign, [leader])


@scenario(disks=("nodes",))
def failing_disk_of_the_writer(campaign):
    writer = campaign.nodes.writer()
    writer.disk.cut_power()
    campaign.wait(10)
    power_up(campaign, [writer])


def mend(campaign, server):
    """JetStream does not go on by itself after an error of its disk: it is started again, as an operator would."""
    kill_for(campaign, [server], 0.5, TERM)
    all_ready(campaign)


def power_up(campaign, machines):
    """The machines come back with what their disks had."""
    for machine in machines:
        machine.kill()
        machine.disk.unmount()
        machine.disk.mount()
    campaign.servers.start()
    campaign.nodes.start()
    all_ready(campaign)


@scenario(disks=("servers",))
def power_cut_of_all_servers(campaign):
    rounds(campaign, lambda: cut_power(campaign, list(campaign.servers)))


@scenario(short=True, disks=("servers", "nodes"))
def power_cut_of_everything(campaign):
    rounds(campaign, lambda: cut_power(campaign, [*campaign.servers, *campaign.nodes]))


def cut_power(campaign, machines):
    # Processes stop first, so that all machines lose power at one moment of what was acknowledged.
    for machine in machines:
        machine.send(STOP)
    for machine in machines:
        machine.disk.cut_power()
    campaign.wait(campaign.rng.uniform(0, 2))
    power_up(campaign, machines)


@scenario(short=True, sync=False, disks=("servers", "nodes"), lost=True)
def power_cut_without_sync(campaign):
    """NATS's default. It loses what was acknowledged; if this script does not see it, it would not see anything."""
    campaign.wait(3)
    cut_power(campaign, [*campaign.servers, *campaign.nodes])


@scenario(sync=False, disks=("servers",), told=True)
def power_cut_of_servers_without_sync(campaign):
    """The nodes have what the stream has lost: they tell."""
    campaign.wait(3)
    for server in campaign.servers:
        server.send(STOP)
    for server in campaign.servers:
        server.disk.cut_power()
    for server in campaign.servers:
        server.kill()
        server.disk.unmount()
        server.disk.mount()
    campaign.servers.start()
    until_told(campaign)


# Clocks, elections, streams that are not what they were


@scenario(clock=True)
def clocks_that_differ(campaign):
    """One node is ten minutes ahead, one behind; each writes in turn."""
    for _ in range(3 * campaign.arguments.rounds):
        kill_for(campaign, [campaign.nodes.writer()], campaign.rng.uniform(2, 4))
        all_ready(campaign)


@scenario(short=True)
def step_down_each_second(campaign):
    for _ in range(15 * campaign.arguments.rounds):
        campaign.servers.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", seconds=2)
        campaign.wait(1)


@scenario(short=True, told=True)
def stream_deleted(campaign):
    answer = campaign.servers.request(f"$JS.API.STREAM.DELETE.{STREAM}")
    if not answer.get("success"):
        raise Failed(f"the stream cannot be deleted: {answer}")
    until_told(campaign)


@scenario(told=True)
def stream_restored_from_an_older_copy(campaign):
    """All three servers come back with the data of some seconds ago."""
    for server in campaign.servers:
        server.kill(TERM)
        shutil.copytree(server.data, server.directory / "copy")
    campaign.servers.start()
    all_ready(campaign)
    begun = len(campaign.callers.acknowledged_at)
    until("more callbacks", lambda: len(campaign.callers.acknowledged_at) > begun + 300)
    for server in campaign.servers:
        server.kill(TERM)
        shutil.rmtree(server.data)
        shutil.move(server.directory / "copy", server.data)
    campaign.servers.start()
    until_told(campaign)


@scenario(told=True)
def stream_restored_while_the_nodes_are_away(campaign):
    """They find it shorter than what they have when they start."""
    for machine in [*campaign.nodes, *campaign.servers]:
        machine.kill(TERM)
    for server in campaign.servers:
        shutil.copytree(server.data, server.directory / "copy")
    campaign.servers.start()
    campaign.nodes.start()
    begun = len(campaign.callers.acknowledged_at)
    until("more callbacks", lambda: len(campaign.callers.acknowledged_at) > begun + 300)
    for machine in [*campaign.nodes, *campaign.servers]:
        machine.kill(TERM)
    for server in campaign.servers:
        shutil.rmtree(server.data)
        shutil.move(server.directory / "copy", server.data)
    campaign.servers.start()
    for node in campaign.nodes:
        node.spawn()
    until_told(campaign)


def until_told(campaign):
    """Every node says that the stream is not the one that it has read: not ready, by its metric and by its probe; or it has
    refused to start with what it has."""
    deadline = time.monotonic() + TOLD_SECONDS
    for node in campaign.nodes:
        while not told_by(node):
            if time.monotonic() > deadline:
                told = f"hole {node.metric('hole')}, /readyz {node.ready()}"
                raise Failed(f"node {node.name} does not tell within {TOLD_SECONDS} s: {told}\n{node.tail()}")
            time.sleep(0.1)
    campaign.note("told: " + " | ".join(told_by(node) for node in campaign.nodes))
    campaign.callers.stop()


def told_by(node):
    if not node.alive():
        line = node.tail().strip().splitlines()[-1]
        return line if "stream" in line else None
    return node.ready()[1].strip() if node.metric("hole") and node.ready()[0] == 503 else None


@scenario()
def stream_that_somebody_else_writes(campaign):
    """A publisher that knows nothing of blobcast, whom NATS's rights did not keep out: its messages are no frames."""
    for number in range(20 * campaign.arguments.rounds):
        campaign.servers.request(SUBJECT, f"no frame {number}".encode())
        campaign.wait(campaign.rng.uniform(0, 0.5))
    skipped = sum(node.metric('frames_total{result="foreign"}') or 0 for node in campaign.nodes)
    campaign.note(f"{skipped:.0f} foreign messages skipped")


@scenario()
def flipped_bits_of_a_follower(campaign):
    """In the stream's files of one server, which leads afterwards, and which a node reads that joins empty."""
    for server in campaign.servers.followers()[:1]:
        server.kill(TERM)
        flipped = flip_bits(campaign.rng, server.data, 5)
        server.start()
        all_ready(campaign)
        for other in campaign.servers:
            if other is not server:
                kill_for(campaign, [other], 10)
                until("healthy NATS servers", lambda: all(one.is_healthy() for one in campaign.servers))
        node = campaign.nodes.others()[0]
        node.kill()
        shutil.rmtree(node.data)
        node.spawn()
        campaign.wait(10)
        campaign.told = any(one.metric("hole") for one in campaign.nodes)
        campaign.note(f"{flipped} bits flipped, {'told' if campaign.told else 'no harm'}")


def flip_bits(rng, data, count):
    """How many were flipped in the files of the stream's messages."""
    paths = [path for path in data.rglob("*.blk") if f"/{STREAM}/" in str(path) and path.stat().st_size]
    for _ in range(count if paths else 0):
        path = rng.choice(paths)
        with path.open("r+b") as file:
            at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
    return count if paths else 0


# Nodes that come and go


@scenario(short=True)
def node_joins_empty(campaign):
    def fault():
        node = campaign.nodes.others()[0]
        node.kill(campaign.rng.choice([KILL, TERM]))
        shutil.rmtree(node.data)
        campaign.wait(campaign.rng.uniform(0, 5))
        node.spawn()

    rounds(campaign, fault)


@scenario()
def writer_joins_empty(campaign):
    def fault():
        node = campaign.nodes.writer()
        node.kill()
        shutil.rmtree(node.data)
        node.spawn()

    rounds(campaign, fault)


@scenario(settings=SMALL_LOG, trims=True)
def away_for_longer_than_the_log(campaign):
    """A node comes back when the stream has forgotten everything that it has; then one joins empty."""
    first = lambda: campaign.servers.stream().get("state", {}).get("first_seq", 0)

    def fault():
        node, begun = campaign.nodes.others()[0], campaign.servers.stream()["state"]["last_seq"]
        node.kill()
        until("the stream to forget what the node has", lambda: first() > begun, FORGET_SECONDS)
        node.spawn()
        all_ready(campaign)
        node.kill()
        shutil.rmtree(node.data)
        node.spawn()

    rounds(campaign, fault)
    campaign.note(f"the stream begins at {first()}")


@scenario(settings=SMALL_LOG, trims=True)
def kill_writer_while_the_log_forgets(campaign):
    for _ in range(4 * campaign.arguments.rounds):
        kill_for(campaign, [campaign.nodes.writer()], campaign.rng.uniform(0, 2))
        all_ready(campaign)


@scenario()
def rolling_restart_of_nodes(campaign):
    for node in list(campaign.nodes) * campaign.arguments.rounds:
        node.stop()
        node.spawn()
        all_ready(campaign)


@scenario()
def rolling_restart_of_servers(campaign):
    for server in list(campaign.servers) * campaign.arguments.rounds:
        kill_for(campaign, [server], 1, TERM)
        all_ready(campaign)
