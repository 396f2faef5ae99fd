"""Other versions of NATS and of the broker, one process after the other, and servers that are replaced."""

import itertools

from lib import Failed
from machines import CLIENTS, MONITOR, SPARE, address_of, until

from scenarios.scenario import all_healthy, all_ready, rounds, scenario

JOIN_SECONDS = 180  # of an empty server with the whole stream to read


@scenario(older="nats")
def rolling_upgrade_of_servers(campaign):
    """As NATS has it: a lame duck, one server at a time, the meta leader last, and each healthy before the next."""
    upgrade_servers(campaign, campaign.arguments.nats)


@scenario(older="nats")
def rolling_upgrade_of_servers_and_back(campaign):
    """NATS supports no way back over a minor version. An operator may need it all the same."""
    upgrade_servers(campaign, campaign.arguments.nats)
    upgrade_servers(campaign, campaign.arguments.older_nats)


def upgrade_servers(campaign, binary):
    before = campaign.servers.leader().version()
    last = campaign.servers.meta_leader()
    for server in [*(one for one in campaign.servers if one is not last), last]:
        server.end_as_lame_duck()
        server.binary = binary
        server.start()
        all_ready(campaign)
    versions = {server.version() for server in campaign.servers}
    if len(versions) != 1 or before in versions:
        raise Failed(f"servers of {before} were upgraded to {versions}")
    campaign.note(f"NATS {before} to {versions.pop()}")


@scenario(older="broker")
def rolling_upgrade_of_nodes(campaign):
    """In every order, and back in every order."""
    orders = list(itertools.permutations(campaign.nodes))
    back = campaign.rng.sample(orders, len(orders))
    for order, order_back in zip(orders, back, strict=True):
        replace_nodes(campaign, order, campaign.arguments.broker)
        replace_nodes(campaign, order_back, campaign.arguments.older)
    replace_nodes(campaign, orders[0], campaign.arguments.broker)
    campaign.note(f"{len(orders)} orders and back")


def replace_nodes(campaign, order, binary):
    for node in order:
        node.stop()
        node.binary = binary
        node.spawn()
        all_ready(campaign)


@scenario()
def server_replaced_under_a_new_name(campaign):
    """Its disk is lost. On the same machine an empty server joins under a new name, and the old one is removed when all others are
    current."""
    names = (f"nats-{number}" for number in itertools.count(5))

    def fault():
        old = campaign.rng.choice(list(campaign.servers))
        old.kill()
        campaign.wait(campaign.rng.uniform(0, 5))
        replace(campaign, old, next(names), old.machine)

    rounds(campaign, fault)


@scenario()
def server_moved_to_another_machine(campaign):
    """A fourth server joins while all three run; the old one ends, and is removed when all others are current. Then nodes are
    started again with the new address."""
    old = campaign.rng.choice(list(campaign.servers))
    new = campaign.servers.add(SPARE, SPARE)
    until_current("members", campaign.servers.members, lambda: {server.name for server in campaign.servers})
    old.end_as_lame_duck()
    remove(campaign, old)
    for node in campaign.nodes:
        node.stop()
        for key, port in (("cluster.servers", CLIENTS), ("cluster.monitoring_urls", MONITOR)):
            addresses = (f"{address_of(machine)}:{port}" for machine in (old.machine, new.machine))
            node.settings[key] = node.settings[key].replace(*addresses)
        node.spawn()
        all_ready(campaign)


def replace(campaign, old, name, machine):
    """`old` does not run any more."""
    campaign.servers.add(name, machine)
    remove(campaign, old)


def remove(campaign, old):
    """When all others are current; returns when they have the whole stream."""
    servers, rest = campaign.servers, {server.name for server in campaign.servers if server is not old}
    until_current("members", servers.members, lambda: rest)
    until_current("replicas", servers.replicas, lambda: servers.replicas().keys() - {old.name})
    servers.remove(old)
    until_current("replicas", servers.replicas, lambda: rest)
    all_healthy(campaign)
    campaign.note(f"{old.name} removed, the stream at {' '.join(sorted(rest))}")


def until_current(what, ask, wanted):
    all_are = lambda: (names := wanted()) and (current := ask()) and all(current.get(name) for name in names)
    try:
        until(f"{what} to be current", all_are, JOIN_SECONDS)
    except Failed as failed:
        raise Failed(f"{failed}: {ask()} of {wanted()}") from None
