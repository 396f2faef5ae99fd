"""Nodes that join, or were away for long, and restarts of all machines in turn."""

import time

from lib import Failed, quarantine
from load import connection_to
from machines import until

from scenarios.scenario import KILL, TERM, all_ready, kill_for, rounds, scenario

FORGET_SECONDS = 240
LARGE_MIB = 256
JOIN_SECONDS = 300
PURGES = 5
BODY_BYTES = 500_000  # and twice as many digits
LARGE_LOG = {"ingest.body_bytes_max": "1MiB"}
SMALL_LOG = {"log.retention_bytes_max": "2MiB", "ingest.body_bytes_max": "480KiB"}


@scenario(short=True)
def node_joins_empty(campaign):
    def fault():
        node = campaign.nodes.others()[0]
        node.kill(campaign.rng.choice([KILL, TERM]))
        node.empty()
        campaign.wait(campaign.rng.uniform(0, 5))
        node.spawn()

    rounds(campaign, fault)


@scenario()
def writer_joins_empty(campaign):
    def fault():
        node = campaign.nodes.writer()
        node.kill()
        node.empty()
        node.spawn()

    rounds(campaign, fault)


@scenario(settings=SMALL_LOG, trims=True)
def away_for_longer_than_the_log(campaign):
    """A node comes back when the stream has forgotten everything that it has; then one joins empty."""
    at = lambda which: campaign.servers.stream().get("state", {}).get(which, 0)

    def fault():
        node, begun = campaign.nodes.others()[0], until("the stream's end", lambda: at("last_seq"))
        node.kill()
        until("the stream to forget what the node has", lambda: at("first_seq") > begun, FORGET_SECONDS)
        node.spawn()
        all_ready(campaign)
        node.kill()
        node.empty()
        node.spawn()

    rounds(campaign, fault)
    campaign.note(f"the stream begins with message {at('first_seq')}")


@scenario(settings=SMALL_LOG, trims=True)
def quarantine_outlives_purges(campaign):
    """What is in quarantine is written into the stream again before its frame is purged, and so a node that joins empty has it."""
    first = lambda: campaign.servers.stream().get("state", {}).get("first_seq", 0)
    begun = until("callbacks in quarantine", lambda: {entry["target"] for entry in quarantine(campaign.nodes["a"])})
    for _ in range(PURGES * campaign.arguments.rounds):
        before = first()
        until("a purge", lambda: first() > before, FORGET_SECONDS)
    node = campaign.nodes.others()[0]
    node.kill()
    node.empty()
    node.spawn()
    all_ready(campaign)
    if lost := begun - {entry["target"] for entry in quarantine(node)}:
        raise Failed(f"a node that joined after {PURGES} purges lacks of the quarantine: {sorted(lost)[:20]}")
    campaign.note(f"{len(begun)} in quarantine over {PURGES} purges, the stream begins with message {first()}")


@scenario(settings=LARGE_LOG)
def large_log_is_read_anew(campaign):
    """By a node that joins empty, while callbacks are taken."""
    writer = campaign.nodes.writer()
    connection = connection_to(writer)
    for _ in range(LARGE_MIB):
        # What does not repeat, so that it is as large in the stream.
        filler = campaign.rng.randbytes(BODY_BYTES).hex()
        with campaign.ledger.lock:
            callback = campaign.ledger.new(0, filler=filler)
        until(
            "a large callback to be taken", lambda: campaign.callers.post({writer.name: connection}, writer, callback)
        )
    held = campaign.servers.stream()["state"]["bytes"] >> 20
    node = campaign.nodes.others()[0]
    node.kill()
    node.empty()
    begun = time.monotonic()
    node.spawn()
    campaign.nodes.wait_until_ready(JOIN_SECONDS)
    campaign.note(f"a stream of {held} MiB was read in {time.monotonic() - begun:.1f} s")


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
