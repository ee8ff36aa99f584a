"""TCAV (Kim et al. 2018): concept activation vectors, directional derivatives, and tests that keep their level."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
