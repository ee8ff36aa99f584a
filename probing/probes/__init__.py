"""Linear probes: what of the labels is linearly readable at each layer, and how much of that training put there."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
