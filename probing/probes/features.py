"""Which layers can be probed, and their reduced rows: all layers from one sweep, or streamed where rows are too many."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import Batch, one_tensor
from probing.data.examples import ExampleSet
from probing.models.geometry import units_axis
from probing.models.layers import expand, resolve, split_call
from probing.models.model_cache import unchanged
from probing.models.precision import device_of
from probing.models.summary import calls, summarize
from probing.probes.feature_tables import MemoryTable, StreamedTable, Table
from probing.probes.reduction import Reduction, refuse_size
from probing.store.requests import Request
from probing.store.store import ActivationStore

INPUT = "(input)"
"""What stands for the examples themselves among the layers."""
_INPUT_BATCH = 64


class ProbeLayerError(ProbingError, LookupError):
    """There is no layer to probe."""


@dataclass(frozen=True)
class LayerShape:
    """A layer to probe: its path, what it returns for one example, and how that is reduced.

    Maps have their channels first here, and series last as tokens have them, also where the layer returns them `turned`.
    """

    path: str
    shape: tuple[int, ...]
    reduction: Reduction
    turned: bool = False

    def reduced(self, outputs: Float[Tensor, "k *shape"]) -> Float[Tensor, "k m"]:
        """Reduce rows as the store returns them."""
        if not self.turned or outputs.ndim < 3:
            return self.reduction(outputs)
        return self.reduction(outputs.mT if outputs.ndim == 3 else outputs.movedim(-1, 1))

    @property
    def features(self) -> int:
        """How many features the probe gets."""
        return self.reduction.size(self.shape)


@dataclass(frozen=True)
class Reader:
    """How rows are read.

    Attributes:
        reduction: of each layer's output.
        oversized: what stands in where that leaves more than `most` features; None: such a layer is refused.
        most: features.
        memory_bytes: rows of layers are read together up to this size; a layer with more is streamed.
    """

    reduction: Reduction
    oversized: Reduction | None
    most: int
    memory_bytes: int

    def layers(
        self,
        model: nn.Module,
        patterns: Sequence[str] | None,
        examples: ExampleSet,
        *,
        inputs: bool,
    ) -> tuple[LayerShape, ...]:
        """Return the layers that paths and globs name; for None all that can be read and have no layers inside.

        Raises:
            LayerNotFoundError: if a path or glob matches nothing that can be read.
            ProbeLayerError: if what it names returns no features.
            FeatureSizeError: for a layer with too many features.
        """
        first = examples.load([0])
        rows = {row.path: row for row in summarize(model, first.to(device_of(model)))}
        shapes = (
            {INPUT: tuple(first.shape[1:])} if inputs and isinstance(first, Tensor) and first.is_floating_point() else {}
        )
        for path in _paths(model, patterns, first):
            output = rows[split_call(path)[0]].output
            if not (isinstance(output, tuple) and output):
                raise ProbeLayerError(
                    f"layer {path!r} returns {output or 'no features'}, and a probe needs a tensor with features: choose "
                    "a layer around it, or after it."
                )
            shapes[path] = output
        with unchanged(model):
            return tuple(
                self._shaped(path, shape, len(examples), turned=_is_turned(model, first, path))
                for path, shape in shapes.items()
            )

    def tables(
        self,
        store: ActivationStore,
        model: nn.Module,
        layers: Sequence[LayerShape],
        examples: ExampleSet,
    ) -> Iterator[Mapping[str, Table]]:
        """Yield reduced rows of some layers at a time, as many as fit into memory together."""
        for group in self._groups(layers, examples):
            yield self._read(store, model, group, examples)

    def requests(self, model: nn.Module, layers: Sequence[LayerShape], examples: ExampleSet) -> Iterator[Request]:
        """Yield what `tables` asks of the store, in its order."""
        for group in self._groups(layers, examples):
            for pool, members in _by_pool(group).items():
                if pool:
                    paths = tuple(layer.path for layer in members)
                    yield Request(model, paths, examples, members[0].reduction.pool)

    def _groups(self, layers: Sequence[LayerShape], examples: ExampleSet) -> Iterator[list[LayerShape]]:
        group: list[LayerShape] = []
        for layer in layers:
            if group and self._bytes([*group, layer], examples) > self.memory_bytes:
                yield group
                group = []
            group.append(layer)
        if group:
            yield group

    def _shaped(self, path: str, shape: tuple[int, ...], examples: int, *, turned: bool) -> LayerShape:
        layer = LayerShape(path, (shape[-1], *shape[:-1]) if turned else shape, self.reduction, turned)
        if layer.features > self.most and self.oversized is not None:
            layer = replace(layer, reduction=self.oversized)
        refuse_size(path, layer.features, examples, self.most)
        return layer

    def _bytes(self, layers: Sequence[LayerShape], examples: ExampleSet) -> int:
        return sum(layer.features for layer in layers) * 4 * len(examples)

    def _read(
        self,
        store: ActivationStore,
        model: nn.Module,
        layers: Sequence[LayerShape],
        examples: ExampleSet,
    ) -> Mapping[str, Table]:
        if self._bytes(layers, examples) > self.memory_bytes:  # then it is one layer
            [layer] = layers
            return {
                layer.path: StreamedTable(
                    lambda: ((p, r[layer.path]) for p, r in _batches(store, model, layers, examples)),
                    len(examples),
                )
            }
        kept: dict[str, Tensor] = {}
        for positions, rows in _batches(store, model, layers, examples):
            for path, part in rows.items():
                if path not in kept:
                    kept[path] = part.new_empty(len(examples), part.shape[1])
                kept[path][positions] = part
        return {layer.path: MemoryTable(kept[layer.path]) for layer in layers}


def _paths(model: nn.Module, patterns: Sequence[str] | None, first: Batch) -> list[str]:
    paths = expand(model, ["*"] if patterns is None else patterns, lambda: calls(model, first))
    if patterns is not None:
        return list(paths)
    leaves = [p for p in paths if not any(True for _ in resolve(model, p).children())]
    if not leaves:
        raise ProbeLayerError(
            f"no layer of {type(model).__name__} without layers inside runs once and returns a tensor: name layers one "
            "by one; 'probing layers' lists them."
        )
    return leaves


def _is_turned(model: nn.Module, first: Batch, path: str) -> bool:
    """Whether a layer returns maps with channels last, or a series with channels first."""
    if path == INPUT:
        return False
    axes, axis = units_axis(model, first, path)
    return axis == (1 if axes == 3 else -1) and axes > 2


def _batches(
    store: ActivationStore, model: nn.Module, layers: Sequence[LayerShape], examples: ExampleSet
) -> Iterator[tuple[Int[Tensor, " k"], dict[str, Float[Tensor, "k m"]]]]:
    """Yield positions and reduced rows; all layers that share a pooling come from one sweep."""
    for kind, members in _by_pool(layers).items():
        if kind == "":
            yield from _inputs(members[0], examples)
            continue
        paths = [layer.path for layer in members]
        for positions, outputs in store.batches(model, paths, examples, pool=members[0].reduction.pool):
            reduced = {layer.path: layer.reduced(outputs[layer.path].cpu()) for layer in members}
            yield (
                torch.tensor(positions),
                {p: r if r.dtype == torch.float64 else r.float() for p, r in reduced.items()},
            )


def _by_pool(layers: Sequence[LayerShape]) -> dict[str, list[LayerShape]]:
    """Return layers by what the store keeps of them; the inputs, which it does not keep, under no name."""
    found: dict[str, list[LayerShape]] = {}
    for layer in layers:
        found.setdefault("" if layer.path == INPUT else layer.reduction.pool, []).append(layer)
    return found


def _inputs(layer: LayerShape, examples: ExampleSet) -> Iterator[tuple[Int[Tensor, " k"], dict[str, Float[Tensor, "k m"]]]]:
    for start in range(0, len(examples), _INPUT_BATCH):
        part = torch.arange(start, min(start + _INPUT_BATCH, len(examples)))
        yield part, {INPUT: layer.reduction(one_tensor(examples.load(part.tolist())).cpu().float())}
