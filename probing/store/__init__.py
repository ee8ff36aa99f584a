"""The activation store: rows named by what they depend on, computed once, kept in memory and on disk.

Any number of processes may fill one; what launches them and how work is shared out is here too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
