"""Elections, clocks, and streams that are not what they were."""

from lib import Failed
from machines import STREAM, SUBJECT, until

from scenarios.scenario import (
    KILL,
    TERM,
    all_healthy,
    all_ready,
    kill_for,
    more_callbacks,
    scenario,
    told_by,
    until_told,
)

JOINS = 20  # NATS puts each consumer at a server of its choice


@scenario(clock=True)
def clocks_that_differ(campaign):
    """One node is ten minutes ahead, one behind; each writes in turn."""
    for _ in range(3 * campaign.arguments.rounds):
        kill_for(campaign, [campaign.nodes.writer()], campaign.rng.uniform(2, 4))
        all_ready(campaign)


@scenario(short=True)
def step_down_each_second(campaign):
    """The stream has another leader each second."""
    count = 0
    for _ in range(15 * campaign.arguments.rounds):
        count += campaign.servers.step_down()
        campaign.wait(1)
    campaign.note(f"{count} step-downs")


@scenario(short=True, told=True)
def stream_deleted(campaign):
    answer = campaign.servers.request(f"$JS.API.STREAM.DELETE.{STREAM}")
    if not answer.get("success"):
        raise Failed(f"the stream cannot be deleted: {answer}")
    until_told(campaign)


@scenario(short=True, told=True)
def stream_restored_from_an_older_copy(campaign):
    """All three servers come back with the data of some seconds ago."""
    for server in campaign.servers:
        server.kill(TERM)
        server.copy()
    campaign.servers.start()
    all_ready(campaign)
    more_callbacks(campaign, 300)
    for server in campaign.servers:
        server.kill(TERM)
        server.restore()
    campaign.servers.start()
    until_told(campaign)


@scenario(told=True)
def stream_restored_while_the_nodes_are_away(campaign):
    """They find it shorter than what they have when they start."""
    stop_all(campaign)
    for server in campaign.servers:
        server.copy()
    campaign.servers.start()
    campaign.nodes.start()
    more_callbacks(campaign, 300)
    stop_all(campaign)
    for server in campaign.servers:
        server.restore()
    campaign.servers.start()
    for node in campaign.nodes:
        node.spawn()
    until_told(campaign)


@scenario(told=True)
def stream_restored_while_one_node_was_away(campaign):
    """It has no more than the copy, or nothing, and must not go on with it: the places that it would give out are taken."""
    away = campaign.nodes.others()[0]
    away.kill(TERM)
    for server in campaign.servers:
        server.kill(TERM)
        server.copy()
    campaign.servers.start()
    more_callbacks(campaign, 300)
    for server in campaign.servers:
        server.kill(TERM)
        server.restore()
    is_empty = campaign.rng.random() < 0.5
    if is_empty:
        away.empty()
    campaign.servers.start()
    away.spawn()
    until_told(campaign)
    campaign.note("it was empty" if is_empty else "it had the copy")


def stop_all(campaign):
    for machine in [*campaign.nodes, *campaign.servers]:
        machine.kill(TERM)


@scenario()
def stream_that_somebody_else_writes(campaign):
    """A publisher that knows nothing of blobcast, whom NATS's rights did not keep out: its messages are no frames."""
    stored = 0
    for number in range(20 * campaign.arguments.rounds):
        answer = campaign.servers.request(SUBJECT, f"no frame {number}".encode())
        stored += "seq" in answer
        campaign.wait(campaign.rng.uniform(0, 0.5))
    skipped = lambda: [node.metric('frames_total{what="foreign"}') or 0 for node in campaign.nodes]
    until("nodes that skip them", lambda: min(skipped()) >= stored > 0)
    campaign.note(f"{stored} foreign messages skipped by each node")


@scenario(short=True)
def flipped_bit_of_a_follower(campaign):
    flip(campaign, 1, TERM)


@scenario()
def flipped_bits_of_a_follower(campaign):
    flip(campaign, 5, TERM)


@scenario()
def flipped_bits_of_a_killed_follower(campaign):
    """After a kill -9 it reads all its messages when it starts."""
    flip(campaign, 5, KILL)


@scenario()
def flipped_bits_when_all_servers_start(campaign):
    """After a kill -9 of all of them, when what they have agreed on before is not in Raft's log any more."""
    more_callbacks(campaign, 300)
    for server in campaign.servers:
        server.kill(TERM)
    campaign.servers.start()
    all_ready(campaign)
    # A node may still be ready while the stream elects: two elections would be one silence.
    more_callbacks(campaign, 20)
    for server in campaign.servers:
        server.kill()
    damaged = campaign.rng.choice(list(campaign.servers))
    flip_bits(campaign.rng, damaged.data, 5)
    damaged.start()
    campaign.wait(campaign.rng.uniform(0, 2))
    campaign.servers.start()
    look_at_damage(campaign, damaged, f"5 flipped at {damaged.name}")


def flip(campaign, count, how):
    """In the stream's messages on the disk of one server, which leads afterwards, and which a node reads that joins empty."""
    more_callbacks(campaign, 300)
    server = campaign.servers.followers()[0]
    server.kill(how)
    flip_bits(campaign.rng, server.data, count)
    server.start()
    all_healthy(campaign)
    campaign.servers.make_leader(server)
    look_at_damage(campaign, server, f"{count} flipped")


def look_at_damage(campaign, server, what):
    """A node joins empty until it has read from this server. All go on, or tell."""
    led = campaign.servers.leader() is server
    told = lambda: [told_by(node) for node in campaign.nodes if told_by(node)]
    begun = len(campaign.callers.acknowledged_at)
    until("more callbacks, or a node that tells", lambda: len(campaign.callers.acknowledged_at) > begun + 100 or told())
    before = campaign.servers.consumers().keys()
    is_read = False
    for _ in range(JOINS):
        if is_read or told():
            break
        # It connects to this server first.
        node = list(campaign.nodes)[list(campaign.servers).index(server)]
        node.kill()
        node.empty()
        node.spawn()
        until(f"node {node.name} to be ready, or to tell", lambda: node.is_ready() or told_by(node))
        # It may have gone on at another one since.
        consumers = campaign.servers.consumers()
        is_read = any(consumers[name] == (f"node {node.name}", server.name) for name in consumers.keys() - before)
    campaign.told = bool(told())
    said = f"{what}, {'led by it' if led else 'never led by it'}, {'read' if is_read else 'not read'}"
    campaign.note(f"{said}: {(told() or ['no harm'])[0]}")


def flip_bits(rng, data, count):
    """In the files of the stream's messages."""
    paths = [path for path in data.rglob("*.blk") if f"/{STREAM}/" in str(path) and path.stat().st_size]
    if not paths:
        raise Failed(f"no messages in {data}")
    for _ in range(count):
        path = rng.choice(paths)
        with path.open("r+b") as file:
            at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
