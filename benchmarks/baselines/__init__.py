"""How others bring a new worker its state, each as its paper says, on the network of `benchmarks.scaleout`.

Only the way the bytes go differs. Nothing is added for starting processes, building process groups or writing to
disk, which the stopping methods also need: they are shown at their best.
"""

from benchmarks.baselines.splits import equal_split, proportional_split, whole_tensors
from benchmarks.baselines.systems import all_reduce_broadcast, nearest_neighbour, one_source, stop_and_restart

__all__ = [
    "all_reduce_broadcast",
    "equal_split",
    "nearest_neighbour",
    "one_source",
    "proportional_split",
    "stop_and_restart",
    "whole_tensors",
]
