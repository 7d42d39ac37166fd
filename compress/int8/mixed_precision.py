"""Mixed precision: which layers stay in float so that the network is fastest."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compress.int8.layer_profile import Edge, LayerCost


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """What was measured for one network's shape on this machine."""

    costs: Mapping[str, LayerCost]
    """Layer costs by name."""
    float_layers: tuple[str, ...] = ()
    """Proposed to stay in float; empty if that is all layers or none."""
    speedup_ci95: tuple[float, float] = (1.0, 1.0)
    """Speedup of the file with those layers in float over the all-int8 file, 95 % interval."""

    @property
    def is_faster(self) -> bool:
        """Whether the mixed file is faster beyond noise."""
        return self.speedup_ci95[0] > 1


def choose_float_layers(costs: Mapping[str, LayerCost], edges: Sequence[Edge]) -> tuple[str, ...]:
    """Returns the layers to leave in float for the lowest total time.

    Each layer costs its time in the chosen precision, and a value between layers of different
    precisions must be converted. The cheapest assignment is a minimum cut between a source (int8)
    and a sink (float).
    """
    names = list(costs)
    index = {name: number for number, name in enumerate(names)}
    source, sink = len(names), len(names) + 1
    capacity: dict[tuple[int, int], int] = defaultdict(int)
    for name, cost in costs.items():
        # Cutting a layer off the source puts it in float, cutting it off the sink in int8.
        capacity[source, index[name]] += _nanoseconds(cost.float_ms)
        capacity[index[name], sink] += _nanoseconds(cost.int8_ms)
    for edge in edges:
        if edge.writer in index and edge.reader in index:
            capacity[index[edge.writer], index[edge.reader]] += _nanoseconds(edge.conversion_ms)
            capacity[index[edge.reader], index[edge.writer]] += _nanoseconds(edge.conversion_ms)
    rows, columns = zip(*capacity, strict=True)
    graph = csr_matrix(
        (np.array(list(capacity.values()), dtype=np.int32), (rows, columns)),
        shape=(sink + 1, sink + 1),
    )
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, source, return_predecessors=False).tolist())
    return tuple(name for name in names if index[name] not in reached)


def _nanoseconds(ms: float) -> int:
    return round(1e6 * ms)
