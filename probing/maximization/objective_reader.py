"""One pass for many objectives: each reads its own rows, and the pass ends after the deepest layer asked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.maximization.objective import Objective, Seen
from probing.maximization.redirect import Redirected
from probing.models.consistency import refuse_inconsistent
from probing.models.geometry import channel_axis
from probing.models.hooks import capture
from probing.models.model_cache import remembered
from probing.models.precision import Precision, Prepared, frozen_copy


class ImageSizeError(ProbingError, ValueError):
    """A network can't take images of the size asked for."""


@dataclass(eq=False)
class Reader:
    """What is read from a model, by a copy that is prepared at the first views; half precision runs in float32."""

    model: nn.Module
    objectives: Sequence[Objective]
    layers: tuple[str, ...]
    precision: Precision
    device: torch.device

    prepared: Prepared | None = None
    _axes: dict[tuple[str, torch.Size], int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        objectives: Sequence[Objective],
        precision: Precision,
        device: torch.device,
    ) -> "Reader":
        """Read a model for some objectives."""
        layers = tuple(dict.fromkeys(layer for o in objectives for layer in o.layers))
        return cls(model, objectives, layers, precision, device)

    def rows(self) -> tuple[Int[Tensor, " rows"], list[Tensor]]:
        """Return which image each row of a pass is seen like, and the pictures that are rows too."""
        index: list[int] = []
        pictures: list[Tensor] = []
        start = 0
        for objective in self.objectives:
            index += range(start, start + objective.images)
            index += [start] * len(objective.references)
            pictures += objective.references
            start += objective.images
        return torch.tensor(index), pictures

    def values(self, views: Float[Tensor, "rows c h w"], *, redirect: bool = False) -> Float[Tensor, " n"]:
        """Return the value of each image, differentiable with respect to the views.

        Args:
            views: rows in the order of `rows`.
            redirect: let gradients through closed rectifiers.

        Raises:
            ImageSizeError: if the model can't take them.
            LayerCallError: for a layer that can't be read.
            UnitError: for a unit that is not there.
        """
        gates: AbstractContextManager[object] = Redirected() if redirect else nullcontext()
        with self._naming_size(views):
            ready = self.prepared or self._prepare(views.shape[1:])
            kept = self._run(ready, views, gates)
        counts = [o.images + len(o.references) for o in self.objectives]
        last = [n for n in self.layers if self._has_last(n, kept[n], views)]
        split = {n: torch.split(_wide(kept[n]), counts) for n in self.layers}
        found = []
        for i, objective in enumerate(self.objectives):
            mine = {layer: split[layer][i] for layer in objective.layers}
            images = {n: rows[: objective.images] for n, rows in mine.items()}
            others = [
                (picture, {n: rows[objective.images + j][None] for n, rows in mine.items()})
                for j, picture in enumerate(objective.references)
            ]
            found.append(objective(Seen(images, others, last)))
        return torch.cat(found)

    def _prepare(self, shape: torch.Size) -> Prepared:
        # Not the views themselves: they begin nearly grey, where a wrong copy is hardly told from a right one.
        views = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        refuse_inconsistent(self.model, views, self.device)
        halves = {torch.float16, torch.bfloat16}
        model = self.model
        if any(t.dtype in halves for t in (*model.parameters(), *model.buffers())):
            model = frozen_copy(model).float()
        key = ("maximized", self.precision, self.layers, self.device)
        self.prepared = remembered(
            self.model,
            key,
            lambda: self.precision.prepare(model, self.layers, self.device, views),
        )
        return self.prepared

    def _has_last(self, layer: str, output: Tensor, views: Tensor) -> bool:
        """Whether a layer returns maps with their channels last."""
        if output.ndim != 4:
            return False
        known = self._axes.get((layer, views.shape[1:]))
        if known is None:
            # Noise, as flat views tell nothing of places.
            image = torch.randn(1, *views.shape[1:], generator=torch.Generator().manual_seed(0))
            known = self._axes[layer, views.shape[1:]] = channel_axis(self.model, image, layer) or 1
        return known == -1

    def _run(self, ready: Prepared, views: Tensor, gates: AbstractContextManager[object]) -> Mapping[str, Tensor]:
        layers = self.layers
        rows = len(views)
        with (
            gates,
            ready.arithmetic(),
            capture(ready.model, layers, graph=True, stop=True, rows=rows) as kept,
        ):
            ready.model(ready.inputs(views))
        return kept

    @contextmanager
    def _naming_size(self, views: Tensor) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, ProbingError) or out_of_memory(error):
                raise
            shape = " x ".join(map(str, views.shape[1:]))
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ImageSizeError(
                f"{type(self.model).__name__} fails on images of {shape} ({reason}): choose a size and a space "
                "that it takes; Pad makes what it sees larger than the image."
            ) from error


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error is an allocator's, on an accelerator or on the host."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()
