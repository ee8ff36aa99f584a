"""A layer's activations as rows: one for each example, or one for each place of each example."""

import math
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.data.examples import Examples, Subset, as_examples
from probing.models.geometry import Layout
from probing.models.hooks import takes_masks
from probing.models.layers import resolve, split_call
from probing.models.loading import Model, module_of
from probing.store.store import ActivationStore

Places = Literal["each", "mean"]
"""One row for each place of a map and each token, or one for each example: the mean over its places."""
IN_MEMORY = 1 << 29
"""Bytes of rows up to which they are held in memory; more lie in a temporary file, mapped into memory page by page."""
_AT_ONCE = 64


class RowsError(ProbingError, ValueError):
    """A layer's outputs that make no rows as asked for."""


@dataclass(frozen=True)
class Cells:
    """How a layer's output is cut into rows, and put together again."""

    kind: Literal["vector", "map", "map with channels last", "tokens"]
    shape: tuple[int, ...]
    """Of the places of one example: rows and columns of a map or of its patches, tokens, or nothing."""

    @classmethod
    def of(
        cls, model: nn.Module, one: Tensor, layer: str, shape: Sequence[int], grid: tuple[int, int] | None = None
    ) -> "Cells":
        """Return how a layer's output is cut.

        Args:
            model: in evaluation mode.
            one: an example.
            layer: an address.
            shape: of the layer's output for it, without the axis of examples.
            grid: rows and columns of patches, where the number of tokens does not tell.

        Raises:
            RowsError: for outputs that are neither vectors nor maps nor tokens, and for tokens of which some are padding.
            probing.models.geometry.RefusedError: if it can't be told which axis of a map holds channels.
        """
        if len(shape) == 1:
            return cls("vector", ())
        if one.ndim == 4:
            layout = Layout.of(model, one, layer, grid)
            kind = {"channels_first": "map", "channels_last": "map with channels last"}.get(layout.kind, "tokens")
            return cls(kind, (layout.height, layout.width))  # type: ignore[arg-type]  # one of the four
        if len(shape) != 2:
            raise RowsError(f"layer {layer!r} returns {tuple(shape)} for an example, which is no map and no tokens.")
        if takes_masks(model):
            raise RowsError(
                f"which tokens of layer {layer!r} are padding is not known of stored rows: take places='mean', which "
                "leaves padding out."
            )
        return cls("tokens", (shape[0],))

    @property
    def places(self) -> int:
        """Places of an example."""
        return math.prod(self.shape)

    def rows(self, output: Float[Tensor, "n ..."]) -> Float[Tensor, "n places m"]:
        """Return an output as rows; tokens before the patches are left out."""
        if self.kind == "vector":
            return output[:, None]
        if self.kind == "tokens":
            return output[:, output.shape[1] - self.places :]
        return (output.movedim(1, -1) if self.kind == "map" else output).flatten(1, -2)

    def put(self, output: Float[Tensor, "n ..."], rows: Float[Tensor, "n places m"]) -> Float[Tensor, "n ..."]:
        """Return an output with other rows in their places; tokens before the patches stay."""
        rows = rows.to(output)
        if self.kind == "vector":
            return rows[:, 0]
        if self.kind == "tokens":
            return torch.cat([output[:, : output.shape[1] - self.places], rows], 1)
        maps = rows.reshape(len(rows), *self.shape, rows.shape[2])
        return maps.movedim(-1, 1) if self.kind == "map" else maps


@dataclass(frozen=True, eq=False)
class LayerRows:
    """Rows of a layer, example by example and place by place."""

    values: Float[Tensor, "rows m"]
    examples: int
    cells: Cells | None
    """How outputs are cut into these rows; None for means."""

    @property
    def places(self) -> int:
        """Rows of an example."""
        return len(self.values) // self.examples

    def of(self, examples: Sequence[int]) -> "LayerRows":
        """Return the rows of some examples."""
        index = torch.as_tensor(list(examples), dtype=torch.long)
        rows = (index[:, None] * self.places + torch.arange(self.places)).flatten()
        return LayerRows(self.values[rows], len(index), self.cells)


def read_rows(
    store: ActivationStore,
    model: Model,
    layer: str,
    examples: Examples,
    places: Places = "each",
    *,
    grid: tuple[int, int] | None = None,
) -> LayerRows:
    """Read a layer's rows from a store, in memory that does not grow with their number beyond `IN_MEMORY`.

    Args:
        store: reads activations and keeps them.
        model: in evaluation mode.
        layer: a dotted path.
        examples: in whose order the rows come.
        places: one row for each place (a layer that returns vectors has one), or the mean over places.
        grid: rows and columns of patches, where the number of tokens does not tell.

    Raises:
        RowsError: for outputs that make no rows.

    Example:
        >>> rows = read_rows(store, net, "layer3", images)
        >>> rows.values.shape  # 12 examples of 4 x 4 places
        torch.Size([192, 64])
    """
    model, examples = module_of(model), as_examples(examples)
    resolve(model, split_call(layer)[0])  # a glob may name several
    one = examples.load([0])
    if places == "mean":
        pooled = store.activations(model, [layer], examples, pool="mean")[layer]
        return LayerRows(pooled.cpu().flatten(1).float(), len(examples), None)
    cells, values = None, torch.empty(0)
    for start in range(0, len(examples), _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, len(examples)))
        output = store.activations(model, [layer], Subset(examples, some))[layer].cpu()
        cells = cells or Cells.of(model, one_tensor(one), layer, output.shape[1:], grid)
        rows = cells.rows(output).flatten(0, 1)
        if not start:
            values = _empty(len(rows) // len(some) * len(examples), rows.shape[1])
        first = start * (len(rows) // len(some))
        values[first : first + len(rows)] = rows
    return LayerRows(values, len(examples), cells)


def _empty(rows: int, features: int) -> Float[Tensor, "rows features"]:
    """Return room for rows: in memory, or in a file that goes when they do."""
    if rows * features * 4 <= IN_MEMORY:
        return torch.empty(rows, features)
    with tempfile.NamedTemporaryFile(prefix="probing-rows-", delete=False) as file:
        path = Path(file.name)
    mapped: Tensor = torch.from_file(str(path), shared=True, size=rows * features, dtype=torch.float32)
    weakref.finalize(mapped.untyped_storage(), path.unlink, missing_ok=True)
    return mapped.view(rows, features)
