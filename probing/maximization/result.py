"""What activation maximisation returns: images, how they came about, and what they stand beside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from probing.maximization.pixel_space import Space, picture
from probing.results.figures import Strip, montage
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Beside:
    """Where synthetic images stand among data; NaN and -1 for objectives that single pictures have no value of.

    A synthetic image may exceed every natural activation, and still resemble none.
    """

    examples: str
    """Content id of the data."""
    percentile: Float[Tensor, " n"]
    """Share of examples, in percent, whose value is below the image's."""
    highest: Float[Tensor, "n k"]
    """The largest values among examples, in descending order."""
    top: Int[Tensor, "n k"]
    """The examples that have them."""
    nearest: Int[Tensor, "n k"]
    """The examples most like the image in the layer the objective reads, by cosine of mean activations."""
    cosine: Float[Tensor, "n k"]
    """Their cosines."""


@dataclass(frozen=True)
class Maximization(Result):
    """Images that raise objectives, in the order of the objectives."""

    images: Float[Tensor, "n c h w"]
    """After the last step, in model space; flat, at the preprocessing's mean, where `dead`."""
    best: Float[Tensor, "n c h w"]
    """At the step of the highest value in `trace`."""
    names: tuple[str, ...]
    """What each image raises."""
    objective: tuple[int, ...]
    """Which objective each image belongs to."""
    activation: Float[Tensor, " n"]
    """Value of the objective at `images`, seen without random views and without penalties."""
    trace: Float[Tensor, "n steps"]
    """Value at each step, as seen through that step's random view."""
    norms: Float[Tensor, "n steps"]
    """L2 norm of the image in model space."""
    gradient_norms: Float[Tensor, "n steps"]
    """L2 norm of the objective's gradient with respect to the image, in model space."""
    dead: Bool[Tensor, " n"]
    """Whether the gradient was zero at every step: the unit can't be raised from there, and there is no image."""
    space: Space
    """How model space is seen from pixels."""
    batch: int
    """Images of the largest pass."""
    notes: tuple[str, ...] = ()
    """What did not go as asked for, in sentences."""
    beside: Beside | None = None
    """Where the images stand among data."""

    @property
    def pixels(self) -> Float[Tensor, "n c h w"]:
        """The images as pixels in [0, 1], red first; what no picture can hold is clipped."""
        return self.space.decode(self.images).clamp(0, 1)

    def part(self, indices: Sequence[int]) -> "Maximization":
        """Return some of the images, as if they had been made alone."""
        rows = list(indices)
        beside = None
        if self.beside is not None:
            beside = replace(self.beside, **{n: getattr(self.beside, n)[rows] for n in _PLACES})
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _PER_IMAGE},
            names=tuple(self.names[i] for i in rows),
            objective=_counted([self.objective[i] for i in rows]),
            beside=beside,
        )

    def pictures(self) -> list[Image.Image]:
        """Return the images as 8-bit RGB pictures."""
        return [picture(pixels) for pixels in self.pixels]

    def captions(self) -> list[str]:
        """Return a short caption for each image: its name, its value, and where that stands among data."""
        found = []
        for i, name in enumerate(self.names):
            text = f"{name}\n"
            text += "no gradient" if self.dead[i] else f"{float(self.activation[i]):.3g}"
            if self.beside is not None and not torch.isnan(self.beside.percentile[i]):
                text += f" (> {float(self.beside.percentile[i]):.4g} %)"
            found.append(text)
        return found

    def sentences(self) -> tuple[str, ...]:
        """Return what did not go as asked for."""
        return self.notes

    def plot(self, title: str = "", *, columns: int = 8) -> "Figure":
        """Return all images with their values, a contact sheet; `title` says what they are of."""
        title = title or f"Activation maximisation, {self.trace.shape[1]} steps"
        return montage([Strip(title, self.pictures(), self.captions())], columns=columns)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per image, without the images."""
        import pandas as pd

        columns: dict[str, Any] = {
            "name": self.names,
            "objective": self.objective,
            "activation": self.activation.tolist(),
            "first": self.trace[:, 0].tolist(),
            "highest": self.trace.amax(1).tolist(),
            "norm": self.norms[:, -1].tolist(),
            "dead": self.dead.tolist(),
        }
        if self.beside is not None:
            columns["percentile"] = self.beside.percentile.tolist()
        return pd.DataFrame(columns)


_PER_IMAGE = ("images", "best", "activation", "trace", "norms", "gradient_norms", "dead")
_PLACES = ("percentile", "highest", "top", "nearest", "cosine")


def joined(parts: Sequence[Maximization]) -> Maximization:
    """Return images of several runs with equal settings as one result; the first tells the rest."""
    first, beside = parts[0], [part.beside for part in parts]
    objectives = [(p, i) for p, part in enumerate(parts) for i in part.objective]
    places = [b for b in beside if b is not None]
    whole: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in _PER_IMAGE}
    if len(places) == len(parts):
        rows: dict[str, Any] = {n: torch.cat([getattr(b, n) for b in places]) for n in _PLACES}
        whole["beside"] = replace(places[0], **rows)
    return replace(
        first,
        **whole,
        names=tuple(name for part in parts for name in part.names),
        objective=_counted(objectives),
        batch=max(part.batch for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _counted(labels: Sequence[object]) -> tuple[int, ...]:
    """Return each label's number, in order of appearance."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return tuple(numbers[label] for label in labels)
