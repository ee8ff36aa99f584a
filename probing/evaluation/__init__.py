"""What can be said for and against an explanation: axioms, sanity checks, removal, localisation, robustness, a scorecard."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
