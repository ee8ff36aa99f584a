"""What a model is given: one tensor, or named tensors with a row of each per example."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from probing.core.content_ids import bytes_id, tensor_id
from probing.core.errors import Mend, ProbingError


class InputError(ProbingError, ValueError):
    """Inputs that can't be explained: none, NaN, or of a kind or shape that the method or the model does not take."""


_TOKEN_IDS = "input_ids"
MASK = "attention_mask"
"""What a mask of padding is called, as in transformers: 1 for tokens that are read, 0 for padding."""
OF_TOKENS = {"token_type_ids", "position_ids", "decoder_input_ids", "cache_position", "bbox"}
"""Whole numbers that say something of tokens, and are none that is explained."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A batch of named tensors, with a row of each per example, for a model that is called as `model(**tensors)`.

    One or several of them are explained; the others go with their row through every step, sample and permutation. A
    tensor named `attention_mask`, `[n, tokens]`, says which tokens are read (1) and which are padding (0): a text's rows
    and maps don't depend on its padding.

    Attributes:
        tensors: by the names of the model's arguments.
        explain: names of those that are explained. By default floating-point tensors that are no masks, and `input_ids`
            or what else holds token ids.
        put: what stands in for outputs of layers while the model runs, by path.
        tokens: of each example, for each of its token ids, as text; none where they are not known.

    Raises:
        InputError: for what is no tensor, or tensors of several numbers of rows.

    Example:
        >>> found = Saliency()(words, {"input_ids": ids, "attention_mask": mask}, target=1)
        >>> found = IntegratedGradients()(views, Inputs({"image": images, "depth": depths}, explain=("depth",)))
    """

    tensors: Mapping[str, Tensor]
    explain: tuple[str, ...] = ()
    put: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        known = {str(name): _tensor(name, value) for name, value in self.tensors.items() if value is not None}
        rows = {name: len(tensor) for name, tensor in known.items()}
        if not known or len(set(rows.values())) > 1:
            raise InputError(f"named inputs must be tensors with one row per example each, got rows {rows}.")
        object.__setattr__(self, "tensors", known)
        explain = (self.explain,) if isinstance(self.explain, str) else tuple(self.explain)
        if unknown := [name for name in explain if name not in known]:
            raise InputError(f"there is no input {unknown[0]!r} to explain, only {list(known)}.")
        object.__setattr__(self, "explain", explain)

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the inputs that are explained.

        Raises:
            InputError: if it is not known which are.
        """
        if self.explain:
            return self.explain
        floats = [n for n, t in self.tensors.items() if t.is_floating_point() and "mask" not in n]
        ids = [
            n
            for n, t in self.tensors.items()
            if not t.is_floating_point() and t.dtype != torch.bool and "mask" not in n and n not in OF_TOKENS
        ]
        ids = [_TOKEN_IDS] if _TOKEN_IDS in ids else ids
        if len(ids) > 1 or not floats + ids:
            raise InputError(
                f"of the inputs {list(self.tensors)} it can't be told which {'are' if ids else 'is'} to be explained:",
                mends=[Mend("name them", "explain=…")],
            )
        return (*floats, *ids)

    @property
    def main(self) -> Tensor:
        """The first of the explained inputs, or what stands in for the output of a layer, which has the same rows."""
        if self.put:
            return next(iter(self.put.values()))
        own = self.explain or tuple(n for n, t in self.tensors.items() if t.ndim == 4)  # a picture
        floats = (n for n, t in self.tensors.items() if t.is_floating_point() and "mask" not in n)
        return self.tensors[next(iter(own), next(floats, next(iter(self.tensors))))]

    @property
    def read(self) -> Tensor | None:
        """Which tokens are read, `[n, tokens]`; None where there is no mask, or of another shape."""
        mask = self.tensors.get(MASK)
        if mask is None or mask.ndim != 2:
            return None
        added = mask.is_floating_point() and not bool((mask > 0).any())  # to attention's scores: 0 for what is read
        return mask == 0 if added else mask != 0

    @property
    def shape(self) -> torch.Size:
        """That of the main input."""
        return self.main.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the main input."""
        return self.main.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the floating-point inputs, if there are any."""
        tensors = (*self.put.values(), *self.tensors.values())
        return next((t.dtype for t in tensors if t.is_floating_point()), self.main.dtype)

    @property
    def device(self) -> torch.device:
        """Where the main input lies."""
        return self.main.device

    def is_floating_point(self) -> bool:
        """Whether any of the inputs is."""
        return self.dtype.is_floating_point

    def numel(self) -> int:
        """Return the number of values of all inputs."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Inputs":
        """Return some of the examples, by a slice, numbers or a mask."""
        found = self.map(lambda tensor: tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows])
        if not self.tokens:
            return found
        numbers = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows]
        return replace(found, tokens=tuple(self.tokens[i] for i in numbers.tolist()))

    def __iter__(self) -> "Iterator[Inputs]":
        return (self[row : row + 1] for row in range(len(self)))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the same with every tensor changed."""
        tensors, put = ({name: change(t) for name, t in of.items()} for of in (self.tensors, self.put))
        return replace(self, tensors=tensors, put=put)

    def to(self, device: torch.device) -> "Inputs":
        """Return the same on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def detach(self) -> "Inputs":
        """Return the same without a graph."""
        return self.map(Tensor.detach)

    def tensor_split(self, parts: int) -> "list[Inputs]":
        """Return the examples in so many nearly equal parts."""
        return [self[rows] for rows in torch.arange(len(self)).tensor_split(parts)]


Batch = Tensor | Inputs
"""What a model is given: one tensor `[n, …]`, or named ones."""


