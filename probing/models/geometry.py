"""What layers return, and where their cells lie in the input."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probing.core.errors import ProbingError
from probing.core.inputs import OF_TOKENS, Batch, InputError, described, kind_of, like
from probing.models.calling import run
from probing.models.hooks import LayerCallError, capture, other_rows, parts_of, watch
from probing.models.layers import split_call
from probing.models.model_cache import remembered
from probing.models.precision import AS_GIVEN, device_of, frozen_copy


class RefusedError(ProbingError, RuntimeError):
    """A network that a method can't explain exactly; the message names the part and what to do."""


@contextmanager
def naming_inputs(model: nn.Module, inputs: Batch) -> Iterator[None]:
    """Say which inputs a model was given when it does not take them; the message holds the model's own.

    Raises:
        InputError: in place of the bare error of an operation, such as for another number of channels.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        if type(error) not in {RuntimeError, AssertionError, ValueError, IndexError}:
            raise  # one of ours, or out of memory: they say what is wrong themselves
        raise InputError(f"{type(model).__name__} does not take inputs of {described(inputs)}: {error}") from error


@dataclass(frozen=True)
class Geometry:
    """Where the cells of a map lie in the input: cell (i, j) is centred at `start + (i, j) · stride`.

    Series have one number of each, volumes three; what is said of pixels goes for their steps and voxels.

    Attributes:
        size: height and width of the input, in pixels.
        start: centre of the first cell, rows then columns, in pixels; the first pixel's centre is at 0.
        stride: distance between centres, in pixels.
        anchor: `receptive field` if the centres are those of the cells' receptive fields; `tiles` if the
            network does not tell them, and cells are taken to tile the input.
    """

    size: tuple[int, ...]
    start: tuple[float, ...]
    stride: tuple[float, ...]
    anchor: str = "receptive field"

    @classmethod
    def tiles(cls, cells: tuple[int, ...], size: tuple[int, ...]) -> "Geometry":
        """Return the geometry of so many rows and columns of cells that tile an input of a size."""
        stride = tuple(whole / count for whole, count in zip(size, cells, strict=True))
        return cls(size, tuple((s - 1) / 2 for s in stride), stride, "tiles")

    def at(self, axis: int, points: int | None = None) -> Float[Tensor, " points"]:
        """Return where points lie between cells: 1.25 is a quarter of the way from the second cell to the third.

        Args:
            axis: 0 for rows, 1 for columns.
            points: centres of so many equal parts of the input; its pixels by default.
        """
        count = self.size[axis] if points is None else points
        centres = (torch.arange(count, dtype=torch.float64) + 0.5) * (self.size[axis] / count) - 0.5
        return (centres - self.start[axis]) / self.stride[axis]

    def weights(self, axis: int, cells: int) -> Float[Tensor, "pixels cells"]:
        """Return the weights by which cells along an axis make up the input's pixels, in float64.

        Linear between the centres of the cells, and constant outside the outermost ones (Bau et al. 2017,
        sec. 2.2).
        """
        at = self.at(axis).clamp(0, cells - 1)
        return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)

    def spread(self, maps: Float[Tensor, "n c *cells"]) -> Float[Tensor, "n c *size"]:
        """Return maps of cells at the input's resolution, by `weights` along each axis; no value is rescaled."""
        for axis, cells in enumerate(maps.shape[2:]):
            weights = self.weights(axis, cells).to(maps)
            maps = (maps.movedim(2 + axis, -1) @ weights.T).movedim(-1, 2 + axis)
        return maps.contiguous()


@dataclass(frozen=True)
class Grid:
    """Centres of a map's cells along rows and columns: the first one, and the distance between them, in pixels.

    `windowed` tells that a convolution or pooling made it, so that channels come before places for sure.
    """

    start: tuple[float, ...]
    stride: tuple[float, ...]
    windowed: bool = False


@dataclass(frozen=True)
class Ran:
    """One call of a layer in a forward pass: the shape of its output, and where its cells lie if that is known.

    `windowed` tells that a convolution or pooling made it, of the input or of something else.
    """

    layer: str
    call: int
    shape: tuple[int, ...]
    grid: Grid | None
    windowed: bool = False

    def geometry(self, size: tuple[int, ...]) -> Geometry:
        """Return where the cells of a map `[n, c, h, w]` lie in an input of a size."""
        return _geometry(self.grid, self.shape[2:], size)


