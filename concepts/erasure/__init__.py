"""Erasure and patching: whether a network uses what can be read from its layers, by taking it away or putting it over."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
