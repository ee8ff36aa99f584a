"""Composites: which LRP rule each layer of a network gets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from probing.attribution.lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, ZBox, ZPlus
from probing.models.layers import matches


@dataclass(frozen=True)
class LrpLayer:
    """A call of a layer that takes a rule."""

    path: str
    """Of the module that runs it: a layer called as a function belongs to the module whose `forward` calls it."""
    type: str
    """That module's class name."""
    kind: Literal["convolution", "dense", "norm"]
    """`norm`: a normalisation that is not folded into the layer before it."""
    first: bool
    """Whether no convolution or dense layer stands between it and the input."""


@runtime_checkable
class Composite(Protocol):
    """A frozen dataclass that gives each layer its rule."""

    def __call__(self, layer: LrpLayer) -> Rule: ...


@dataclass(frozen=True)
class Uniform:
    """One rule for every convolution and dense layer."""

    rule: Rule

    def __call__(self, layer: LrpLayer) -> Rule:
        return Epsilon(0.0) if layer.kind == "norm" else self.rule


@dataclass(frozen=True)
class EpsilonPlus:
    """z⁺ for convolutions, ε for dense layers."""

    epsilon: float = 1e-6

    def __call__(self, layer: LrpLayer) -> Rule:
        return ZPlus() if layer.kind == "convolution" else Epsilon(self.epsilon)


@dataclass(frozen=True)
class EpsilonPlusFlat:
    """As `EpsilonPlus`, with the flat rule for the first layer."""

    epsilon: float = 1e-6

    def __call__(self, layer: LrpLayer) -> Rule:
        return _first(layer, Flat()) or EpsilonPlus(self.epsilon)(layer)


@dataclass(frozen=True)
class EpsilonAlpha2Beta1:
    """α = 2, β = 1 for convolutions, ε for dense layers."""

    epsilon: float = 1e-6

    def __call__(self, layer: LrpLayer) -> Rule:
        return AlphaBeta(2.0, 1.0) if layer.kind == "convolution" else Epsilon(self.epsilon)


@dataclass(frozen=True)
class EpsilonAlpha2Beta1Flat:
    """As `EpsilonAlpha2Beta1`, with the flat rule for the first layer."""

    epsilon: float = 1e-6

    def __call__(self, layer: LrpLayer) -> Rule:
        return _first(layer, Flat()) or EpsilonAlpha2Beta1(self.epsilon)(layer)


@dataclass(frozen=True)
class EpsilonGammaBox:
    """z^B for the first layer, γ for the other convolutions, ε for dense layers.

    Attributes:
        low: the smallest value a pixel can have in model space, for all channels or one per channel.
        high: the largest.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    gamma: float = 0.25
    epsilon: float = 1e-6

    def __call__(self, layer: LrpLayer) -> Rule:
        rule = Gamma(self.gamma) if layer.kind == "convolution" else Epsilon(self.epsilon)
        return _first(layer, ZBox(self.low, self.high)) or rule


@dataclass(frozen=True)
class PerLayer:
    """Rules by layer, and a composite for the layers that none is given for.

    Attributes:
        rules: keys are paths, globs (`"features.*"`), class names (`"Conv2d"`) or `"first"`; the first key that fits
            decides. A key that fits no layer is an error when the method runs.
    """

    rules: Mapping[str, Rule]
    otherwise: Composite = EpsilonPlusFlat()

    def __call__(self, layer: LrpLayer) -> Rule:
        fitting = (rule for key, rule in self.rules.items() if self.fits(key, layer))
        return next(fitting, None) or self.otherwise(layer)

    @staticmethod
    def fits(key: str, layer: LrpLayer) -> bool:
        """Whether a key of `rules` names a layer."""
        return key == layer.type or matches(layer.path, key) or (key == "first" and layer.first)


def _first(layer: LrpLayer, rule: Rule) -> Rule | None:
    return rule if layer.first and layer.kind != "norm" else None
