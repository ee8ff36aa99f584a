from .figures import (
    montage as montage,
    save_figure as save_figure,
    style as style,
)
from .heatmaps import (
    overlay as overlay,
    side_by_side as side_by_side,
)
from .result import (
    Provenance as Provenance,
    Result as Result,
    rebuild as rebuild,
)
from .saved_names import saved_as as saved_as
