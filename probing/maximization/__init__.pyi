from .objective import (
    Objective as Objective,
    Together as Together,
)
from .objectives import (
    Caricature as Caricature,
    Channel as Channel,
    Direction as Direction,
    Diversity as Diversity,
    FeatureInversion as FeatureInversion,
    Layer as Layer,
    Logit as Logit,
    Neuron as Neuron,
    TensorDirection as TensorDirection,
)
from .parameterisations import (
    Fourier as Fourier,
    Maco as Maco,
    Pixels as Pixels,
    Shared as Shared,
)
from .pixel_space import Space as Space
from .result import (
    Beside as Beside,
    Maximization as Maximization,
)
from .run import (
    Maximize as Maximize,
    maximize as maximize,
)
