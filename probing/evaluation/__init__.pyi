from .axioms import axiom_table as axiom_table
from .curves import (
    Deletion as Deletion,
    Insertion as Insertion,
    PixelFlipping as PixelFlipping,
    Road as Road,
)
from .irof import Irof as Irof
from .localisation import (
    EnergyShare as EnergyShare,
    PointingGame as PointingGame,
)
from .monotonicity import (
    Monotonicity as Monotonicity,
    MonotonicityCorrelation as MonotonicityCorrelation,
)
from .randomisation import (
    CascadingRandomisation as CascadingRandomisation,
    EfficientRandomisation as EfficientRandomisation,
    IndependentRandomisation as IndependentRandomisation,
    SmoothRandomisation as SmoothRandomisation,
)
from .rationales import (
    Comprehensiveness as Comprehensiveness,
    Sufficiency as Sufficiency,
)
from .retraining import (
    Kar as Kar,
    Roar as Roar,
)
from .robustness import (
    Infidelity as Infidelity,
    MaxSensitivity as MaxSensitivity,
    SensitivityN as SensitivityN,
)
from .scorecard.measure import (
    Scoring as Scoring,
    evaluate as evaluate,
)
from .scorecard.scorecard import Scorecard as Scorecard
from .significance import (
    PartSignificance as PartSignificance,
    other_classes as other_classes,
    untrained_twins as untrained_twins,
)
