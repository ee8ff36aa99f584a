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
from .readings import (
    Box as Box,
    Custom as Custom,
    Label as Label,
    NextToken as NextToken,
    Pixel as Pixel,
    Reading as Reading,
    Region as Region,
    Regression as Regression,
    Similarity as Similarity,
    Span as Span,
)
from .scores import Score as Score
from .summary import summarize as summarize
