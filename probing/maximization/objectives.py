"""What an image is to raise: a unit, a class, a direction, a whole layer, likeness to another image.

Objectives add, subtract and scale: `Channel("layer3", 5) - 0.5 * Channel("layer3", 9)`. Each gives one
number per image, so that many, each with its own image, share one pass.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError, ProbingError
from probing.maximization.objective import Objective, Seen, Values
from probing.models.scores import class_scores


class UnitError(ProbingError, IndexError):
    """A unit, a position or a direction does not fit the layer."""


@dataclass(frozen=True)
class Logit(Objective):
    """A class's score before softmax: a probability can also rise by lowering the other classes.

    Attributes:
        target: the class.
        label: what it is called; the same class by another name is the same objective.
    """

    target: int
    label: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return self.label or f"class {self.target}"

    @property
    def layers(self) -> tuple[str, ...]:
        return ("",)

    def __call__(self, seen: Seen) -> Values:
        return _unit(class_scores(seen.layers[""]), self.target, "the model's output")


@dataclass(frozen=True)
class LayerObjective(Objective):
    """What is computed of one layer's output.

    Attributes:
        layer: returns `[n, units]`, maps `[n, units, h, w]`, or tokens `[n, tokens, units]`.
    """

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)


@dataclass(frozen=True, eq=False)
class _PictureObjective(LayerObjective):
    """What compares a layer's output with that for a picture.

    Attributes:
        image: in model space, of the size of the images.
    """

    image: Float[Tensor, "c h w"]

    @property
    def references(self) -> tuple[Tensor, ...]:
        return (self.image,)


@dataclass(frozen=True)
class Channel(LayerObjective):
    """The mean of a unit over positions.

    Attributes:
        unit: counts from 0.
        last: whether units are the last axis of maps also where that can't be inferred or measured.
    """

    unit: int
    last: bool = False

    @property
    def name(self) -> str:
        return f"{self.layer}:{self.unit}"

    def __call__(self, seen: Seen) -> Values:
        rows = seen.by_unit(self.layer, last=self.last)
        return _unit(rows, self.unit, f"layer {self.layer!r}").mean(1)


@dataclass(frozen=True)
class Neuron(LayerObjective):
    """A unit at one position of a map.

    Attributes:
        at: row and column; the centre by default, the lower right one of four.
    """

    unit: int
    at: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        place = "" if self.at is None else f" at {self.at[0]},{self.at[1]}"
        return f"{self.layer}:{self.unit} neuron{place}"

    def __call__(self, seen: Seen) -> Values:
        maps = _maps(seen.layers[self.layer], self.layer, "neuron", "channel")
        if self.layer in seen.last:
            maps = maps.movedim(-1, 1)
        height, width = maps.shape[2:]
        row, column = self.at or (height // 2, width // 2)
        if not (0 <= row < height and 0 <= column < width):
            raise UnitError(
                f"position {self.at} is outside the maps of layer {self.layer!r}, "
                f"{height} x {width} for images of this size."
            )
        return _unit(maps, self.unit, f"layer {self.layer!r}")[:, row, column]


@dataclass(frozen=True, eq=False)
class Direction(LayerObjective):
    """A direction among a layer's units, such as a CAV: `mean ⟨a, v⟩ · max(0.1, cos)^power`, over positions.

    Olah et al. 2017; a power of cosine keeps the activation near the direction itself (lucid,
    `objectives_util.py`).

    Attributes:
        vector: one number per unit.
        cosine_power: 0 for the plain product.
        label: what the direction stands for.
        last: as of `Channel`.
    """

    vector: Float[Tensor, " units"]
    cosine_power: float = 0.0
    label: str = "direction"
    last: bool = False

    @property
    def name(self) -> str:
        return f"{self.layer} {self.label}"

    def __call__(self, seen: Seen) -> Values:
        rows = seen.by_unit(self.layer, last=self.last)
        if self.vector.shape != rows.shape[1:2]:
            raise UnitError(
                f"the direction {self.label!r} has {len(self.vector)} components, layer {self.layer!r} has "
                f"{rows.shape[1]} units."
            )
        vector = self.vector.to(rows).expand(rows.shape[:2]).unsqueeze(2)
        return _aligned(rows, vector, self.cosine_power).mean(1)


@dataclass(frozen=True, eq=False)
class TensorDirection(LayerObjective):
    """A direction in the whole output of a layer, positions included, such as a CAV of flattened maps: `⟨a, v⟩`.

    Attributes:
        tensor: of the layer's shape for one image of the size asked for.
    """

    tensor: Float[Tensor, "..."]
    label: str = "direction"

    @property
    def name(self) -> str:
        return f"{self.layer} {self.label}"

    def __call__(self, seen: Seen) -> Values:
        rows = seen.layers[self.layer]
        if rows.shape[1:] != self.tensor.shape:
            raise UnitError(
                f"the direction {self.label!r} has shape {tuple(self.tensor.shape)}, layer {self.layer!r} returns "
                f"{tuple(rows.shape[1:])} for images of this size: choose the size, or no Pad."
            )
        return (rows * self.tensor.to(rows)).flatten(1).sum(1)


@dataclass(frozen=True)
class Layer(LayerObjective):
    """The mean square of all of a layer's activations: what is there already grows (DeepDream)."""

    @property
    def name(self) -> str:
        return self.layer

    def __call__(self, seen: Seen) -> Values:
        return seen.layers[self.layer].flatten(1).square().mean(1)


