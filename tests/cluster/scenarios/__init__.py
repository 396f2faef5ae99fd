"""What is done to the cluster, by kind, each as a function of the campaign that runs. The load goes on all the while; in the end
all is brought back to order, unless the scenario says that the cluster has to tell of a loss."""

from scenarios import disks, members, network, processes, streams
from scenarios.scenario import ALL

__all__ = ["ALL", "disks", "members", "network", "processes", "streams"]
