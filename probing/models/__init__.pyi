from .gradients import (
    input_gradient as input_gradient,
    layer_gradients as layer_gradients,
)
from .hooks import (
    capture as capture,
    edit as edit,
)
from .layers import LayerNotFoundError as LayerNotFoundError
from .loading import (
    LoadedModel as LoadedModel,
    Model as Model,
    load as load,
)
from .precision import Precision as Precision
from .scores import Score as Score
from .summary import summarize as summarize