def layers_run(model: nn.Module, inputs: Batch) -> tuple[Ran, ...]:
    """Return all calls of layers that return tensors, in the order in which they end; of several each part by itself.

    Worked out once per model and input shape, on tensors without values where the model allows it.
    """
    key = ("layers run", kind_of(inputs))
    return remembered(model, key, lambda: _run(model, inputs))


def refuse_other_rows(ran: Sequence[Ran], layer: str) -> None:
    """Raise `LayerCallError` for a layer whose output for one example is not one row."""
    name, call = split_call(layer)
    for one in ran:
        if one.layer == name and one.call == (call or 0) and one.shape[:1] != (1,):
            raise LayerCallError(other_rows(layer, one.shape, 1))


MOST_PREFIXES = 8  # class and register tokens that stand before the patches


def channel_axis(model: nn.Module, inputs: Batch, layer: str) -> int | None:
    """Return which axis of a layer's output `[n, a, b, c]` holds channels, 1 or -1; None if that can't be told.

    Convolutions tell, and so do the sides of a map, which are to each other as those of the input are. Where that fits
    both ways, the output is measured: an input is changed at one of its edges at a time, and rows and columns are the
    axes along which what changes in the output moves with it.

    Args:
        model: in evaluation mode.
        inputs: one image or more, `[n, c, height, width]`, of which the first is passed; of other inputs nothing is told.
        layer: an address.
    """
    own = _call_of(layers_run(model, inputs), layer) if inputs.ndim == 4 else None
    if own is None or len(own.shape) != 4:
        return None
    size = (inputs.shape[2], inputs.shape[3])
    if own.grid is not None or not _tiles(own.shape[2:], size) or not _tiles(own.shape[1:3], size):
        return _told_axis(own, size)
    key = ("channel axis", layer, kind_of(inputs))
    return remembered(model, key, lambda: _measured_axis(model, inputs[:1], layer))


def text_tokens(inputs: Batch) -> int | None:
    """Return how many tokens a text's ids `[n, t]` are, padding counted; None for inputs of which some are no ids."""
    named = {"": inputs} if isinstance(inputs, Tensor) else inputs.tensors
    if any(t.is_floating_point() and "mask" not in name for name, t in named.items()):
        return None
    found = {t.shape[1] for name, t in named.items() if t.ndim == 2 and "mask" not in name and name not in OF_TOKENS}
    return found.pop() if len(found) == 1 else None


def units_axis(model: nn.Module, inputs: Batch, layer: str) -> tuple[int, int | None]:
    """Return how many axes a layer's output has, and which holds units where others are places: 1 or -1, None if unknown.

    Of images it is `channel_axis`, or else the first. Three axes are tokens `[n, t, units]`, unless a convolution or pooling
    along one axis made them, and five are volumes `[n, units, d, h, w]`. What follows a convolution, as in a transformer
    behind one, has as many places as it had, or a whole share of them: where that fits both ways or neither, it is unknown.

    Args:
        model: in evaluation mode.
        inputs: one example or more, of which the first is passed.
        layer: an address.
    """
    ran = layers_run(model, inputs)
    own = _call_of(ran, layer)
    if own is None or len(own.shape) not in {3, 5}:
        axes = 0 if own is None else len(own.shape)
        return axes, -1 if axes == 2 else channel_axis(model, inputs, layer) or 1
    axes = len(own.shape)
    if own.windowed:
        return axes, 1
    before = {r.shape[2:] for r in ran if r.windowed and len(r.shape) == axes}
    if not before or (axes == 3 and inputs.ndim == 4):
        return axes, -1 if axes == 3 else 1
    first, last = (any(_shares(cells, known) for known in before) for cells in (own.shape[2:], own.shape[1:-1]))
    return axes, None if first == last else 1 if first else -1


def _shares(cells: Sequence[int], before: Sequence[int]) -> bool:
    """Whether so many places, some tokens before them aside, may be made of places of a convolution."""
    if len(cells) == 1:
        return 0 <= cells[0] - before[0] <= MOST_PREFIXES
    return all(known % count == 0 for count, known in zip(cells, before, strict=True))


