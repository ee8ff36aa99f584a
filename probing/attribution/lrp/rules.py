"""LRP rules: how the relevance of a linear layer's outputs is shared among its inputs.

A rule sees one call of a linear layer, `z = W a + b`, and shares `R_j` in proportion to what the products `a_i w_ij`
bring to `z_j`. Relevance travels in two parts, `R = a · gradient + extra`: nearly every rule gives each input a
multiple of its value, and that multiple is kept, not the relevance, so that nothing is ever divided by an activation
near zero. Only rules that look at weights or pixel bounds alone fill `extra`.

Bach et al. 2015; Montavon et al. 2017 (z^B, w²), 2019 (γ); the generalised γ is zennit's, for inputs of either sign.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.lrp.linear_maps import LinearMap
from probing.core.errors import ArgumentError
from probing.models.geometry import RefusedError


@dataclass(frozen=True)
class Relevance:
    """The relevance `value · gradient + extra` of a tensor; None stands for zero."""

    gradient: Tensor | None = None
    extra: Tensor | None = None

    def __add__(self, other: "Relevance") -> "Relevance":
        return Relevance(_sum(self.gradient, other.gradient), _sum(self.extra, other.extra))

    def of(self, value: Tensor) -> Tensor:
        """Return the relevance itself, given the tensor's value."""
        if self.gradient is None:
            return torch.zeros_like(value) if self.extra is None else self.extra
        total = value * self.gradient
        return total if self.extra is None else total.add_(self.extra)

    def as_gradient(self, value: Tensor) -> Tensor:
        """Return the relevance per unit of the tensor's value; extra relevance where the value is zero is lost."""
        if self.extra is None:
            return torch.zeros_like(value) if self.gradient is None else self.gradient
        share = self.extra / (value + signed(value, STABILIZER))
        return share if self.gradient is None else share + self.gradient


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer, with the relevance of its output."""

    where: str
    """The layer, for error messages."""
    map: LinearMap
    inputs: Float[Tensor, "rows ..."]
    weight: Float[Tensor, "..."]
    bias: Float[Tensor, " units"] | None
    output: Float[Tensor, "rows ..."]
    relevance: Relevance
    non_negative: bool = False
    """Whether all inputs are known to be, as after a ReLU: then half of each splitting rule's work falls away."""

    @cached_property
    def total(self) -> Tensor:
        """The output's relevance."""
        return self.relevance.of(self.output)

    def positive(self) -> Tensor:
        """Return, per output, the sum of positive products and positive bias."""
        above, bias = (
            self.weight.clamp(min=0),
            None if self.bias is None else self.bias.clamp(min=0),
        )
        if self.non_negative:
            return self.map(self.inputs, above, bias)
        below = self.map(self.inputs.clamp(max=0), self.weight.clamp(max=0), None)
        return self.map(self.inputs.clamp(min=0), above, bias).add_(below)

    def gradient(self, *terms: "Term") -> Tensor:
        """Return the inputs' gradient: each term's shares, transposed through the layer."""
        above = self._transposed([(t.shares, t.above) for t in terms])
        if self.non_negative or all(t.below is t.above for t in terms):
            return above
        below = self._transposed([(t.shares, t.below) for t in terms])
        return torch.where(self.inputs > 0, above, below)

    def _transposed(self, terms: list[tuple[Tensor, Tensor]]) -> Tensor:
        first, *rest = (self.map.transpose(shares, weight, self.inputs) for shares, weight in terms)
        for term in rest:
            first += term
        return first

    def biased(self, shares: Tensor, bias: Tensor | None) -> Float[Tensor, " rows"]:
        """Return, per row, what a bias takes if each output gives `shares` per unit of it."""
        return _times(self.map.by_unit(shares), bias)


@dataclass(frozen=True)
class Term:
    """Shares per output, and the weights they are multiplied with where inputs are above and below zero."""

    shares: Tensor
    above: Tensor
    below: Tensor


@dataclass(frozen=True)
class Share:
    """What a rule hands down, and what stays behind, per row of the output."""

    inputs: Relevance
    by_bias: Float[Tensor, " rows"]
    by_epsilon: Float[Tensor, " rows"]
    fallbacks: Float[Tensor, " rows"] | None = None


@runtime_checkable
class Rule(Protocol):
    """A frozen dataclass that shares the relevance of one linear layer's call."""

    def __call__(self, call: LinearCall) -> Share: ...


