"""Read one network.

Models by reference: `probing.models.loading`. Layers by dotted path: `probing.models.layers`. What is explained: `probing.models.scores`.
Images, tensors and texts with content ids: `probing.data.examples`. Activations and gradients: `probing.store.store`, for one
batch `probing.models.hooks` and `probing.models.gradients`. Statistics of streams: `probing.statistics.streaming`. Linear probes:
`probing.statistics.linear_classifiers`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
