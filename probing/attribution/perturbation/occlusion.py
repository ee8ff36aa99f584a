"""By how much a score falls when a window of the input is covered, or a part of it is left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.baselines import ZERO, Baseline, unmoved
from probing.attribution.perturbation.cutting import SUPERPIXELS, cut_up, part_facts, settled
from probing.attribution.perturbation.parts import Hidden, fillings
from probing.attribution.perturbation.removal import mean_falls
from probing.attribution.perturbation.superpixels import Segmentation
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.inputs import InputError
from probing.models.explained import Explained
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score

Size = int | tuple[int, ...] | None


class _Falls(LocalMethod):
    """What methods share that tell by how much a score falls without something."""

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    demands: ClassVar[tuple[Demand, ...]] = ()


@dataclass(frozen=True)
class Occlusion(_Falls):
    """The fall of the score where a sliding window is covered (Zeiler & Fergus 2014, sec. 2).

    A value's number is the mean fall over all windows that cover it, in score units and for the window as a whole, so
    values are not to be added up. Windows slide over the places of images, series and volumes, all channels together, over
    tokens, or over single features; of several inputs over one after the other. The last window along an axis may reach
    beyond its end. Padding of texts is not covered.

    In the diagnostics: `unmoved`, the share of values that equal what covers them: covering these changes nothing.

    Attributes:
        window: places along each axis, one number for all or one for each axis; an eighth of the axis, one token or one
            feature unless given.
        stride: places from one window to the next; half a window unless given.
        hidden: what covers a window: a baseline of one draw.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    window: Size = None
    stride: Size = None
    hidden: Baseline = ZERO
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for windows that don't fit the inputs, strides that leave gaps, or a baseline of several draws.
        """
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            placed = inputs.to(passes.device)
            shown = fillings(self.hidden, placed)
            assert isinstance(shown, Tensor)
            windows = _Windows.of(score.beside, placed, self.window, self.stride)
            counts = [windows.count] * len(inputs)
            values, value = mean_falls(passes, placed, shown, counts, windows.places, "occlusion")
            same = unmoved(shown[None].to(inputs), inputs, score.beside)
            values = values.expand(inputs.shape).to(inputs).contiguous()
            return passes.attribution(self, inputs, values, value.to(inputs), diagnostics={"unmoved": same.to(inputs)})


@dataclass(frozen=True)
class FeatureAblation(_Falls):
    """The fall of the score when a part of the input is hidden, each part by itself.

    Each value of the map holds the fall of its whole part, so values are not to be added up over a part. Of a linear score
    it is the sum of weights times (input - what hides it) over the part. Parts that stand in for each other both get
    nothing here; Shapley values share what they give between them.

    In the diagnostics: `parts`, the part of each value, and of each input `flat_parts` and `unhidden_parts` as for `LIME`.

    Attributes:
        parts: how inputs are cut; as `LIME` cuts them unless given: superpixels, tokens, features or blocks. `Given.of`
            takes a mask of groups.
        hidden: what shows where a part is hidden: a baseline, or the part's mean colour.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    parts: Segmentation = SUPERPIXELS
    hidden: Hidden = ZERO
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: if an input can't be cut, or looks the same whatever is hidden.
        """
        method = settled(self, score, inputs)
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            cut = cut_up(method, passes, inputs)
            labels = torch.stack([parts.labels for parts in cut])

            def places(rows: Int[Tensor, " k"], numbers: Int[Tensor, " k"]) -> Bool[Tensor, "k *places"]:
                return labels[rows] == numbers.view(-1, *[1] * (labels.ndim - 1))

            shown, counts = torch.stack([parts.hidden for parts in cut]), [parts.count for parts in cut]
            values, value = mean_falls(passes, inputs.to(passes.device), shown, counts, places, "feature ablation")
            values = values.expand(inputs.shape).to(inputs).contiguous()
            diagnostics = part_facts(cut, inputs.device)
            return passes.attribution(method, inputs, values, value.to(inputs), diagnostics=diagnostics)


@dataclass(frozen=True, eq=False)
class _Pane:
    """Windows over one of the explained inputs.

    Attributes:
        shape: of the input of one example.
        axes: of that shape, along which windows slide.
        window: places along each.
        stride: from one window to the next.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Windows along each axis."""
        each = zip(self.axes, self.window, self.stride, strict=True)
        return tuple(1 + -((window - self.shape[axis]) // stride) for axis, window, stride in each)

    def places(self, numbers: Int[Tensor, " k"]) -> Bool[Tensor, "k *places"]:
        """Return which places windows hold; none of what the windows' numbers go beyond."""
        count = math.prod(self.steps)
        found = ((numbers >= 0) & (numbers < count)).view(-1, *[1] * len(self.shape))
        rest = numbers.clamp(0, count - 1)
        each = list(zip(self.axes, self.window, self.stride, self.steps, strict=True))
        for axis, window, stride, steps in reversed(each):
            start = (rest % steps * stride)[:, None]
            along = torch.arange(self.shape[axis], device=numbers.device)
            inside = (along >= start) & (along < start + window)
            found = found & inside.view(len(numbers), *[-1 if i == axis else 1 for i in range(len(self.shape))])
            rest = rest // steps
        return found