def batch_of(given: object, what: str = "inputs") -> Batch:
    """Return what a model is given as a batch.

    Args:
        given: a tensor, `Inputs`, or a mapping of tensors, such as a tokeniser returns.
        what: it is, at the start of an error.

    Raises:
        InputError: for anything else, with how to make it one.
    """
    if isinstance(given, Tensor | Inputs):
        return given
    if isinstance(given, Mapping):
        return Inputs(cast("Mapping[str, Tensor]", given))
    raise InputError(not_one_tensor(given, what))


def row_ids(batch: Batch) -> list[str]:
    """Return the content id of each example."""
    if isinstance(batch, Tensor):
        return [tensor_id(row) for row in batch]
    named = {name: [tensor_id(row) for row in tensor] for name, tensor in sorted(batch.tensors.items())}
    return [bytes_id("\0".join(f"{n}={ids[i]}" for n, ids in named.items()).encode()) for i in range(len(batch))]


def kind_of(batch: Batch) -> Hashable:
    """Return what all batches of a kind have in common: names, shapes of an example, and number formats."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape[1:]), batch.dtype
    parts = [*batch.tensors.items(), *batch.put.items()]
    return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in parts)


def described(batch: Batch) -> str:
    """Return shape and number format of what a model is given, in words."""
    if isinstance(batch, Tensor):
        return f"shape {tuple(batch.shape)} and {batch.dtype}"
    return "; ".join(f"{n}: shape {tuple(t.shape)} and {t.dtype}" for n, t in batch.tensors.items())


def like(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch with every tensor changed."""
    return change(batch) if isinstance(batch, Tensor) else batch.map(change)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return several batches of one kind as one."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    others = [batch for batch in batches if isinstance(batch, Inputs)]
    tensors = {name: torch.cat([other.tensors[name] for other in others]) for name in first.tensors}
    put = {n: torch.cat([other.put[n] for other in others]) for n in first.put}
    tokens = tuple(row for other in others for row in other.tokens)
    return replace(first, tensors=tensors, put=put, tokens=tokens if len(tokens) == sum(map(len, others)) else ())


def tokens_of(batch: Batch) -> int | None:
    """Return how many tokens the texts of a batch have, padding counted; None where no mask tells."""
    read = None if isinstance(batch, Tensor) else batch.read
    return None if read is None else read.shape[1]


def padded(batch: Inputs, tokens: int, fill: int = 0) -> Inputs:
    """Return texts with padding after them, up to so many tokens.

    Args:
        batch: with a mask. What is of its shape, and no real number, or is called `inputs_embeds`, goes by tokens.
        tokens: of each text.
        fill: the token id that stands for padding; other inputs get 0.
    """
    own = tokens_of(batch)
    if own is None or own == tokens:
        return batch

    def wider(name: str, tensor: Tensor) -> Tensor:
        of_tokens = name in {MASK, "inputs_embeds"} or (tensor.ndim == 2 and not tensor.is_floating_point())
        if not of_tokens or tensor.shape[1] != own:
            return tensor
        wide = tensor.new_full((len(tensor), tokens, *tensor.shape[2:]), fill if name == _TOKEN_IDS else 0)
        wide[:, :own] = tensor
        return wide

    tokens_ = tuple((*row, *[""] * (tokens - own)) for row in batch.tokens)
    return replace(batch, tensors={name: wider(name, tensor) for name, tensor in batch.tensors.items()}, tokens=tokens_)


def pieces(batch: Batch, size: int) -> Iterator[Batch]:
    """Yield consecutive parts of at most so many examples."""
    for start in range(0, len(batch), size):
        yield batch[start : start + size]


def one_tensor(inputs: object) -> Tensor:
    """Return inputs that are one tensor.

    Raises:
        InputError: for anything else, with how to make it one.
    """
    if not isinstance(inputs, Tensor):
        raise InputError(not_one_tensor(inputs))
    return inputs


def not_one_tensor(given: object, what: str = "inputs") -> str:
    """Return the sentence that refuses what is no tensor, with the way out.

    Args:
        given: a mapping, as tokenisers return, several tensors, an array, a data set …
        what: it is, at the start of the sentence.
    """
    start = f"{what} must be one tensor [n, …], got"
    if isinstance(given, Mapping | Inputs):
        tensors = given.tensors if isinstance(given, Inputs) else given
        first, *rest = (str(key) for key in tensors) if tensors else ("x",)
        others = "".join(f", {name}=…" for name in rest)
        return (
            f"{start} a {type(given).__name__} of {[str(key) for key in tensors]}: wrap the model in a module that takes "
            f"one of them and makes the rest of it, as in "
            f"`def forward(self, {first}): return self.model({first}={first}{others})`."
        )
    if isinstance(given, tuple | list) and given and all(isinstance(x, Tensor) for x in given):
        shapes = [tuple(x.shape) for x in given]
        return f"{start} a {type(given).__name__} of {len(given)} tensors: {_way_out_of_several(given, shapes)}."
    return f"{start} {type(given).__name__}: as_examples(…).load(range(n)) of probing.data.examples makes one."


def _way_out_of_several(given: object, shapes: list[tuple[int, ...]]) -> str:
    if isinstance(given, list) and len(set(shapes)) == 1:
        return "torch.stack or torch.cat makes them one"
    if isinstance(given, list):
        return f"bring them to one size and stack them, or give them one at a time (their shapes are {shapes[:3]})"
    names = ["first", "second", "third"][: len(shapes)]
    return f"give several inputs by the names of the model's arguments, as in {{{', '.join(f'{n!r}: …' for n in names)}}}"


def _tensor(name: object, value: object) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor) or not value.ndim:
        raise InputError(
            f"input {str(name)!r} must be a tensor with one row per example, got a {type(value).__name__}: leave it out, or "
            "make one of it (return_tensors='pt' of a tokeniser)."
        )
    return value
