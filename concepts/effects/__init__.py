"""What a concept's direction does to the logits, against the measured effect of swapping the concept itself."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
