"""Networks that are cut, in one direction or both, or slow."""

from machines import NODES, SERVERS

from scenarios.scenario import all_ready, rounds, scenario


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
