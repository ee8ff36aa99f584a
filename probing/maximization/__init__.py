"""Images that a unit, a class or a concept direction looks for: regularised activation maximisation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
