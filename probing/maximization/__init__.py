"""Images that a unit, a class or a concept direction looks for: regularised activation maximisation."""

from probing.maximization.objective import Objective, Together
from probing.maximization.objectives import (
    Caricature,
    Channel,
    Direction,
    Diversity,
    FeatureInversion,
    Layer,
    Logit,
    Neuron,
    TensorDirection,
)
from probing.maximization.parameterisations import Fourier, Maco, Pixels, Shared
from probing.maximization.pixel_space import Space
from probing.maximization.result import Beside, Maximization
from probing.maximization.run import Maximize, maximize

__all__ = [
    "Beside",
    "Caricature",
    "Channel",
    "Direction",
    "Diversity",
    "FeatureInversion",
    "Fourier",
    "Layer",
    "Logit",
    "Maco",
    "Maximization",
    "Maximize",
    "Neuron",
    "Objective",
    "Pixels",
    "Shared",
    "Space",
    "TensorDirection",
    "Together",
    "maximize",
]