@dataclass(frozen=True)
class Diversity(LayerObjective):
    """How unlike several images of one objective are: minus the mean product of their Gram matrices.

    Olah et al. 2017, with each Gram matrix scaled to norm 1. Added to another objective:
    `Channel("layer3", 5) + 10 * Diversity("layer3", 4)`.

    Attributes:
        count: of images, at least 2.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ArgumentError(f"diversity needs at least 2 images, got {self.count}.")

    @property
    def name(self) -> str:
        return f"{self.layer} diversity"

    @property
    def images(self) -> int:
        return self.count

    def __call__(self, seen: Seen) -> Values:
        maps = seen.by_unit(self.layer)
        gram = (maps @ maps.mT).flatten(1)
        norms: Tensor = gram.norm(dim=1, keepdim=True)
        gram = gram / norms.clamp(min=1e-12)
        alike: Tensor = (gram @ gram.T).fill_diagonal_(0)
        return -alike.sum(1) / (len(maps) - 1)


@dataclass(frozen=True, eq=False)
class Caricature(_PictureObjective):
    """A picture with what a layer sees in it exaggerated: `mean ⟨a, b⟩ · max(0.1, cos)^power`, `b` the picture's.

    Attributes:
        image: in model space, of the size of the images.
    """

    cosine_power: float = 4.0

    @property
    def name(self) -> str:
        return f"{self.layer} caricature"

    def __call__(self, seen: Seen) -> Values:
        rows = seen.by_unit(self.layer)
        other = seen.by_unit(self.layer, image=self.image)
        return _aligned(rows, other.expand_as(rows), self.cosine_power).mean(1)


@dataclass(frozen=True, eq=False)
class FeatureInversion(_PictureObjective):
    """What a layer keeps of a picture: minus the relative squared distance to its activations.

    Mahendran & Vedaldi 2015, eq. 2.

    Attributes:
        image: in model space, of the size of the images.
    """

    @property
    def name(self) -> str:
        return f"{self.layer} inversion"

    def __call__(self, seen: Seen) -> Values:
        other = seen.reference(self.image, self.layer)
        distance = (seen.layers[self.layer] - other).flatten(1).square().sum(1)
        return -distance / other.square().sum().clamp(min=1e-12)


def _unit(rows: Tensor, unit: int, where: str) -> Tensor:
    if not 0 <= unit < rows.shape[1]:
        raise UnitError(f"unit {unit} is out of range: {where} has {rows.shape[1]} units, 0 to {rows.shape[1] - 1}.")
    return rows[:, unit]


def _maps(rows: Tensor, layer: str, objective: str, instead: str) -> Tensor:
    if rows.ndim != 4:
        raise UnitError(
            f"a {objective} needs maps [n, units, h, w], layer {layer!r} returns {tuple(rows.shape)}: use a {instead}."
        )
    return rows


def _aligned(
    rows: Float[Tensor, "n units positions"],
    other: Float[Tensor, "n units *positions"],
    power: float,
) -> Float[Tensor, "n positions"]:
    product = (rows * other).sum(1)
    if power == 0:
        return product
    norms = (rows.square().sum(1) * other.square().sum(1)).clamp(min=1e-24).sqrt()
    return product * (product / norms).clamp(min=0.1) ** power