@dataclass(frozen=True, eq=False)
class _Windows:
    """All windows of an example, of one input after the other.

    Attributes:
        panes: of the explained inputs.
        read: which values are read; None where all are.
    """

    panes: tuple[_Pane, ...]
    read: Bool[Tensor, "n *shape"] | None

    @classmethod
    def of(cls, beside: Explained | None, inputs: Float[Tensor, "n *shape"], window: Size, stride: Size) -> "_Windows":
        if beside is None:
            return cls((_pane(tuple(inputs.shape[1:]), False, window, stride),), None)
        named = zip(beside.names, beside.shapes, strict=True)
        panes = tuple(_pane(shape, name in beside.layers, window, stride) for name, shape in named)
        return cls(panes, None if beside.read is None else beside.read.to(inputs.device))

    @property
    def count(self) -> int:
        return sum(math.prod(pane.steps) for pane in self.panes)

    def places(self, rows: Int[Tensor, " k"], numbers: Int[Tensor, " k"]) -> Bool[Tensor, "k *places"]:
        """Return which places windows hold of examples."""
        found, before = [], 0
        for pane in self.panes:
            found.append(pane.places(numbers - before))
            before += math.prod(pane.steps)
        if len(found) > 1:
            shapes = [(len(numbers), *pane.shape) for pane in self.panes]
            found = [torch.cat([f.expand(shape).flatten(1) for f, shape in zip(found, shapes, strict=True)], 1)]
        return found[0] if self.read is None else found[0] & self.read[rows]


def _pane(shape: tuple[int, ...], tokens: bool, window: Size, stride: Size) -> _Pane:
    """Return the windows over an input of one example; of images, series and volumes the first axis are channels."""
    axes = (0,) if tokens or len(shape) == 1 else tuple(range(1, len(shape)))
    sizes = [shape[axis] for axis in axes]
    single = tokens or len(shape) == 1
    usual = tuple(1 if single else max(1, round(size / 8)) for size in sizes)
    windows = _along(window, usual, "window")
    strides = _along(stride, tuple(max(1, w // 2) for w in windows), "stride")
    if any(not 1 <= w <= size for w, size in zip(windows, sizes, strict=True)):
        raise InputError(f"a window of {windows} does not fit places of {tuple(sizes)}.")
    if any(not 1 <= s <= w for s, w in zip(strides, windows, strict=True)):
        raise InputError(f"a stride of {strides} leaves gaps between windows of {windows}, or is none: give less.")
    return _Pane(shape, axes, windows, strides)


def _along(given: Size, usual: Sequence[int], what: str) -> tuple[int, ...]:
    if given is None:
        return tuple(usual)
    found = (given,) * len(usual) if isinstance(given, int) else tuple(given)
    if len(found) != len(usual):
        raise InputError(f"the {what} has {len(found)} axes, the input {len(usual)} along which it slides.")
    return found
