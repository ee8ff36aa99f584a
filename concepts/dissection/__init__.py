"""Network dissection (Bau et al. 2017): which units pick out which concepts, against chance, and what goes without them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
