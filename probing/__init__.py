"""Read one network: `import probing as pb`.

`load` a model, or bring any `nn.Module`; `examples` makes examples of whatever you have. A `Score` is what is explained. The
local methods explain single inputs, `LayerProbes`, `Atlas` and `maximize` the network; `evaluate` says which to trust.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
