"""Every local method, made with the arguments that it can't do without."""

import nets
import torch

from probing.attribution import METHODS
from probing.attribution.base import AttributionMethod
from probing.attribution.baselines import Extremes, Samples
from probing.attribution.path import IntegratedGradients

TARGETS = torch.tensor([0, 1, 2, 1])
# Methods that can't be made without arguments, or that take long with their defaults.
ARGUMENTS: dict[str, dict[str, object]] = {
    "expected_gradients": {"background": Samples.of(nets.images(3, seed=9).double()), "samples": 5},
    "smoothgrad": {"samples": 3},
    "ig": {"steps": 4},
    "guided_ig": {"steps": 4},
    "blur_ig": {"steps": 4},
    "xrai": {"path": IntegratedGradients(Extremes(), steps=4)},
    "rise": {"masks": 40},
    "sobol": {"masks": 2},
    "layer_conductance": {"steps": 4},
    "internal_influence": {"steps": 4},
    "layer_ig": {"path": IntegratedGradients(steps=4)},
}


def made(name: str) -> AttributionMethod:
    return METHODS[name](**ARGUMENTS.get(name, {}))
