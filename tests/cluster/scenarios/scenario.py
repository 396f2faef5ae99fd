"""What a scenario is, and what several kinds of them do."""

import dataclasses
import glob
import signal
import typing

from lib import Failed
from machines import until

KILL, STOP, GO, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM
CLOCK = {"a": "+10m", "b": "-10m"}
FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"


@dataclasses.dataclass
class Scenario:
    what: typing.Callable
    is_short: bool  # also in the short run
    sync: bool  # every write of NATS is synced before it is acknowledged
    disks: tuple  # "servers" and "nodes" that have a small file system of their own
    settings: dict  # of every node
    is_told: bool  # the stream has lost something: nodes have to tell, and none may serve anything wrong
    is_lost: bool  # something acknowledged is lost, and this script has to notice
    may_read_late: bool  # a leader that is cut off, or has no disk, may not know the newest events
    clock: bool  # the nodes' clocks differ by minutes
    trims: bool  # retention forgets events while it runs, so bodies are large
    older: str | None  # what it begins with an older build of: "broker" or "nats"

    @property
    def name(self):
        return self.what.__name__.replace("_", "-")

    def environment(self, node):
        if not self.clock or node not in CLOCK:
            return {}
        libraries = glob.glob(FAKETIME)
        if not libraries:
            raise Failed("libfaketime is missing (Debian: faketime)")
        return {"LD_PRELOAD": libraries[0], "FAKETIME": CLOCK[node], "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


ALL = {}


def lacks(one, arguments):
    """What the caller has to give for this scenario, and has not."""
    if one.older == "broker" and not arguments.older:
        return "--older PATH, a build of the broker from an older commit"
    if one.older == "nats" and not arguments.older_nats:
        return "--older-nats PATH, an older nats-server: `deploy/cluster/fetch-nats DIRECTORY 2.14.6` prints a path"
    return None


def scenario(
    short=False,
    sync=True,
    disks=(),
    settings=None,
    told=False,
    lost=False,
    late=False,
    clock=False,
    trims=False,
    older=None,
):
    def add(what):
        made = Scenario(what, short, sync, disks, settings or {}, told, lost, late, clock, trims, older)
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


def all_healthy(campaign):
    until("healthy NATS servers", lambda: all(server.is_healthy() for server in campaign.servers))


def all_ready(campaign):
    """Before the next fault, or after the last."""
    all_healthy(campaign)
    campaign.nodes.wait_until_ready()
    campaign.wait(2)


def rounds(campaign, fault):
    """Once in a short run; several times in a long one, where the cluster has aged by the faults before."""
    for _ in range(campaign.arguments.rounds):
        fault()
        all_ready(campaign)


def more_callbacks(campaign, count):
    """Waits until so many more are acknowledged."""
    wanted = len(campaign.callers.acknowledged_at) + count
    until("more callbacks", lambda: len(campaign.callers.acknowledged_at) >= wanted)


def until_told(campaign):
    """Every node says that the stream is not the one that it has read: not ready, by its metric and by its probe."""
    for node in campaign.nodes:
        try:
            until(f"node {node.name} to tell", lambda: told_by(node))
        except Failed as failure:
            raise Failed(f"{failure}: {node.ready()}\n{node.tail()}") from None
    campaign.note("told: " + " | ".join(sorted({told_by(node) for node in campaign.nodes})))


def told_by(node):
    """What a node says that follows the stream no more."""
    status, text = node.ready()
    return text.strip() if status == 503 and node.metric("hole") else None
