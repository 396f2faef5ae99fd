"""Processes that are killed, or stand still and go on."""

import time
from subprocess import PIPE

from lib import Failed
from machines import CALLERS, SERVERS

from scenarios.scenario import GO, STOP, all_ready, kill_for, rounds, scenario

ELECTION_SECONDS = 20  # until the server that is left knows that there is no leader, and some more


@scenario(short=True)
def kill_stream_leader(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.servers.leader()], campaign.rng.uniform(2, 12)))


@scenario()
def kill_meta_leader(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.servers.meta_leader()], campaign.rng.uniform(2, 12)))


@scenario(short=True)
def kill_both_followers(campaign):
    rounds(campaign, lambda: kill_for(campaign, campaign.servers.followers(), campaign.rng.uniform(2, 10)))


@scenario()
def read_without_a_majority(campaign):
    """The server that is left leads nothing, and may lack what was acknowledged last. Any server answers for a stream without a
    leader, so by its word no node may say that there is no such task."""
    servers = [campaign.servers.leader(), campaign.rng.choice(campaign.servers.followers())]
    for server in servers:
        server.kill()
    count, deadline = 0, time.monotonic() + ELECTION_SECONDS
    while time.monotonic() < deadline:
        asked = {node: node.client("get", "task-of-nobody", stdout=PIPE, stderr=PIPE) for node in campaign.nodes}
        for node, process in asked.items():
            complaint = process.communicate()[1]
            count += 1
            if "NOT_FOUND" in complaint:
                raise Failed(f"node {node.name} answers for a stream without a leader: {complaint.strip()}")
    for server in servers:
        server.start()
    all_ready(campaign)
    campaign.note(f"{count} reads of a task that is not there")


@scenario()
def kill_all_servers(campaign):
    rounds(campaign, lambda: kill_for(campaign, list(campaign.servers), campaign.rng.uniform(0, 5)))


@scenario(short=True)
def kill_writer(campaign):
    rounds(campaign, lambda: kill_for(campaign, [campaign.nodes.writer()], campaign.rng.uniform(0, 5)))


def deafen(campaign, node):
    """Its frames reach NATS, and it hears of none."""
    for server in SERVERS:
        campaign.network.block(server, node.name)


@scenario()
def kill_writer_between_publish_and_ack(campaign):
    def fault():
        writer = campaign.nodes.writer()
        deafen(campaign, writer)
        campaign.wait(campaign.rng.uniform(0.05, 1))
        writer.kill()
        campaign.network.heal()
        campaign.wait(campaign.rng.uniform(0, 3))
        writer.spawn()

    for _ in range(3):
        rounds(campaign, fault)


@scenario()
def kill_writer_between_ack_and_answer(campaign):
    """What its callers have posted is in the stream, and they never hear of it."""

    def fault():
        writer = campaign.nodes.writer()
        campaign.network.block(writer.name, CALLERS)
        campaign.wait(campaign.rng.uniform(0.05, 1))
        writer.kill()
        campaign.network.heal()
        campaign.wait(campaign.rng.uniform(0, 3))
        writer.spawn()

    for _ in range(3):
        rounds(campaign, fault)


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


def stop_for(campaign, machine, seconds):
    machine.send(STOP)
    try:
        campaign.wait(seconds)
    finally:
        machine.send(GO)


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
def pause_writer_while_its_frame_is_out(campaign):
    """It hears of the acknowledgement when another node writes already."""

    def fault():
        writer = campaign.nodes.writer()
        deafen(campaign, writer)
        campaign.wait(campaign.rng.uniform(0.05, 1))
        writer.send(STOP)
        campaign.network.heal()
        try:
            campaign.wait(campaign.rng.uniform(1, 15))
        finally:
            writer.send(GO)
        all_ready(campaign)

    for _ in range(2):
        rounds(campaign, fault)


@scenario()
def pause_other_node(campaign):
    rounds(campaign, lambda: stop_for(campaign, campaign.nodes.others()[0], campaign.rng.uniform(1, 15)))


@scenario()
def pause_every_process_in_turn(campaign):
    for machine in [*campaign.servers, *campaign.nodes]:
        stop_for(campaign, machine, campaign.rng.uniform(1, 8))
        campaign.wait(1)


@scenario()
def pause_any_process_for_a_minute(campaign):
    machine = campaign.rng.choice([*campaign.servers, *campaign.nodes])
    stop_for(campaign, machine, campaign.rng.uniform(30, 60))
    all_ready(campaign)
    campaign.note(f"{machine.name} stood still")
