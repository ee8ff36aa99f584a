"""Linear probes: what of the labels is linearly readable at each layer, and how much of that training put there."""

from probing.probes.layer_probes import LayerProbes
from probing.probes.probes import RidgeProbe, SoftmaxProbe
from probing.probes.reduction import (
    FeatureSizeError,
    Flat,
    GlobalAverage,
    Grid,
    RandomProjection,
    RandomSubset,
)
from probing.probes.result import ProbeResult
from probing.probes.split import Split, SplitError
from probing.probes.untrained_copy import untrained_copy

__all__ = [
    "FeatureSizeError",
    "Flat",
    "GlobalAverage",
    "Grid",
    "LayerProbes",
    "ProbeResult",
    "RandomProjection",
    "RandomSubset",
    "RidgeProbe",
    "SoftmaxProbe",
    "Split",
    "SplitError",
    "untrained_copy",
]
