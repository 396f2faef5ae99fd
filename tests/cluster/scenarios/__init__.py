"""What is done to the cluster, by kind, each as a function of the campaign that runs. The load goes on all the while; in the end
all is brought back to order, unless the scenario says that the cluster has to tell of a loss."""

from scenarios import clocks, disks, members, network, processes, streams, upgrades
from scenarios.scenario import ALL, lacks

__all__ = ["ALL", "clocks", "disks", "lacks", "members", "network", "processes", "streams", "upgrades"]
