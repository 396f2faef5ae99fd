"""Disks that are full or fail, and power cuts."""

from scenarios.scenario import STOP, TERM, all_ready, kill_for, more_callbacks, rounds, scenario, until_told


@scenario(disks=("servers",))
def full_disk_of_a_follower(campaign):
    follower = campaign.servers.followers()[0]
    follower.disk.fill()
    campaign.wait(20)
    follower.disk.empty()
    mend(campaign, follower)


@scenario(disks=("servers",), late=True)
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


@scenario(disks=("nodes",))
def full_disk_of_another_node(campaign):
    """It hands its callbacks to the writer, and cannot keep what it reads of the stream."""
    node = campaign.nodes.others()[0]
    node.disk.fill()
    campaign.wait(15)
    node.disk.empty()
    all_ready(campaign)


@scenario(disks=("servers",), late=True)
def failing_disk_of_the_stream_leader(campaign):
    """Every read and write is an error from now on, until the machine is mended."""
    leader = campaign.servers.leader()
    leader.disk.cut_power()
    campaign.wait(15)
    power_up(campaign, [leader])


@scenario(disks=("servers",))
def failing_disk_of_a_follower(campaign):
    follower = campaign.servers.followers()[0]
    follower.disk.cut_power()
    campaign.wait(15)
    power_up(campaign, [follower])


@scenario(disks=("nodes",))
def failing_disk_of_another_node(campaign):
    node = campaign.nodes.others()[0]
    node.disk.cut_power()
    campaign.wait(10)
    power_up(campaign, [node])


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
    plug_in(machines)
    campaign.servers.start()
    campaign.nodes.start()
    all_ready(campaign)


def plug_in(machines):
    """Their disks are there again, and nothing is started yet."""
    for machine in machines:
        machine.kill()
        machine.disk.unmount()
        machine.disk.mount()


def lose_power(machines):
    # Processes stop first, so that all machines lose power at one moment of what was acknowledged.
    for machine in machines:
        machine.send(STOP)
    for machine in machines:
        machine.disk.cut_power()


def cut_power(campaign, machines):
    lose_power(machines)
    campaign.wait(campaign.rng.uniform(0, 2))
    power_up(campaign, machines)


@scenario(disks=("servers",))
def power_cut_of_all_servers(campaign):
    rounds(campaign, lambda: cut_power(campaign, list(campaign.servers)))


@scenario(short=True, disks=("servers", "nodes"))
def power_cut_of_everything(campaign):
    rounds(campaign, lambda: cut_power(campaign, [*campaign.servers, *campaign.nodes]))


@scenario(disks=("servers",))
def power_cut_with_nothing_left_of_the_nodes(campaign):
    """What NATS has synced is all there is, and that is everything."""
    rounds(campaign, lambda: cut_power_and_empty_nodes(campaign))


@scenario(short=True, sync=False, disks=("servers",), lost=True)
def power_cut_without_sync(campaign):
    """The same with NATS's default, a sync each two minutes: what was acknowledged since the last one is missing. If this script
    did not see that, it would not see anything."""
    sync(campaign.servers)
    more_callbacks(campaign, 100)
    # What is acknowledged behind the cut must not hide what was lost by it.
    campaign.callers.stop()
    cut_power_and_empty_nodes(campaign)


def cut_power_and_empty_nodes(campaign):
    for node in campaign.nodes:
        node.send(STOP)
    lose_power(campaign.servers)
    for node in campaign.nodes:
        node.kill()
        node.empty()
    power_up(campaign, campaign.servers)


@scenario(sync=False, disks=("servers",), told=True)
def power_cut_of_servers_without_sync(campaign):
    """The stream has lost its end, and the nodes have it: they tell."""
    sync(campaign.servers)
    more_callbacks(campaign, 300)
    lose_power(campaign.servers)
    plug_in(campaign.servers)
    campaign.servers.start()
    until_told(campaign)


def sync(servers):
    """As NATS does each two minutes by default."""
    for server in servers:
        server.disk.sync()