def map_size(ran: Ran, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the rows and columns of a map of an input of a size, if its shape tells which axes these are."""
    axis = _told_axis(ran, size) if len(ran.shape) == len(size) + 2 else None
    if axis is None:
        return None
    return ran.shape[2:] if axis == 1 else ran.shape[1:-1]


def _told_axis(own: Ran, size: tuple[int, ...]) -> int | None:
    """Return what convolutions and the sides of a map tell of the axis of channels."""
    if len(size) != 2:  # of a series or a volume the sides tell little
        return 1 if own.grid is not None and own.grid.windowed else None
    if own.grid is not None:
        return 1
    first, last = _tiles(own.shape[2:], size), _tiles(own.shape[1:3], size)
    return None if first == last else 1 if first else -1


def _call_of(ran: Sequence[Ran], layer: str) -> Ran | None:
    name, call = split_call(layer)
    return next((r for r in ran if r.layer == name and r.call == (call or 0)), None)


def _tiles(cells: Sequence[int], size: tuple[int, ...]) -> bool:
    """Whether so many rows and columns may be the cells of a map of an input: in its proportion, up to one cell."""
    (rows, columns), (height, width) = cells, size
    if max(rows / height, columns / width) > _MOST_UPSAMPLED:
        return False
    if height == width:
        return rows == columns
    return abs(rows * width - columns * height) < max(height, width)


_MOST_UPSAMPLED = 4
"""Most cells for a pixel along an axis: decoders return maps larger than their input."""


_EDGE = 3
"""The part of an image's height or width that is changed at an edge: one in so many."""
_MOVED = 0.05
"""Least way that changes move along rows and columns together, as a share of their lengths."""


def _measured_axis(model: nn.Module, one: Batch, layer: str) -> int | None:
    prepared = AS_GIVEN.prepare(model, (), device_of(model), one)
    found = []
    for image in _changed_at_edges(one):  # alone, as some models take no more
        with torch.no_grad(), capture(prepared.model, [layer]) as kept:
            prepared.output(image)
        found.append(kept[layer].double())
    output = torch.cat(found)
    changes = (output[1:] - output[0]).square()
    top, bottom, left, right = ([_centre(change, axis) for axis in range(3)] for change in changes)
    down = [b - a for a, b in zip(top, bottom, strict=True)]
    across = [b - a for a, b in zip(left, right, strict=True)]
    first, last = down[1] + across[2], down[0] + across[1]
    if max(first, last) < _MOVED or min(first, last) > max(first, last) / 2:
        return None
    return 1 if first > last else -1


def _changed_at_edges(one: Batch) -> Iterator[Batch]:
    """Yield an input, and the same with noise along the upper, lower, left and right edge of its image."""
    whole = one if isinstance(one, Tensor) else one.main
    for image in torch.split(_with_noise_at_edges(whole), 1):
        yield like(one, lambda tensor, image=image: image if tensor is whole else tensor)  # type: ignore[misc]


def _with_noise_at_edges(one: Float[Tensor, "1 c h w"]) -> Float[Tensor, "5 c h w"]:
    height, width = (max(1, side // _EDGE) for side in one.shape[2:])
    spread = float(one.double().std(correction=0)) or 1.0
    noise = torch.randn(one.shape[1:], generator=torch.Generator().manual_seed(0)).to(one) * spread
    images = one.repeat(5, 1, 1, 1)
    edges = (
        (slice(height), slice(None)),
        (slice(-height, None), slice(None)),
        (slice(None), slice(width)),
        (slice(None), slice(-width, None)),
    )
    for image, (rows, columns) in zip(images[1:], edges, strict=True):
        image[:, rows, columns] += noise[:, rows, columns]
    return images


def _centre(change: Float[Tensor, "a b c"], axis: int) -> float:
    """Return where a change lies along an axis, from 0 to 1; the middle where nothing changes."""
    shares = change.movedim(axis, 0).flatten(1).sum(1)
    total = float(shares.sum())
    if not 0 < total < math.inf or len(shares) == 1:
        return 0.5
    return float((shares * torch.linspace(0, 1, len(shares)).to(shares)).sum()) / total


@dataclass(frozen=True)
class Layout:
    """How a layer's output is read as a map: `[n, c, h, w]`, `[n, h, w, c]`, or tokens `[n, prefix + h w, c]`.

    Of a series the places have one axis, of a volume three.
    """

    kind: str
    cells: tuple[int, ...]
    geometry: Geometry

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Batch,
        layer: str,
        grid: tuple[int, ...] | None = None,
        *,
        channels_last: bool | None = None,
    ) -> "Layout":
        """Return the layout of a layer's output.

        Args:
            model: in evaluation mode.
            inputs: one image, series or volume, or more, `[n, c, *size]`.
            layer: an address.
            grid: rows and columns of patches, for tokens; inferred if None.
            channels_last: whether a map has its channels last, where that can't be told; see `channel_axis`.

        Raises:
            RefusedError: if the output is no map, or its channels or the grid of its tokens can't be told, or are
                other than is said.
        """
        ran = layers_run(model, inputs)
        own = _call_of(ran, layer)
        if (tokens := text_tokens(inputs)) is not None:
            return cls._of_text(ran, own, layer, tokens)
        size = tuple(inputs.shape[2:])
        axes = "".join(f", {axis}" for axis in "dhw"[-len(size) :]) if len(size) > 1 else ", t"
        if own is None or len(own.shape) not in {3, len(size) + 2}:
            shape = "no tensor" if own is None else f"shape {own.shape}"
            raise RefusedError(f"layer {layer!r} returns {shape}, no map [n, c{axes}] or tokens [n, t, c]: name another.")
        refuse_other_rows(ran, layer)
        known = own.grid
        if len(own.shape) != 3 or (len(size) == 1 and not _are_tokens(own, ran, channels_last)):
            axis = channel_axis(model, inputs, layer) if len(size) == 2 else _told_axis(own, size)
            last = _has_channels_last(layer, own, axis, channels_last)
            kind = "channels_last" if last else "channels_first"
            cells = own.shape[1:-1] if last else own.shape[2:]
        else:
            kind = "tokens"
            cells = _token_grid(ran, layer, own.shape, grid, size)
            known = _patches(ran, cells)
        if len(size) != 2 and (known is None or not known.windowed):
            known = _patches(ran, cells)
            if known is None:
                raise RefusedError(
                    f"layer {layer!r} returns shape {own.shape}, of which it can't be told where its cells lie in inputs "
                    f"[n, c{axes}]: name a layer whose places convolutions or pooling of the input make."
                )
        return cls(kind, cells, _geometry(known, cells, size))

    @classmethod
    def _of_text(cls, ran: Sequence[Ran], own: Ran | None, layer: str, tokens: int) -> "Layout":
        if own is None or own.windowed or len(own.shape) != 3 or own.shape[1] != tokens:
            shape = "no tensor" if own is None else f"shape {own.shape}"
            raise RefusedError(
                f"layer {layer!r} returns {shape}, no row [n, t, c] for each of {tokens} tokens: name another."
            )
        refuse_other_rows(ran, layer)
        return cls("tokens", (tokens,), Geometry.tiles((tokens,), (tokens,)))

    @property
    def height(self) -> int:
        """Rows of cells."""
        return self.cells[-2]

    @property
    def width(self) -> int:
        """Columns of cells."""
        return self.cells[-1]

    @property
    def axis(self) -> int:
        """Which axis of the output holds channels, 1 or -1."""
        return 1 if self.kind == "channels_first" else -1

    def __str__(self) -> str:
        shape = {
            "channels_first": "maps [n, c, h, w]",
            "channels_last": "maps with channels last [n, h, w, c]",
            "tokens": "tokens [n, t, c]",
        }
        places = {1: "t", 2: "h, w", 3: "d, h, w"}[len(self.cells)]
        return f"{' x '.join(map(str, self.cells))} cells, {shape[self.kind].replace('h, w', places)}"

    def maps(self, output: Float[Tensor, "n *axes"]) -> Float[Tensor, "n c *cells"]:
        """Return an output, or its gradient, as maps; tokens before the patches are left out."""
        if self.kind == "channels_first":
            return output
        if self.kind == "channels_last":
            return output.movedim(-1, 1)
        patches = output[:, output.shape[1] - math.prod(self.cells) :]
        shape = (len(output), output.shape[2], *self.cells)
        return patches.movedim(-1, 1).reshape(shape)


def _are_tokens(own: Ran, ran: Sequence[Ran], channels_last: bool | None) -> bool:
    """Whether an output `[n, a, b]` of a series is tokens: as many, class tokens aside, as a convolution made places."""
    if channels_last is not None or (own.grid is not None and own.grid.windowed):
        return False
    places = {r.shape[2] for r in ran if len(r.shape) == 3 and r.grid is not None and r.grid.windowed}
    return any(0 <= own.shape[1] - p <= MOST_PREFIXES for p in places) and own.shape[2] not in places


def _has_channels_last(layer: str, own: Ran, axis: int | None, said: bool | None) -> bool:
    if axis is None and said is None:
        raise RefusedError(
            f"layer {layer!r} returns shape {own.shape}, of which it can't be told whether channels come first or last: "
            "give channels_last=True or False, or name a layer with maps."
        )
    if axis is not None and said is not None and said != (axis == -1):
        raise RefusedError(
            f"layer {layer!r} returns shape {own.shape} with channels {'last' if axis == -1 else 'first'}, not as "
            f"channels_last={said} says: leave it out."
        )
    return axis == -1 if said is None else said


def _token_grid(
    ran: Sequence[Ran],
    layer: str,
    shape: tuple[int, ...],
    grid: tuple[int, ...] | None,
    size: tuple[int, ...],
) -> tuple[int, ...]:
    tokens = shape[1]
    if grid is not None:
        if len(grid) != len(size) or not 0 <= tokens - math.prod(grid) <= MOST_PREFIXES:
            raise RefusedError(
                f"layer {layer!r} has {tokens} tokens, which a grid of {' by '.join(map(str, grid))} patches and "
                f"up to {MOST_PREFIXES} class tokens does not make up."
            )
        return grid
    # The patches of a convolution, with as few tokens before them as can be; else a square.
    before = {known for r in ran if (known := map_size(r, size)) and math.prod(known) > 1}
    fits = sorted((s, known) for known in before if 0 <= (s := tokens - math.prod(known)) <= MOST_PREFIXES)
    if fits:
        return fits[0][1]
    if shape[2] in map(math.prod, before):
        raise RefusedError(
            f"layer {layer!r} returns shape {shape}, whose last axis has as many numbers as a map has places: tokens must "
            "be its second; name a layer around it."
        )
    side = math.isqrt(tokens) if len(size) == 2 else 0
    if side > 1 and tokens - side * side <= 1:
        return side, side
    if len(size) != 2:
        raise RefusedError(
            f"layer {layer!r} has {tokens} tokens, of which it can't be told where they lie: give their grid."
        )
    raise RefusedError(f"layer {layer!r} has {tokens} tokens, neither a square nor one more: give grid=(rows, columns).")


def _patches(ran: Sequence[Ran], cells: tuple[int, ...]) -> Grid | None:
    maps = (r for r in ran if len(r.shape) == len(cells) + 2 and r.shape[2:] == cells)
    return next((r.grid for r in maps if r.grid and (len(cells) == 2 or r.grid.windowed)), None)


def _geometry(grid: Grid | None, cells: tuple[int, ...], size: tuple[int, ...]) -> Geometry:
    if grid is not None:
        return Geometry(size, grid.start, grid.stride)
    return Geometry.tiles(cells, size)


def _run(model: nn.Module, inputs: Batch) -> tuple[Ran, ...]:
    one = inputs[:1]
    try:
        return _observed(frozen_copy(model).to("meta"), like(one, lambda t: torch.empty_like(t, device="meta")))
    except Exception:  # whatever a model can't do without values it may do with them
        pass
    with naming_inputs(model, inputs):
        prepared = AS_GIVEN.prepare(model, (), device_of(model), one)
        return _observed(prepared.model, prepared.inputs(one))


def _observed(copy: nn.Module, inputs: Batch) -> tuple[Ran, ...]:
    """Run a private copy, and list what its layers return."""
    ran: list[Ran] = []
    calls: Counter[str] = Counter()
    centres = _Centres()

    def ended(layer: str, out: object) -> None:
        for part, tensor in parts_of(out):
            grid = centres.of(tensor)
            known = grid if grid is not None and not math.isnan(grid.start[0]) else None
            windowed = grid is not None and grid.windowed
            ran.append(Ran(layer + part, calls[layer], tuple(tensor.shape), known, windowed))
        calls[layer] += 1

    if inputs.ndim in {3, 4, 5}:
        axes = inputs.ndim - 2
        centres.put(inputs if isinstance(inputs, Tensor) else inputs.main, Grid((0.0,) * axes, (1.0,) * axes))
    with torch.no_grad(), watch(copy, ended), centres:
        run(copy, inputs)
    return tuple(ran)


class _Centres(TorchFunctionMode):
    """Follows where the cells of maps lie, from one function to the next."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, Grid]] = {}  # the tensors are held, so that ids stay theirs

    def of(self, maps: Tensor) -> Grid | None:
        found = self._known.get(id(maps))
        return None if found is None else found[1]

    def put(self, maps: Tensor, grid: Grid) -> None:
        self._known[id(maps)] = (maps, grid)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Pass a call on and note where the cells of what it returns lie."""
        named = kwargs or {}
        out = func(*args, **named)
        if isinstance(out, Tensor) and out.ndim in {3, 4, 5}:
            grid = self._after(getattr(func, "__name__", ""), args, named, out)
            if grid is not None:
                self.put(out, grid)
        return out

    def _after(self, name: str, args: tuple[object, ...], named: dict[str, object], out: Tensor) -> Grid | None:
        tensors = _tensors((*args, *named.values()))
        sources = [t for t in tensors if id(t) in self._known and t.ndim == out.ndim]
        if not sources:
            first = tensors[0].ndim if tensors else 0
            if out.ndim == first and out.ndim != 4 and name in _ALONG_PLACES:  # of what is no input
                return Grid((math.nan,) * (out.ndim - 2), (math.nan,) * (out.ndim - 2), windowed=True)
            return None
        source, grid = self._known[id(sources[0])]
        if name in _WINDOWS:
            return _windowed(grid, _arguments(_WINDOWS[name], args, named))
        if name.startswith("adaptive_"):
            return _adaptive(grid, source.shape[2:], out.shape[2:])
        if name == "pad":
            padding = [*cast("Sequence[int]", args[1] if len(args) > 1 else named["pad"]), *[0] * 6]
            before = [padding[2 * i] for i in reversed(range(len(grid.start)))]  # told from the last axis on
            start = tuple(s - b * d for s, b, d in zip(grid.start, before, grid.stride, strict=True))
            return Grid(start, grid.stride, grid.windowed)
        same = next((t for t in sources if t.shape[2:] == out.shape[2:]), None)
        keeps = same is not None and name not in _MOVING
        return self.of(same) if same is not None and keeps else None


# `__get__` is that of `mT` and the like.
_MOVING = {"transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "flip", "fliplr", "flipud", "rot90"}
_MOVING |= {
    "roll",
    "adjoint",
    "einsum",
    "matmul",
    "bmm",
    "__matmul__",
    "reshape",
    "view",
    "__get__",
    "unflatten",
}
_POOL = ("input", "kernel_size", "stride", "padding")
_WINDOWS: dict[str, tuple[str, ...]] = {}
for _axes in ("1d", "2d", "3d"):
    _WINDOWS |= {
        f"conv{_axes}": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        f"max_pool{_axes}": (*_POOL, "dilation"),
        f"avg_pool{_axes}": _POOL,
    }
_ALONG_PLACES = {*_WINDOWS, *(f"adaptive_{kind}_pool{axes}d" for kind in ("avg", "max") for axes in (1, 3))}


def _arguments(names: Sequence[str], args: Sequence[object], named: dict[str, object]) -> dict[str, object]:
    return dict(zip(names, args, strict=False)) | named


def _windowed(grid: Grid, call: dict[str, object]) -> Grid | None:
    weight, axes = call.get("weight"), len(grid.start)
    kernel = _each(tuple(weight.shape[2:]) if isinstance(weight, Tensor) else call["kernel_size"], axes)
    steps = _each(call.get("stride") or (1 if isinstance(weight, Tensor) else kernel), axes)
    dilation = _each(call.get("dilation", 1), axes)
    padding = call.get("padding", 0)
    if padding == "valid":
        padding = 0
    if padding == "same":
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
    if isinstance(padding, str):
        return None
    shift = [(k - 1) * d / 2 - p for k, d, p in zip(kernel, dilation, _each(padding, axes), strict=True)]
    start = tuple(s + m * d for s, m, d in zip(grid.start, shift, grid.stride, strict=True))
    return Grid(start, tuple(d * by for d, by in zip(grid.stride, steps, strict=True)), windowed=True)


def _adaptive(grid: Grid, before: Sequence[int], after: Sequence[int]) -> Grid | None:
    if any(b % a for b, a in zip(before, after, strict=True)):
        return None  # windows of unequal size
    by = [b // a for b, a in zip(before, after, strict=True)]
    start = tuple(s + (n - 1) / 2 * d for s, n, d in zip(grid.start, by, grid.stride, strict=True))
    return Grid(start, tuple(d * n for d, n in zip(grid.stride, by, strict=True)), windowed=True)


def _each(value: object, axes: int) -> tuple[int, ...]:
    """Return what a window has along each axis, given as one number or as many."""
    values = (value,) if isinstance(value, int) else tuple(cast("Sequence[int]", value))
    return values * axes if len(values) == 1 else values


def _tensors(values: Sequence[object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
