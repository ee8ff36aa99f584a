"""Examples of every kind with content ids: images, texts, tensors, other libraries' data sets, remote files.

Whatever someone has becomes examples by `probing.data.examples.as_examples`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
