from .calibrated import (
    Sensitivities as Sensitivities,
    cav_sensitivities as cav_sensitivities,
)
from .cav import (
    Cavs as Cavs,
    fit_cavs as fit_cavs,
)
from .result import TcavResult as TcavResult
from .sample_size import (
    SampleSize as SampleSize,
    SampleSizes as SampleSizes,
)
from .sampling import (
    LeaveOneOut as LeaveOneOut,
    Relabelled as Relabelled,
)
from .tcav import Tcav as Tcav
