from .eraser import (
    CrossMoments as CrossMoments,
    Eraser as Eraser,
    leace as leace,
    mean_projection as mean_projection,
    random_eraser as random_eraser,
)
from .erasure import Erasure as Erasure
from .result import ErasureResult as ErasureResult
