"""Read one network.

Models by reference: `probing.models`. Layers by dotted path: `probing.layers`. What is explained: `probing.scores`.
Images, tensors and texts with content ids: `probing.data.examples`. Activations and gradients: `probing.store`, for one
batch `probing.hooks` and `probing.gradients`. Statistics of streams: `probing.streaming`. Linear probes:
`probing.linear`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
