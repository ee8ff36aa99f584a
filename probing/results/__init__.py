"""Results that can be saved, loaded and rebuilt, and what shows them: tables, figures, heat maps, texts, HTML pages.

A result draws itself in its own file; here is what all of them draw and write with.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
