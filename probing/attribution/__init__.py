"""Explanations of single inputs; `METHODS` and `TEXT_METHODS` list them by the names that the command line takes.

All take a score and inputs, or a model, inputs and a target, and return an `Attribution`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
