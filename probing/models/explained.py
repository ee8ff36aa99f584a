"""Which of a model's inputs are explained, and at which layer; the others go with their rows."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from probing.core.inputs import Batch, InputError, Inputs, kind_of, pieces
from probing.models.hooks import ModuleCall, record_calls
from probing.models.layers import split_call
from probing.models.model_cache import remembered
from probing.models.precision import AS_GIVEN, device_of


@dataclass(frozen=True, eq=False)
class Explained:
    """A batch of which some tensors are explained: methods change these, as points, and `join` puts the others beside them.

    Points of several explained inputs lie one after the other in one row, `[n, values]`; of one input they have its
    shape. Token ids are explained at the output of the layer that looks them up.

    Attributes:
        inputs: all of them, with a row per example.
        names: of those that are explained.
        layers: where token ids are explained, by name.
        shapes: of each explained input of one example, or of the layer's output.
    """

    inputs: Inputs
    names: tuple[str, ...]
    layers: dict[str, str]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, *, integers: bool = False) -> tuple["Explained", Tensor]:
        """Return what is explained of a batch, and the points `[n, …]` that explanations start from.

        Args:
            model: in evaluation mode.
            inputs: all of them.
            integers: whether token ids are points themselves, not what is looked up for them.

        Raises:
            InputError: if it can't be told which inputs are to be explained, or where token ids become numbers.
        """
        names = inputs.explained
        ids = [] if integers else [n for n in names if not inputs.tensors[n].is_floating_point()]
        layers = {n: _embedding(model, inputs, n) for n in ids}
        outputs = _outputs(model, inputs, layers)
        parts = [outputs[n] if n in outputs else inputs.tensors[n].detach() for n in names]
        points = parts[0]
        if len(parts) > 1:
            kind = reduce(torch.promote_types, (part.dtype for part in parts))
            if not all(part.is_floating_point() for part in parts):
                kind = torch.float64  # which holds any token id exactly
            points = torch.cat([part.to(points.device, kind).flatten(1) for part in parts], 1)
        return cls(inputs, names, layers, tuple(tuple(part.shape[1:]) for part in parts)), points

    def join(self, points: Shaped[Tensor, "m *shape"], rows: Int[Tensor, " m"] | None = None) -> Inputs:
        """Return the whole inputs of points.

        Args:
            points: of the explained inputs.
            rows: of which example each point is a variant; None if there is one of each, in their order.
        """
        if rows is None and len(points) != len(self.inputs):
            raise InputError(f"{len(points)} points of {len(self.inputs)} examples: it is not known whose they are.")
        beside = self.inputs[torch.arange(len(points)) if rows is None else rows]  # a copy, which may be overwritten
        tensors = {name: tensor.to(points.device) for name, tensor in beside.tensors.items()}
        parts = self.parts(points)
        put = {self.layers[name]: part for name, part in parts.items() if name in self.layers}
        named = {name: part.to(tensors[name].dtype) for name, part in parts.items() if name not in self.layers}
        return Inputs(tensors | named, self.inputs.explain, put, beside.tokens)

    def parts(self, values: Shaped[Tensor, "m *shape"]) -> dict[str, Tensor]:
        """Return points, or a map of them, by the names of the explained inputs, in their shapes."""
        return split_points(values, self.names, self.shapes)

    def at(self, rows: slice | Int[Tensor, " m"]) -> "Explained":
        """Return some of the examples."""
        return Explained(self.inputs[rows], self.names, self.layers, self.shapes)

    def placed(self, place: Callable[[Inputs], Inputs]) -> "Explained":
        """Return the same with its inputs where, and in the number format in which, the model takes them."""
        return Explained(place(self.inputs), self.names, self.layers, self.shapes)

    @property
    def read(self) -> Bool[Tensor, "n *shape"] | None:
        """Which values of the points are read, so that they broadcast to these; None where all are.

        Padding of texts is not, as far as the inputs hold a mask of it.
        """
        mask = self.inputs.read
        if mask is None or not self.layers or bool(mask.all()):
            return None
        fits = [
            shape[:1] == mask.shape[1:] and name in self.layers for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        parts = [
            mask.reshape(*mask.shape, *[1] * (len(shape) - 1)).expand(-1, *shape)
            if fit
            else mask.new_ones(len(mask), *shape)
            for fit, shape in zip(fits, self.shapes, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)


def split_points(
    values: Shaped[Tensor, "m *shape"], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return what lies one after the other in a row of points by name, in its own shape."""
    if len(names) == 1:
        return {names[0]: values}
    ends = list(accumulate(map(math.prod, shapes), initial=0))
    parts = (values[:, start:end] for start, end in pairwise(ends))
    return {n: part.reshape(len(values), *shape) for n, part, shape in zip(names, parts, shapes, strict=True)}


