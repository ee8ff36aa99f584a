from .cav import (
    Cavs as Cavs,
    fit_cavs as fit_cavs,
)
from .result import TcavResult as TcavResult
from .sampling import (
    LeaveOneOut as LeaveOneOut,
    Relabelled as Relabelled,
)
from .tcav import Tcav as Tcav
