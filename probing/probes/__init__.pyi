from .layer_probes import LayerProbes as LayerProbes
from .leave_one_out import (
    LeaveOneOutProbes as LeaveOneOutProbes,
    LeaveOneOutResult as LeaveOneOutResult,
)
from .probes import (
    RidgeProbe as RidgeProbe,
    SoftmaxProbe as SoftmaxProbe,
)
from .reduction import (
    FeatureSizeError as FeatureSizeError,
    Flat as Flat,
    GlobalAverage as GlobalAverage,
    Grid as Grid,
    RandomProjection as RandomProjection,
    RandomSubset as RandomSubset,
)
from .result import ProbeResult as ProbeResult
from .split import (
    Split as Split,
    SplitError as SplitError,
)
from .training_probes import TrainingProbes as TrainingProbes
from .untrained_copy import untrained_copy as untrained_copy
