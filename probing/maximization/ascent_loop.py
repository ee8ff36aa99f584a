"""One batch of images on its way up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.errors import ProbingError
from probing.maximization.objective import Objective
from probing.maximization.objective_reader import Reader
from probing.maximization.optimizers import Ascent
from probing.maximization.parameterisations import Canvas, ImageOptionError
from probing.maximization.pixel_space import Space
from probing.maximization.regularizers import Operator, Penalty
from probing.maximization.result import Maximization
from probing.maximization.transforms import Pad, Transform, draw, viewed
from probing.results.result import Provenance


class ZeroGradientError(ProbingError, RuntimeError):
    """No objective has a gradient: there is nothing to climb."""


@dataclass(eq=False)
class Climb:
    """One batch on its way up.

    Attributes:
        reader: of the objectives' values.
        space: how pixels become inputs.
        canvas: the parameters, and how images are made of them.
        seeds: of the random views of each image.
        views: random transforms, in their order.
        regularizers: operators after each step, in their order, and penalties.
        ascent: how parameters are moved.
        steps: passes.
        redirect: first steps in which gradients pass closed rectifiers, for images that have none else.
    """

    reader: Reader
    space: Space
    canvas: Canvas
    seeds: Sequence[int]
    views: Sequence[Transform]
    regularizers: Sequence[Operator | Penalty]
    ascent: Ascent
    steps: int
    redirect: int

    def __post_init__(self) -> None:
        self._operators = [r for r in self.regularizers if isinstance(r, Operator)]
        self._penalties = [r for r in self.regularizers if isinstance(r, Penalty)]
        self._draws = draw(self.views, self.seeds, self.steps)
        self._index, pictures = self.reader.rows()
        self._pictures = torch.stack(pictures).to(self.reader.device) if pictures else None
        self._move = self.ascent.begin(self.canvas.parameters)
        self._redirected = min(self.redirect, self.steps - 1)
        self._traces: list[tuple[Tensor, Tensor, Tensor]] = []
        self._best_value: Tensor | None = None
        self._best = torch.empty(0)

    def __iter__(self) -> Iterator[int]:
        """Climb, yielding the number of each step done."""
        last = self.steps - 1
        for step in range(last + 1):
            image = self.canvas.render()
            value, slope = self._slope(image, step)
            self._keep(image.detach(), value, slope)
            if step < last:
                self._step(image, slope, step)
            yield step

    def _slope(self, image: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the objectives' values at a random view, and their gradient with respect to the image.

        In the first steps, images without a gradient get one through closed rectifiers.
        """
        value, slope = self._pulled(image, step)
        if step < self._redirected:
            asleep = (slope == 0).flatten(1).all(1)
            if asleep.any():
                _, through = self._pulled(image, step, redirect=True)
                slope = torch.where(asleep[:, None, None, None], through, slope)
        return value, slope

    def _pulled(self, image: Tensor, step: int, *, redirect: bool = False) -> tuple[Tensor, Tensor]:
        leaf = image.detach().requires_grad_()
        views = self._views(leaf, self._draws[step], self.views)
        value = self.reader.values(views, redirect=redirect)
        if not value.requires_grad:
            raise ZeroGradientError(f"no path leads from the image to {self.reader.objectives[0].name!r}.")
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    def _views(self, images: Tensor, draws: Tensor, transforms: Sequence[Transform]) -> Tensor:
        rows = images
        if self._pictures is not None:
            rows = _interleaved(images, self._pictures, self.reader.objectives)
            draws = draws[self._index]
        return viewed(rows, transforms, draws, self.space)

    def _keep(self, image: Tensor, value: Tensor, slope: Tensor) -> None:
        norms = [t.flatten(1).norm(dim=1) for t in (image, slope)]
        self._traces.append((value, norms[0], norms[1]))
        if self._best_value is None:
            self._best_value, self._best = value, image
            return
        better = value > self._best_value
        self._best_value = torch.where(better, value, self._best_value)
        self._best = torch.where(better[:, None, None, None], image, self._best)

    def _step(self, image: Tensor, slope: Tensor, step: int) -> None:
        total = slope
        if self._penalties:
            leaf = image.detach().requires_grad_()
            amount = torch.stack([p.amount(leaf) for p in self._penalties]).sum()
            total = slope - torch.autograd.grad(amount, leaf)[0]
        gradients = torch.autograd.grad(image, self.canvas.parameters, total)
        levels = self.canvas.levels
        with torch.no_grad():
            self._move(gradients)
            if levels is None:
                return
            contribution = slope * self.space.levels(slope)
            for operator in self._operators:
                levels.copy_(operator.after(levels, contribution, step, self.space))

    def result(self) -> Maximization:
        """Return what came of it; names and provenance are filled in by the caller."""
        with torch.no_grad():
            image = self.canvas.render().detach()
            margins = [t for t in self.views if isinstance(t, Pad)]
            still = self._views(image, self._draws[0], margins)
            with torch.enable_grad():  # the reader keeps a graph
                value = self.reader.values(still).detach()
        values, norms, slopes = (torch.stack(trace, 1) for trace in zip(*self._traces, strict=True))
        plain = slopes[:, self._redirected :]
        dead = (plain == 0).all(1)
        gone = dead[:, None, None, None]
        return Maximization(
            provenance=_UNKNOWN,
            images=image.masked_fill(gone, 0).cpu(),
            best=self._best.masked_fill(gone, 0).cpu(),
            names=(),
            objective=(),
            activation=value.cpu(),
            trace=values.cpu(),
            norms=norms.cpu(),
            gradient_norms=slopes.cpu(),
            dead=dead.cpu(),
            space=self.space,
            batch=len(image),
        )


_UNKNOWN = Provenance("", (), {}, "")


def _interleaved(images: Tensor, pictures: Tensor, objectives: Sequence[Objective]) -> Float[Tensor, "rows c h w"]:
    """Return images with the pictures that each objective refers to behind its own."""
    if pictures.shape[1:] != images.shape[1:]:
        raise ImageOptionError(
            f"the picture of {objectives[0].name!r} has shape {tuple(pictures.shape[1:])}, the images have "
            f"{tuple(images.shape[1:])}: give it their size."
        )
    rows: list[Tensor] = []
    shown = used = 0
    for goal in objectives:
        rows += [images[shown : shown + goal.images], pictures[used : used + len(goal.references)]]
        shown, used = shown + goal.images, used + len(goal.references)
    return torch.cat(rows)