@dataclass(frozen=True)
class Epsilon:
    """`R_i = Σ_j a_i w_ij / (z_j + ε sign z_j) R_j` (Bach et al. 2015, eq. 58); `Epsilon(0.0)` is LRP-0."""

    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        if self.epsilon == 0 and call.relevance.extra is None:
            shares = call.relevance.as_gradient(call.output)
            lost = shares.new_zeros(len(shares))
        else:
            stabilizer = signed(call.output, self.epsilon or STABILIZER)
            shares = call.total / (call.output + stabilizer)
            lost = _rows(shares * stabilizer)
        inputs = Relevance(call.gradient(Term(shares, call.weight, call.weight)))
        return Share(inputs, call.biased(shares, call.bias), lost)


@dataclass(frozen=True)
class Gamma:
    """Positive products count 1 + γ times for outputs above zero, negative ones for outputs below zero."""

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        below = call.output < 0
        plus = call.positive()
        total = torch.where(below, call.output - plus, plus).mul_(self.gamma).add_(call.output)
        stabilizer = signed(call.output, self.epsilon)
        shares = call.total / total.add_(stabilizer)
        lost = _rows(stabilizer.mul_(shares))
        up, down = self._weights(call.weight)
        up_bias, down_bias = (None, None) if call.bias is None else self._weights(call.bias)
        low = shares * below
        if not bool(low.any()):  # as before a ReLU: its negative inputs got no relevance
            inputs = Relevance(call.gradient(Term(shares, up, down)))
            return Share(inputs, call.biased(shares, up_bias), lost)
        high = shares - low
        inputs = Relevance(call.gradient(Term(high, up, down), Term(low, down, up)))
        return Share(inputs, call.biased(high, up_bias) + call.biased(low, down_bias), lost)

    def _weights(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight + self.gamma * weight.clamp(min=0), weight + self.gamma * weight.clamp(max=0)


@dataclass(frozen=True)
class AlphaBeta:
    """`R_i = Σ_j (α z_ij⁺ / z_j⁺ - β z_ij⁻ / z_j⁻) R_j` with positive and negative products (Bach et al. 2015, eq. 60).

    Attributes:
        fallback: use α = 1, β = 0 for outputs that lack products of one sign; otherwise they create or lose relevance.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 1e-6
    fallback: bool = True

    def __post_init__(self) -> None:
        if self.alpha < 1 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ArgumentError(f"alpha - beta must be 1 and alpha at least 1, got {self.alpha} and {self.beta}.")

    def __call__(self, call: LinearCall) -> Share:
        plus = call.positive()
        if self.beta == 0:
            return _positive_only(call, plus, self.epsilon)
        minus = call.output - plus
        # z - z⁺ is exact up to some roundings of z⁺: less than this is no evidence of negative products.
        noise = 1024 * torch.finfo(plus.dtype).eps
        least = plus * -noise
        weak = minus > least
        one_sided = weak | (plus <= torch.mul(minus, -noise, out=least))
        minus.masked_fill_(weak, 0)
        total, fell = call.total, None
        up, down = total * self.alpha, torch.mul(total, -self.beta, out=least)
        if self.fallback and bool(one_sided.any()):
            torch.where(one_sided, total, up, out=up)
            down.masked_fill_(one_sided, 0)
            fell = _rows(one_sided.logical_and_(total), total.dtype)
        return self._share(call, up.div_(plus.add_(self.epsilon)), down.div_(minus.sub_(self.epsilon)), fell)

    def _share(self, call: LinearCall, up: Tensor, down: Tensor, fell: Tensor | None) -> Share:
        above, below = call.weight.clamp(min=0), call.weight.clamp(max=0)
        inputs = Relevance(call.gradient(Term(up, above, below), Term(down, below, above)))
        ups, downs = call.map.by_unit(up), call.map.by_unit(down)
        high, low = (None, None) if call.bias is None else (call.bias.clamp(min=0), call.bias.clamp(max=0))
        by_bias = _times(ups, high) + _times(downs, low)
        return Share(inputs, by_bias, self.epsilon * (ups.sum(1) - downs.sum(1)), fell)


@dataclass(frozen=True)
class ZPlus:
    """Positive products only: `AlphaBeta(1.0, 0.0)` (Montavon et al. 2017, eq. 15, for inputs of either sign)."""

    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        return _positive_only(call, call.positive(), self.epsilon)


@dataclass(frozen=True)
class ZBox:
    """For pixels in [low, high]: `x_i w_ij - low_i w_ij⁺ - high_i w_ij⁻` (Montavon et al. 2017, eq. 18).

    Attributes:
        low: the smallest value a pixel can have in model space, for all channels or one per channel.
        high: the largest.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        above, below = call.weight.clamp(min=0), call.weight.clamp(max=0)
        low, high = self._bound(self.low, call), self._bound(self.high, call)
        span = call.map(low, above, None) + call.map(high, below, None)
        total = call.map(call.inputs, call.weight, None) - span
        stabilizer = signed(total, self.epsilon)
        shares = call.total / (total + stabilizer)
        back = [call.map.transpose(shares, w, call.inputs) for w in (call.weight, above, below)]
        inputs = Relevance(back[0], -low * back[1] - high * back[2])
        return Share(inputs, call.biased(shares, None), _rows(shares * stabilizer))

    def _bound(self, bound: float | tuple[float, ...], call: LinearCall) -> Tensor:
        one = call.inputs[:1]
        values = torch.tensor(bound, dtype=one.dtype, device=one.device)
        if values.ndim:
            if len(values) != one.shape[1]:
                raise ArgumentError(
                    f"{call.where} has {one.shape[1]} channels, the pixel bounds have {len(values)}: give one each."
                )
            values = values.view(1, -1, *[1] * (one.ndim - 2))
        return values.expand_as(one).contiguous()


@dataclass(frozen=True)
class WSquare:
    """`R_i = Σ_j w_ij² / Σ_i w_ij² R_j`, whatever the inputs (Montavon et al. 2017, eq. 12)."""

    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        bias = None if call.bias is None else call.bias.square()
        return _by_weights(call, call.weight.square(), bias, self.epsilon)


@dataclass(frozen=True)
class Flat:
    """Every input of an output gets the same (Lapuschkin et al. 2019)."""

    epsilon: float = 1e-6

    def __call__(self, call: LinearCall) -> Share:
        return _by_weights(call, torch.ones_like(call.weight), None, self.epsilon)


@dataclass(frozen=True)
class Pass:
    """Each input gets the relevance of the output at its place; for layers that keep the shape."""

    def __call__(self, call: LinearCall) -> Share:
        if call.inputs.shape != call.output.shape:
            raise RefusedError(
                f"{call.where} maps {tuple(call.inputs.shape)} to {tuple(call.output.shape)}, and the rule Pass needs "
                "a layer that keeps the shape: give it another rule."
            )
        nothing = call.total.new_zeros(len(call.output))
        return Share(Relevance(extra=call.total), nothing, nothing)


STABILIZER = 1e-6
"""What is added to a sum that extra relevance is divided by, as where a rule has its ε."""


def signed(values: Tensor, size: float) -> Tensor:
    """Return `size` with the sign of each value, plus for zero."""
    positive = torch.tensor(size, dtype=values.dtype, device=values.device)
    return torch.where(values < 0, -positive, positive)


def _positive_only(call: LinearCall, plus: Tensor, epsilon: float) -> Share:
    shares = torch.div(call.total, plus.add_(epsilon), out=plus)
    above = call.weight.clamp(min=0)
    below = above if call.non_negative else call.weight.clamp(max=0)
    inputs = Relevance(call.gradient(Term(shares, above, below)))
    units = call.map.by_unit(shares)
    by_bias = _times(units, None if call.bias is None else call.bias.clamp(min=0))
    return Share(inputs, by_bias, epsilon * units.sum(1))


def _by_weights(call: LinearCall, weight: Tensor, bias: Tensor | None, epsilon: float) -> Share:
    shares = call.total / (call.map(torch.ones_like(call.inputs[:1]), weight, bias) + epsilon)
    inputs = Relevance(extra=call.map.transpose(shares, weight, call.inputs))
    return Share(inputs, call.biased(shares, bias), epsilon * _rows(shares))


def _rows(values: Tensor, dtype: torch.dtype | None = None) -> Float[Tensor, " rows"]:
    # Not flattened, which would copy.
    return values.sum(tuple(range(1, values.ndim)), dtype=dtype)


def _times(units: Float[Tensor, "rows units"], bias: Float[Tensor, " units"] | None) -> Float[Tensor, " rows"]:
    return units.new_zeros(len(units)) if bias is None else units @ bias


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
