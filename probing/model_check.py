"""A check at a model's first use: what it returns for an example hangs on that example alone.

Otherwise a map or a row would depend on chance, on earlier calls, or on the batch that an example happens to be in. At
most three passes of one example: one alone, and two in a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from probing.errors import ProbingError
from probing.hooks import ModuleCall, record_calls
from probing.precision import Precision, Prepared, agree
from probing.remembered import remembered

_AS_GIVEN = Precision("reference")
_REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError)


class InconsistentModelError(ProbingError, RuntimeError):
    """What a model returns for an example hangs on chance, on earlier calls or on other examples."""


def refuse_inconsistent(model: nn.Module, inputs: Tensor, device: torch.device) -> None:
    """Refuse a model whose output for an example hangs on anything but that example.

    A model is checked once a process, as long as it computes the same. It is a copy that runs, so that counters and
    caches of the model itself stay as they are. Outputs that are not finite are left to whoever reads them.

    Args:
        model: in evaluation mode.
        inputs: one example or more, `[n, …]`; at most two are passed.
        device: where it will run.

    Raises:
        InconsistentModelError: naming the module that makes the difference, where one does.
        Exception: the model's own, if it does not take such inputs.
    """
    remembered(model, ("consistent", device), lambda: _check(model, inputs, device))


def _check(model: nn.Module, inputs: Tensor, device: torch.device) -> bool:
    prepared = _AS_GIVEN.prepare(model, (), device, inputs)
    one, pair = inputs[:1], torch.cat([_another(inputs), inputs[:1]])
    try:
        alone = prepared.output(one)
    except _REFUSALS as error:
        prepared.output(pair)  # raises again if it is the inputs that the model does not take
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise InconsistentModelError(
            f"{type(model).__name__} takes no example alone ({reason}), though it takes two: what it returns for one "
            f"hangs on others. {_BATCH_WAY}"
        ) from error
    try:
        together = prepared.output(pair)
    except _REFUSALS:  # one example at a time is all that it takes
        together = prepared.output(one)
    if not _same(alone, together):
        raise InconsistentModelError(_why(prepared, one, pair))
    return True


def _another(inputs: Tensor) -> Tensor:
    """Return another example of the same kind: the second, or one made of the first."""
    one = inputs[:1]
    if len(inputs) > 1 and not torch.equal(inputs[1:2], one):
        return inputs[1:2]
    flipped = one.flip(-1)
    if one.is_floating_point():
        return 0.5 * flipped
    return (
        torch.zeros_like(one) if torch.equal(flipped, one) else flipped
    )  # token 0 is always there


def _same(alone: object, together: object) -> bool:
    """Whether all that tells examples apart is the same for the last of two; so also if neither run has two."""
    counted, rows = _rows(alone, together)
    return counted and all(agree(a, b) for a, b in rows)


def _rows(alone: object, together: object) -> tuple[bool, list[tuple[Tensor, Tensor]]]:
    """Return whether there is a row for each example, and what an example got alone and as the last of the batch."""
    pairs = [*zip_longest(_tensors(alone), _tensors(together))]
    if any(a is None or b is None or a.ndim != b.ndim for a, b in pairs):
        return False, []
    found, single = [], 0
    for a, b in pairs:
        if not a.is_floating_point():
            continue  # classes and masks: they flip where scores are near each other
        differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
        if len(differing) == 1 and (a.shape[differing[0]], b.shape[differing[0]]) == (1, 2):
            found.append((a, b.narrow(differing[0], 1, 1)))
        elif differing:
            return False, []
        elif a.ndim and len(a) == 1:
            single += 1
    return bool(found) or not single, found


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, Sequence) and not isinstance(output, str | bytes):
        for part in output:
            yield from _tensors(part)


_BATCH_WAY = (
    "Write it so that each row hangs on its own example, and give BatchNorm running statistics."
)
_CHANCE_WAY = (
    "Let it draw in training mode only, as functional.dropout(x, p, training=self.training) does."
)
_STATE_WAY = "Let forward keep nothing from call to call in evaluation mode."


def _why(prepared: Prepared, one: Tensor, pair: Tensor) -> str:
    """Say on what else the output hangs, and which module makes it so."""
    name = type(prepared.model).__name__
    first, again = (_calls(prepared, one, seed) for seed in (1, 2))
    if place := _place(first, again):
        same_draws = _place(_calls(prepared, one, 1), _calls(prepared, one, 1))
        what = "earlier calls" if same_draws else "chance"
        return (
            f"{name} in evaluation mode returns something else for the same example at each call: in {place} it hangs "
            f"on {what}, and so would every map and row. {_STATE_WAY if same_draws else _CHANCE_WAY}"
        )
    place = _place(first, _calls(prepared, pair, 1)) or "its forward"
    return (
        f"{name} in evaluation mode returns something else for an example alone than in a batch with others: in "
        f"{place} examples influence each other, and so would maps and rows. {_BATCH_WAY}"
    )


def _calls(prepared: Prepared, batch: Tensor, seed: int) -> list[ModuleCall]:
    """Return what every module took and returned in one pass, with random draws that hang on the seed."""
    devices = [prepared.device] if prepared.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        with record_calls(prepared.model) as calls:
            prepared.output(batch)
    return calls


def _place(first: list[ModuleCall], second: list[ModuleCall]) -> str:
    """Return the first module that makes another output of the same input; empty if there is none.

    Modules come in the order in which they end, so what lies between layers is told of the innermost module around it.
    """
    for a, b in zip(first, second, strict=False):
        if a.path == b.path and _alike(a.inputs, b.inputs) and not _alike(a.output, b.output):
            where = f"{a.path!r} " if a.path else ""
            return f"{where}({a.kind})" if where else f"the forward of {a.kind} itself"
    return ""


def _alike(a: object, b: object) -> bool:
    return agree([*_tensors(a)], [*_tensors(b)]) or _same(a, b)
