from .clustered import holm as holm
from .estimators import (
    Hinge as Hinge,
    Lda as Lda,
    Logistic as Logistic,
    Pattern as Pattern,
    Ridge as Ridge,
)
from .hypothesis_tests import (
    TooFewError as TooFewError,
    max_t as max_t,
    permutation_p as permutation_p,
)
from .linear_classifiers import fit_pairs as fit_pairs
from .streaming import (
    Moments as Moments,
    TopExamples as TopExamples,
    UpperQuantile as UpperQuantile,
)
