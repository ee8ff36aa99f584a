"""Images that a unit, a class or a concept direction looks for: regularised activation maximisation."""

from probing.maximize.images import Fourier, Maco, Pixels, Shared
from probing.maximize.objective import Objective, Together
from probing.maximize.objectives import (
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
from probing.maximize.result import Beside, Maximization
from probing.maximize.run import Maximize, maximize
from probing.maximize.space import Space

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
