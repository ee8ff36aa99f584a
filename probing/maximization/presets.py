"""Ready-made settings: the four of Yosinski et al. 2015, the Fourier parameterisation, and none at all."""

from collections.abc import Mapping
from typing import Final

from probing.maximization.optimizers import Adam, Normalized
from probing.maximization.parameterisations import Fourier, Pixels
from probing.maximization.regularizers import (
    Blur,
    Box,
    ClipSmallContribution,
    ClipSmallNorm,
    Decay,
    Operator,
)
from probing.maximization.run import Maximize


# The paper's rates are for gradients of another network; a step of fixed length carries over. Rates, and the envelope of
# FOURIER, steeper than lucid's, are those whose images of eight ImageNet classes a second network ranked best:
# experiments/maximization_quality.py --choose.
def _pixels(rate: float, *operators: Operator) -> Maximize:
    return Maximize(
        image=Pixels(),
        regularizers=(*operators, Box()),
        transforms=(),
        ascent=Normalized(rate),
        steps=256,
    )


FOURIER: Final = Maximize(image=Fourier(decay_power=1.75), ascent=Adam(0.015), steps=256)
UNREGULARIZED: Final = _pixels(4.0)
A: Final = _pixels(4.0, Blur(0.5, 4), ClipSmallNorm(50.0))
B: Final = _pixels(8.0, Decay(0.3), ClipSmallNorm(20.0))
C: Final = _pixels(2.0, Decay(0.0001), Blur(1.0, 4))
D: Final = _pixels(1.0, Blur(0.5, 4), ClipSmallContribution(90.0))

PRESETS: Final[Mapping[str, Maximize]] = {
    "fourier": FOURIER,
    "A": A,
    "B": B,
    "C": C,
    "D": D,
    "unregularized": UNREGULARIZED,
}
