"""Finer-CAM: Grad-CAM of what sets a class apart from those most like it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.attribution.cam.layer_map import LayerMap, LayerReading, Weighed
from probing.core.errors import ArgumentError
from probing.models.geometry import RefusedError
from probing.models.readings import Reading
from probing.models.scores import Score, class_scores

_NONE = nn.Identity()
"""A score that reads outputs that are there already needs no model."""


@dataclass(frozen=True)
class FinerCAM(LayerMap):
    """Grad-CAM of a class's logit minus that of the most similar classes (Zhang et al. 2025).

    Similar are, for each input, the classes with the logits nearest to the explained one's. What is differentiated is the
    logit minus `strength` times the mean of theirs: `diagnostics["contrast"]`; `similar`, `[n, classes]`, names them, the
    nearest first. The result's score is the logit itself.

    Attributes:
        similar: how many classes are taken off; all others, if there are no more.
        strength: how much of their mean is taken off; with 0 it is Grad-CAM.
        relu: keep only what raises the difference.
    """

    similar: int = 3
    strength: float = 1.0
    relu: bool = True

    def __post_init__(self) -> None:
        if self.similar < 1:
            raise ArgumentError(f"FinerCAM takes off at least one class, got similar={self.similar}.")

    def _explain(self, reading: LayerReading) -> Weighed:
        score = reading.passes.score
        target = score.target
        if isinstance(target, Reading) or score.unit != "logit":
            what = f"a {type(target).__name__}" if isinstance(target, Reading) else score.unit
            raise RefusedError(f"FinerCAM sets a class's logit apart from others', not {what}: use GradCAM.")
        assert target is not None  # `checked` has named it
        contrast = _Contrast(target, self.similar, self.strength)
        apart = replace(reading, passes=replace(reading.passes, score=replace(score, target=contrast)))
        found, output, slope, classes = apart.slopes_and_classes()
        reading.passes.n_forward, reading.passes.n_backward = apart.passes.n_forward, apart.passes.n_backward
        total = (reading.mean(reading.maps(slope)) * reading.maps(output)).sum(1)
        diagnostics = {"contrast": found, "similar": contrast.nearest(classes)}
        said = f"{score.says} minus {self.strength:g} x the mean of the {diagnostics['similar'].shape[1]} nearest logits"
        value = replace(score, output=None).read(classes)
        return Weighed(value, total.relu() if self.relu else total, diagnostics, {"explained": said})


@dataclass(frozen=True, eq=False)
class _Contrast(Reading):
    """A class's logit minus some of the mean of those nearest to it."""

    own: ClassVar[Mapping[str, int]] = {"target": 0}

    target: int | Tensor
    similar: int
    strength: float
    unit: str = "logit"

    @property
    def name(self) -> str:
        return f"class {self.target} and the {self.similar} nearest"

    def nearest(self, scores: Float[Tensor, "n classes"]) -> Int[Tensor, "n similar"]:
        """Return the other classes whose logits are nearest, the nearest first."""
        if scores.shape[1] < 2:
            raise RefusedError("FinerCAM sets a class apart from others, and the model has one: use GradCAM.")
        index = self._index(scores)
        distance = (scores - scores.gather(1, index)).abs().scatter(1, index, torch.inf)
        return distance.topk(min(self.similar, scores.shape[1] - 1), largest=False).indices

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        scores = class_scores(output)
        logit = Score(_NONE, self.target).read(scores)  # which refuses what is no class
        others = scores.gather(1, self.nearest(scores.detach())).mean(1)
        return logit - self.strength * others

    def _index(self, scores: Tensor) -> Int[Tensor, "n 1"]:
        return torch.as_tensor(self.target, device=scores.device).expand(len(scores))[:, None]
