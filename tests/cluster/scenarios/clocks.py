"""Clocks that jump while everything runs. Clocks of nodes that differ from the start are in streams.py."""

from clock import set_clock

from scenarios.scenario import all_ready, scenario

JUMP_SECONDS = 600


@scenario()
def clocks_of_servers_that_jump(campaign):
    """The stream's leader jumps ahead and a follower back; then the other way round, twenty minutes; then all are right again."""
    leader, (follower, _) = campaign.servers.leader(), campaign.servers.followers()
    jump(campaign, leader, follower)


@scenario()
def clocks_of_nodes_that_jump(campaign):
    """The writer's and another node's, likewise."""
    writer, (other, _) = campaign.nodes.writer(), campaign.nodes.others()
    jump(campaign, writer, other)


def jump(campaign, one, other):
    for seconds in (JUMP_SECONDS, -JUMP_SECONDS, 0) * campaign.arguments.rounds:
        set_clock(one.process, seconds)
        set_clock(other.process, -seconds)
        campaign.wait(campaign.rng.uniform(5, 12))
        all_ready(campaign)
    campaign.note(f"{one.name} and {other.name} by {JUMP_SECONDS} s both ways")
