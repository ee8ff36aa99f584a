"""A check at a model's first use: what it returns for an example hangs on that example alone.

Otherwise a map or a row would depend on chance, on earlier calls, or on the batch that an example happens to be in. At
most three passes of one example: one alone, and two in a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeGuard

import torch
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.foreign import ForeignHookError, is_watched
from probing.core.inputs import OF_TOKENS, Batch, Inputs, joined
from probing.models.hooks import ModuleCall, record_calls
from probing.models.model_cache import remembered
from probing.models.precision import AS_GIVEN, Prepared, agree, device_of

_REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError)


class InconsistentModelError(ProbingError, RuntimeError):
    """What a model returns for an example hangs on chance, on earlier calls or on other examples."""


def refuse_inconsistent(model: nn.Module, inputs: Batch, device: torch.device) -> None:
    """Refuse a model whose output for an example hangs on anything but that example.

    A model is checked once a process, as long as it computes the same. It is a copy that runs, so that counters and
    caches of the model itself stay as they are. Outputs that are not finite are left to whoever reads them.

    Args:
        model: in evaluation mode.
        inputs: one example or more, `[n, …]`; the first is passed.
        device: where it will run.

    Raises:
        InconsistentModelError: naming the module that makes the difference, where one does.
        Exception: the model's own, if it does not take such inputs.
    """
    remembered(model, ("consistent", device), lambda: _check(model, inputs, device))


def _check(model: nn.Module, inputs: Batch, device: torch.device) -> bool:
    prepared = AS_GIVEN.prepare(model, (), device, inputs)
    one = inputs[:1]
    if is_watched(model):
        _refuse_other_without(model, one)
    pair = joined([_another(one), one])
    try:
        # First, so that what remembers its first answer gives another example's, or too many rows, to the one alone.
        together = _drawn(prepared, pair, 0)
    except _REFUSALS:  # one example at a time is all that it takes
        pair, right = one, agree(_drawn(prepared, one, 0), _drawn(prepared, one, 1))
    else:
        right = _same(_alone(prepared, one), together)
    if not right:
        raise InconsistentModelError(_why(model, one, pair, device))
    return True


def _refuse_other_without(model: nn.Module, one: Batch) -> None:
    """Refuse a model whose copy, without what libraries have left on it, gives another output: one more pass each."""
    home = device_of(model)
    copied = AS_GIVEN.prepare(model, (), home, one)
    if not agree(_drawn(replace(copied, model=model), one, 0), _drawn(copied, one, 0)):
        raise ForeignHookError(
            f"{type(model).__name__} gives another output without the hooks that a library has left on it: load it anew."
        )


def _alone(prepared: Prepared, one: Batch) -> object:
    try:
        return _drawn(prepared, one, 1)
    except _REFUSALS as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InconsistentModelError(
            f"{type(prepared.model).__name__} takes no example alone ({reason}), though it takes two: what it returns "
            f"for one hangs on others. {_BATCH_WAY}"
        ) from error


def _another(one: Batch) -> Batch:
    """Return another example of the same kind, larger than the first; masks and the like stay as they are."""
    if isinstance(one, Inputs):
        changed = {n: t if _is_told(n, t) else _other(t) for n, t in one.tensors.items()}
        return replace(one, tensors=changed, put={layer: _other(t) for layer, t in one.put.items()})
    return _other(one)


def _is_told(name: str, tensor: Tensor) -> bool:
    """Whether a tensor says something of others, so that no other values may stand in it."""
    return "mask" in name or name in OF_TOKENS or (not tensor.is_floating_point() and tensor.ndim < 2)


def _other(one: Tensor) -> Tensor:
    if one.is_floating_point():
        other = 2 * one.flip(-1)
        return one + 1 if torch.equal(other, one) else other
    first = one[..., :1].expand_as(one)  # a token that is surely known; token 0 is always there
    return torch.zeros_like(one) if torch.equal(first, one) else first


def _same(alone: object, together: object) -> bool:
    """Whether there is a row for each example, the same alone and as the last of two."""
    counted, rows = _rows(alone, together)
    return counted and all(agree(a, b) for a, b in rows)


def _rows(alone: object, together: object) -> tuple[bool, list[tuple[Tensor, Tensor]]]:
    """Return whether there is a row for each example, and what an example got alone and as the last of the batch."""
    if _lists_examples(alone, 1) and _lists_examples(together, 2):  # what is detected in each
        found = [*zip_longest(_tensors(alone[0]), _tensors(together[1]))]
        same = all(a is not None and b is not None and a.shape == b.shape for a, b in found)
        return same, [(a, b) for a, b in found if a.is_floating_point()] if same else []
    pairs = [*zip_longest(_tensors(alone), _tensors(together))]
    if any(a is None or b is None or a.ndim != b.ndim for a, b in pairs):
        return False, []
    found, others = [], 0
    for a, b in pairs:
        if not a.is_floating_point():
            continue  # classes and masks: they flip where scores are near each other
        differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
        if len(differing) == 1 and (a.shape[differing[0]], b.shape[differing[0]]) == (1, 2):
            found.append((a, b.narrow(differing[0], 1, 1)))
        elif differing:
            return False, []
        else:
            others += a.ndim > 0
    return bool(found) or not others, found


def _lists_examples(output: object, count: int) -> TypeGuard[list[Mapping[object, object]]]:
    """Whether an output is a list with a mapping for each of so many examples, as detectors return."""
    return isinstance(output, list) and len(output) == count and all(isinstance(one, Mapping) for one in output)


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        for part in output:
            yield from _tensors(part)


_BATCH_WAY = "Write it so that each row hangs on its own example, and give BatchNorm running statistics."
_TIME_FIRST_WAY = "Examples lie along the first axis of what it is given: set batch_first=True where the model is made."
_CHANCE_WAY = "Let it draw in training mode only, as functional.dropout(x, p, training=self.training) does."
_STATE_WAY = "Let forward keep nothing from call to call in evaluation mode."


def _why(model: nn.Module, one: Batch, pair: Batch, device: torch.device) -> str:
    """Say on what else the output hangs, and which module makes it so."""

    def passes(*batches: tuple[Batch, int]) -> list[list[ModuleCall]]:
        fresh = AS_GIVEN.prepare(model, (), device, one)  # one that remembers nothing
        return [_calls(fresh, batch, seed) for batch, seed in batches]

    name = type(model).__name__
    first, again = passes((one, 1), (one, 2))
    before, repeated = passes((one, 1), (one, 1))
    together, after = passes((pair, 1), (one, 1))
    mixed = _place(first, together, lambda a, b: _equal(a, b) or _same(a, b))
    if state := _place(before, repeated, _equal) or (not mixed and _place(first, after, _equal)):
        what, place, way = "earlier calls", state, _STATE_WAY
    elif chance := _place(first, again, _equal):
        what, place, way = "chance", chance, _CHANCE_WAY
    else:
        time_first = any(f"({kind})" in mixed for kind in _MAY_TAKE_TIME_FIRST)
        return (
            f"{name} in evaluation mode returns something else for an example alone than in a batch with others: in "
            f"{mixed or 'its forward'} examples influence each other, and so would maps and rows. "
            f"{_TIME_FIRST_WAY if time_first else _BATCH_WAY}"
        )
    return (
        f"{name} in evaluation mode returns something else for the same example at each call: in {place} it hangs on "
        f"{what}, and so would every map and row. {way}"
    )


_MAY_TAKE_TIME_FIRST = ("MultiheadAttention", "RNN", "LSTM", "GRU")


def _calls(prepared: Prepared, batch: Batch, seed: int) -> list[ModuleCall]:
    """Return what every module took and returned in one pass."""
    with record_calls(prepared.model) as calls:
        _drawn(prepared, batch, seed)
    return calls


def _drawn(prepared: Prepared, batch: Batch, seed: int) -> object:
    """Return the output, where what is drawn hangs on the seed: other seeds, other draws."""
    devices = [prepared.device] if prepared.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return prepared.output(batch)


def _place(first: list[ModuleCall], second: list[ModuleCall], alike: Callable[[object, object], bool]) -> str:
    """Return the first module that makes another output of the same input; empty if there is none.

    Modules come in the order in which they end, so what lies between layers is told of the innermost module around it.
    """
    for a, b in zip(first, second, strict=False):
        if a.path == b.path and alike(a.inputs, b.inputs) and not alike(a.output, b.output):
            return f"{a.path!r} ({a.kind})" if a.path else f"the forward of {a.kind} itself"
    return ""


def _equal(a: object, b: object) -> bool:
    return agree([*_tensors(a)], [*_tensors(b)])
