"""Relate what a network computes to concepts that people have names for.

A `Concept` is a set of examples; `Tcav` tests whether a class depends on it, `Dissection` which units pick it out, `Compare`
holds local explanations against it; `audit` does a whole study from one file.
"""

import lazy_loader

from probing import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