def _outputs(model: nn.Module, inputs: Inputs, layers: dict[str, str]) -> dict[str, Tensor]:
    """Return what the layers that look token ids up return, by the names of these."""
    if not layers:
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    for part in pieces(inputs, _AT_ONCE):
        for name, layer in layers.items():
            output = _recorded(model, part, split_call(layer)[0])[split_call(layer)[1] or 0].output
            assert isinstance(output, Tensor)
            found[name].append(output.to(inputs.device))
    return {name: torch.cat(parts) for name, parts in found.items()}


_AT_ONCE = 32  # examples


def _recorded(model: nn.Module, inputs: Batch, path: str | None = None) -> list[ModuleCall]:
    prepared = AS_GIVEN.prepare(model, (), device_of(model), inputs)
    with record_calls(prepared.model, path) as calls:
        prepared.output(inputs)
    return calls


def _embedding(model: nn.Module, inputs: Inputs, name: str) -> str:
    """Return the layer that looks token ids up: the innermost that takes these ids and returns numbers for each."""
    key = ("embedding", name, kind_of(inputs))
    return remembered(model, key, lambda: _measured_embedding(model, inputs, name))


def _measured_embedding(model: nn.Module, inputs: Inputs, name: str) -> str:
    one = inputs[:1]
    ids = _marked(one.tensors[name])
    calls = _recorded(model, Inputs({**one.tensors, name: ids}, one.explain))
    taking: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()
    for call in calls:
        number = seen[call.path]
        seen[call.path] += 1
        output = call.output
        takes = any(isinstance(t, Tensor) and _same_ids(t, ids) for t in _given(call))
        if takes and isinstance(output, Tensor) and output.is_floating_point() and output.shape[:2] == ids.shape[:2]:
            taking[f"{call.path}:{number}"] = output
    inner = {
        address: output
        for address, output in taking.items()
        if not any(_is_inside(split_call(other)[0], split_call(address)[0]) for other in taking)
    }
    what = f"input {name!r}" if name else "the input"
    if not inner:
        raise InputError(
            f"{what} holds whole numbers, and no layer of {type(model).__name__} takes them and returns a vector for each, "
            "where they could be explained: give floating-point inputs, or name a layer, as in "
            "LayerIntegratedGradients(layer)."
        )
    first, *others = inner.values()
    if any(other.shape != first.shape or not torch.equal(other, first) for other in others):
        raise InputError(
            f"{what} is looked up by several layers, {[split_call(a)[0] for a in inner]}, which return different vectors: "
            "name one, as in LayerIntegratedGradients(layer)."
        )
    if others:
        raise InputError(
            f"{what} is looked up several times, by {list(inner)}, and one place alone would not be all of it: name a layer "
            "after them, as in LayerIntegratedGradients(layer)."
        )
    [address] = inner
    path = split_call(address)[0]
    return path if seen[path] == 1 else address


def _is_inside(path: str, other: str) -> bool:
    return path != other and (not other or path.startswith(f"{other}."))


def _marked(ids: Tensor) -> Tensor:
    """Return ids that are told from positions: no row counts up."""
    counting = ids.shape[1] > 1 and bool((ids.diff(dim=1) == 1).all()) if ids.ndim > 1 else False
    return ids.flip(1) if counting else ids


def _same_ids(given: Tensor, ids: Tensor) -> bool:
    given = given.to(ids.device)
    return not given.is_floating_point() and given.numel() == ids.numel() and torch.equal(given.reshape(ids.shape), ids)


def _given(call: ModuleCall) -> list[object]:
    return list(call.inputs) if isinstance(call.inputs, list) else []
