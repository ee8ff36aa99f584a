"""RISE: the mean score of an input seen through random masks, by what each place shows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, Moments, with_places
from probing.attribution.baselines import ZERO, Baseline
from probing.attribution.perturbation.parts import fillings
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.doubles import near
from probing.core.inputs import InputError
from probing.core.progress import Progress
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.scores import Score


@dataclass(frozen=True)
class RISE(LocalMethod):
    """The mean score over variants of the input, weighted by how far each shows a place (Petsiuk et al. 2018, eq. 6).

    Variants are the input seen through masks: cells shown or hidden at random, made as large as the input by linear
    interpolation, and shifted by less than a cell (sec. 3.2). A value is an estimate of the score where that place is shown:
    one that plays no role gets the variants' mean score, not 0, and signs mean nothing. All inputs get the same masks.

    Of a linear score the mean over all masks has a closed form: `score(hidden) + Σ_u w_u (x_u - hidden_u) E[M_u M_v] / p`,
    where `E[M_u M_v] = p² + p (1 - p) K(u, v)`, and K falls to 0 two cells away.

    In the diagnostics: `standard_error`, by the draw of masks, of the map's shape.

    Attributes:
        masks: drawn; each is a pass of each input.
        cells: along each axis of an image, a series or a volume.
        shown: probability p that a cell is shown.
        hidden: what shows through hidden cells: a baseline of one draw.
        seed: of the masks.
        batch_size: variants of a pass.
        precision: how passes run; `fast` is fit for these (no gradients are taken).
    """

    family: ClassVar[Family] = "local"
    answers: ClassVar[tuple[int, ...]] = (1, 2, 8)
    demands: ClassVar[tuple[Demand, ...]] = ()

    masks: int = 4000
    cells: int = 7
    shown: float = 0.5
    hidden: Baseline = ZERO
    seed: int = 0
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return the map.

        Raises:
            InputError: for inputs that are no single image, series or volume, fewer than two masks, no cells, or a
                probability that is none.
        """
        self._check(score, inputs)
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            placed, place = inputs.to(passes.device), near(passes.device)
            hidden = fillings(self.hidden, placed)
            assert isinstance(hidden, Tensor)
            value = passes.values(placed, torch.arange(len(placed)))
            drawn = Masks.drawn(self.masks, tuple(inputs.shape[2:]), self.cells, self.shown, self.seed)
            means = [Moments() for _ in range(len(placed))]
            with Progress(len(placed) * self.masks, "RISE", unit="passes") as meter:
                for part in passes.slices(self.masks):
                    seen = drawn.at(part, passes.device)
                    for i, moments in enumerate(means):
                        variants = torch.lerp(hidden[i], placed[i], seen[:, None].to(placed))
                        with torch.no_grad():
                            found = passes.value(variants, torch.full((len(seen),), i, device=passes.device))
                        weighed = seen.to(place) * found.to(place).double().view(-1, *[1] * (seen.ndim - 1))
                        moments.add(weighed / self.shown)
                        meter.advance(len(seen))
            values, errors = (
                torch.stack(each)[:, None].expand(inputs.shape).to(inputs).contiguous()
                for each in ([m.mean for m in means], [(m.variance / m.count).sqrt() for m in means])
            )
            told = {"standard_error": errors}
            return passes.attribution(self, inputs, values, value.to(inputs), diagnostics=told, signed=False)

    def _check(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> None:
        with_places(inputs, "RISE needs")
        if score.beside is not None and (len(score.beside.names) > 1 or score.beside.layers):
            raise InputError("RISE masks the places of one image, series or volume: use FeatureAblation() for tokens.")
        if self.masks < 2 or self.cells < 1 or not 0 < self.shown < 1:
            raise InputError(
                "RISE needs two masks or more, a cell or more, and a probability between 0 and 1, "
                f"got {self.masks}, {self.cells} and {self.shown}."
            )


@dataclass(frozen=True, eq=False)
class Masks:
    """Random masks, made when they are asked for.

    Attributes:
        grids: which cells are shown, one more along each axis than fit on it, for the shift.
        shifts: by how many places each mask begins inside of its first cell.
        size: of the places.
    """

    grids: Bool[Tensor, "masks *grid"]
    shifts: Int[Tensor, "masks axes"]
    size: tuple[int, ...]

    @classmethod
    def drawn(cls, count: int, size: tuple[int, ...], cells: int, shown: float, seed: int) -> "Masks":
        """Draw masks for places of a size."""
        generator = torch.Generator().manual_seed(seed)
        grids = torch.rand(count, *[cells + 1] * len(size), generator=generator) < shown
        within = [torch.randint(-(-length // cells), (count,), generator=generator) for length in size]
        return cls(grids, torch.stack(within, 1), size)

    def at(self, part: slice, device: torch.device) -> Float[Tensor, "k *size"]:
        """Return some of the masks in float64, or float32 where a device has none: 1 where all is shown."""
        dtype = torch.float64 if near(device) == device else torch.float32
        found = self.grids[part].to(device, dtype)
        for axis, length in enumerate(self.size):
            cells = self.grids.shape[1 + axis]
            weights = interpolation(length, cells, self.shifts[part, axis].to(device), dtype)
            along = found.movedim(1 + axis, -1)
            of_each = weights.view(len(found), *[1] * (found.ndim - 2), length, cells)
            found = (of_each @ along[..., None])[..., 0].movedim(-1, 1 + axis)
        return found


def interpolation(length: int, cells: int, shifts: Int[Tensor, " k"], dtype: torch.dtype) -> Float[Tensor, "k length cells"]:
    """Return the weight of each cell at each place of an axis: linear between the cells' centres, constant outside of these.

    The cells, one more than cover the axis, begin so many places before it.
    """
    side = -(-length // (cells - 1))
    places = torch.arange(length, device=shifts.device) + shifts[:, None]
    at = ((places.to(dtype) + 0.5) / side - 0.5).clamp(0, cells - 1)
    return (1 - (at[..., None] - torch.arange(cells, device=shifts.device)).abs()).clamp(min=0)
