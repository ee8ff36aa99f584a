"""One network: how it is loaded, its layers, hooks, scores and gradients, and how a pass of it runs.

A layer is a dotted path; the model that is given is left as it was found.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
