"""What an objective is, and how objectives add, subtract, scale and go together."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ArgumentError

Values = Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What layers returned for one objective's images, and for the pictures it refers to."""

    layers: Mapping[str, Tensor]
    """Rows are the images."""
    references: Sequence[tuple[Tensor, Mapping[str, Tensor]]] = ()
    """Each picture with its own rows, seen through the same views."""
    last: Collection[str] = ()
    """Layers measured to return maps with channels last."""

    def by_unit(self, layer: str, *, image: Tensor | None = None, last: bool = False) -> Float[Tensor, "n units positions"]:
        """Return a layer's output by unit and position; of three axes the last holds units, as in tokens.

        Args:
            layer: its path.
            image: of a picture that is referred to; None: of the images.
            last: whether units are the last axis of maps also where that was not measured.
        """
        rows = self.layers[layer] if image is None else self.reference(image, layer)
        first = rows.movedim(-1, 1) if last or layer in self.last or rows.ndim == 3 else rows
        return first.flatten(2) if first.ndim > 2 else first.unsqueeze(2)

    def reference(self, image: Tensor, layer: str) -> Tensor:
        """Return a layer's output for a picture."""
        return next(rows[layer] for known, rows in self.references if known is image)


class Objective(ABC):
    """A frozen dataclass that says what an image is to raise."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name, for captions and files."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers it reads; `""` is the model's output."""

    @property
    def images(self) -> int:
        """How many images it is about."""
        return 1

    @property
    def references(self) -> tuple[Tensor, ...]:
        """Pictures in model space, `[c, h, w]`, that must be seen too."""
        return ()

    @property
    def on_data(self) -> bool:
        """Whether single pictures have a value too."""
        return self.images == 1 and not self.references

    @abstractmethod
    def __call__(self, seen: Seen) -> Values:
        """Return the value of each image, differentiable.

        Raises:
            UnitError: for a unit, position or direction that the layer does not have.
        """

    def __add__(self, other: "Objective") -> "Sum":
        return Sum((self, other))

    def __sub__(self, other: "Objective") -> "Sum":
        return Sum((self, -1.0 * other))

    def __mul__(self, factor: float | int) -> "Multiple":
        return Multiple(factor, self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> "Multiple":
        return Multiple(1 / divisor, self)

    def __neg__(self) -> "Multiple":
        return Multiple(-1.0, self)


@dataclass(frozen=True)
class Together(Objective):
    """Several objectives, each of an image of its own, that share what `image` shares."""

    parts: tuple[Objective, ...]

    def __post_init__(self) -> None:
        if bad := [part.name for part in self.parts if part.images != 1]:
            raise ArgumentError(f"only objectives of one image go together, {bad[0]!r} has more.")

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    @property
    def layers(self) -> tuple[str, ...]:
        return _union(self.parts)

    @property
    def images(self) -> int:
        return len(self.parts)

    @property
    def references(self) -> tuple[Tensor, ...]:
        return _references(self.parts)

    def __call__(self, seen: Seen) -> Values:
        rows = [{n: a[i : i + 1] for n, a in seen.layers.items()} for i in range(self.images)]
        found = [part(Seen(r, seen.references, seen.last)) for part, r in zip(self.parts, rows, strict=True)]
        return torch.cat(found)


@dataclass(frozen=True)
class Sum(Objective):
    """The sum of objectives."""

    terms: tuple[Objective, ...]

    def __post_init__(self) -> None:
        counts = {term.images for term in self.terms} - {1}
        if len(counts) > 1:
            raise ArgumentError(f"objectives of {sorted(counts)} images can't be added: give them the same number.")

    @property
    def name(self) -> str:
        return " + ".join(term.name for term in self.terms).replace("+ -", "- ")

    @property
    def layers(self) -> tuple[str, ...]:
        return _union(self.terms)

    @property
    def images(self) -> int:
        return max(term.images for term in self.terms)

    @property
    def references(self) -> tuple[Tensor, ...]:
        return _references(self.terms)

    def __call__(self, seen: Seen) -> Values:
        return torch.stack([term(seen) for term in self.terms]).sum(0)


@dataclass(frozen=True)
class Multiple(Objective):
    """An objective times a number; minus 1 minimises it."""

    factor: float | int
    of: Objective

    @property
    def name(self) -> str:
        inner = f"({self.of.name})" if isinstance(self.of, Sum) else self.of.name
        return f"-{inner}" if self.factor == -1 else f"{self.factor:g} {inner}"

    @property
    def layers(self) -> tuple[str, ...]:
        return self.of.layers

    @property
    def images(self) -> int:
        return self.of.images

    @property
    def references(self) -> tuple[Tensor, ...]:
        return self.of.references

    def __call__(self, seen: Seen) -> Values:
        return self.factor * self.of(seen)


def _union(parts: Sequence[Objective]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for part in parts for layer in part.layers))


def _references(parts: Sequence[Objective]) -> tuple[Tensor, ...]:
    return tuple({id(r): r for part in parts for r in part.references}.values())
