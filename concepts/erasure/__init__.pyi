from .corrections import (
    GroupDro as GroupDro,
    LastLayer as LastLayer,
    Projection as Projection,
)
from .eraser import (
    CrossMoments as CrossMoments,
    Eraser as Eraser,
    leace as leace,
    mean_projection as mean_projection,
    random_eraser as random_eraser,
)
from .erasure import Erasure as Erasure
from .mending import Mended as Mended, Mending as Mending
from .mending_result import MendingResult as MendingResult
from .patching import (
    Patching as Patching,
    PatchingResult as PatchingResult,
    Places as Places,
    Removed as Removed,
    Subspace as Subspace,
    Units as Units,
    Whole as Whole,
)
from .read_used_moved import ReadUsedMoved as ReadUsedMoved
from .result import ErasureResult as ErasureResult
from .table import ReadUsedMovedResult as ReadUsedMovedResult
