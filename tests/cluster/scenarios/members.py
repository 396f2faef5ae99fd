"""Nodes that join, or were away for long, and restarts of all machines in turn."""

from machines import until

from scenarios.scenario import KILL, TERM, all_ready, kill_for, rounds, scenario

FORGET_SECONDS = 240
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
