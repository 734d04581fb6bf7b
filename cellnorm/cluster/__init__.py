"""Past one machine: parts of the rows worked on by the workers of a dask cluster, to the same bits.

What is done to a part depends on the part alone and answers come in the order of the parts, so that neither the number
of workers nor which of them dies has a say in the result. Workers and scheduler talk by dask's own protocol, which
executes what it is sent: the cluster must be trusted. Only this package knows dask, which need not be installed.
"""

from cellnorm.cluster._connect import opened
from cellnorm.cluster._map import in_order, on_cluster, workers

__all__ = ["in_order", "on_cluster", "opened", "workers"]
