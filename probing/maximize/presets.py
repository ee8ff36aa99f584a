"""Ready-made settings: the four of Yosinski et al. 2015, the Fourier parameterisation, and none at all."""

from collections.abc import Mapping
from typing import Final

from probing.maximize.ascent import Adam, Normalized
from probing.maximize.images import Fourier, Pixels
from probing.maximize.regularizers import (
    Blur,
    Box,
    ClipSmallContribution,
    ClipSmallNorm,
    Decay,
    Operator,
)
from probing.maximize.run import Maximize


# The paper's rate is one of another network's gradients; a step of fixed length carries over. One level in
# root mean square suits all five alike (of 1, 4, 16 and 48; see experiments/maximization_quality.py).
def _pixels(*operators: Operator) -> Maximize:
    return Maximize(
        image=Pixels(),
        regularizers=(*operators, Box()),
        transforms=(),
        ascent=Normalized(1.0),
        steps=256,
    )


FOURIER: Final = Maximize(image=Fourier(), ascent=Adam(0.05), steps=256)
UNREGULARIZED: Final = _pixels()
A: Final = _pixels(Blur(0.5, 4), ClipSmallNorm(50.0))
B: Final = _pixels(Decay(0.3), ClipSmallNorm(20.0))
C: Final = _pixels(Decay(0.0001), Blur(1.0, 4))
D: Final = _pixels(Blur(0.5, 4), ClipSmallContribution(90.0))

PRESETS: Final[Mapping[str, Maximize]] = {
    "fourier": FOURIER,
    "A": A,
    "B": B,
    "C": C,
    "D": D,
    "unregularized": UNREGULARIZED,
}
