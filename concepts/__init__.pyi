__version__: str

from .auditing.run import audit as audit
from .data.concept_sets import (
    Concept as Concept,
    random_sets as random_sets,
)
from .data.manifest import Manifest as Manifest
from .data.segmentation.labels import (
    Scenes as Scenes,
    TensorLabels as TensorLabels,
    Vocabulary as Vocabulary,
)
from .dissection.dissection import Dissection as Dissection
from .effects.logit_effect import LogitEffect as LogitEffect
from .local_vs_global.compare import Compare as Compare
from .tcav.result import TcavResult as TcavResult
from .tcav.tcav import Tcav as Tcav
