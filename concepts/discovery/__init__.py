"""Concepts that nobody named: directions found in a layer's activations, and how far each is to be believed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
