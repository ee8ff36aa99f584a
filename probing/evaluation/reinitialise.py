"""Copies of a network in which parameters and running statistics are drawn anew, each by name and each surely changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.core.content_ids import bytes_id
from probing.core.errors import ProbingError
from probing.core.inputs import one_tensor
from probing.evaluation.base import EvaluationError
from probing.models.copies import own_copy, prove_own_weights
from probing.models.geometry import layers_run
from probing.models.layers import matches
from probing.models.precision import device_of

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class UnchangedError(ProbingError, RuntimeError):
    """A parameter that should have been drawn anew is what it was."""


@dataclass(frozen=True)
class Block:
    """Parameters that are drawn anew together: those of a layer, and of the normalisation that follows it.

    Attributes:
        name: of the layer.
        modules: paths of the modules that own them.
        tensors: paths of parameters and buffers.
    """

    name: str
    modules: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is drawn anew, from the output towards the input, and what stays because it carries nothing learned."""

    blocks: tuple[Block, ...]
    left: tuple[str, ...]
    """Whole numbers, counters, and what is not part of a state dict, such as position numbers."""


def plan_of(model: nn.Module, inputs: Float[Tensor, "n *shape"], keep: Sequence[str] = ()) -> Plan:
    """Return the blocks of a network in the order in which they run, last first.

    Every named parameter belongs to one block, and every buffer of floating point that is saved with the model:
    attention's joint projections, class tokens and position embeddings included.

    Args:
        model: to be drawn anew.
        inputs: one is passed to learn in which order layers run.
        keep: paths or globs of tensors that stay.

    Raises:
        EvaluationError: if nothing is left to be drawn.
        SharedWeightsError: if a copy of the model computes by other weights than its own.
    """
    place = _places(model, one_tensor(inputs))
    owned: dict[str, list[str]] = {}
    left: list[str] = []
    for name, tensor, learned in _tensors(model):
        if learned and not any(matches(name, pattern) for pattern in keep) and tensor.numel():
            owned.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            left.append(name)
    if not owned:
        raise EvaluationError(f"{type(model).__name__} has no parameter that could be drawn anew.")
    prove_own_weights(own_copy(model), model, inputs[:1])
    order = sorted(owned, key=lambda path: place[path])
    blocks: list[Block] = []
    for path in order:
        follows = isinstance(model.get_submodule(path), _NORMS) and blocks
        if follows and len(blocks[-1].modules) == 1:
            before = blocks.pop()
            tensors = (*before.tensors, *owned[path])
            blocks.append(Block(before.name, (*before.modules, path), tensors))
        else:
            blocks.append(Block(path or "(model)", (path,), tuple(owned[path])))
    return Plan(tuple(reversed(blocks)), tuple(left))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield parameters and buffers by their first path, and whether they carry what was learned."""
    saved = set(model.state_dict())
    for name, parameter in model.named_parameters():
        yield name, parameter, parameter.is_floating_point()
    for name, buffer in model.named_buffers():
        yield name, buffer, name in saved and buffer.is_floating_point()


def _places(model: nn.Module, inputs: Tensor) -> dict[str, tuple[float, int]]:
    """Return where each module stands in a pass; what returns no tensor, or is not called itself, after its neighbour."""
    ends: dict[str, int] = {}
    for i, ran in enumerate(layers_run(model, inputs[:1])):
        ends.setdefault(ran.layer, i)
    names = [name for name, _ in model.named_modules()]
    found: dict[str, tuple[float, int]] = {}
    for number, name in enumerate(names):
        inside = [end for path, end in ends.items() if path != name and _holds(name, path)]
        if inside:  # its own tensors, such as a class token, come before what it holds
            found[name] = (min(inside) - 0.5, number)
        elif name in ends:
            found[name] = (float(ends[name]), number)
        else:
            found[name] = (found[names[number - 1]][0] if number else -1.0, number)
    return found


def _holds(outer: str, inner: str) -> bool:
    return not outer or inner.startswith(f"{outer}.")


def randomised(
    model: nn.Module,
    blocks: Sequence[Block],
    seed: int,
    calibrate: Float[Tensor, "n *shape"] | None = None,
) -> nn.Module:
    """Return a copy with the parameters of some blocks drawn anew, as by `redraw`; the model is left as found."""
    clone = own_copy(model)
    redraw(clone, blocks, seed, calibrate)
    return clone


def redraw(
    model: nn.Module,
    blocks: Sequence[Block],
    seed: int,
    calibrate: Float[Tensor, "n *shape"] | None = None,
    drawn: Sequence[Block] = (),
) -> None:
    """Draw the parameters of some blocks of a model anew, in place.

    A module that has an initialiser is drawn by it. What that leaves as it was (a bias that starts at zero), or what
    has none (a class token), is drawn from a normal distribution with the tensor's own mean and deviation; buffers
    are shuffled, so that they stay in their range. Each block has its own stream of random numbers, so that a
    cascade's steps agree on what they share.

    Args:
        model: in evaluation mode.
        blocks: of its plan.
        seed: of the draw.
        calibrate: inputs on which running statistics of the blocks' BatchNorms are estimated anew; otherwise they
            start over at mean 0 and variance 1, and activations may explode or die.
        drawn: blocks that were drawn in this model before, which are calibrated too: a cascade's step goes on where
            the last one ended.

    Raises:
        UnchangedError: if a tensor of the blocks is what it was.
    """
    device = device_of(model)
    model.cpu()  # where all draw the same numbers, and the generator is known
    own = {name for block in blocks for name in block.tensors}
    new = _named(model)
    old = {name: tensor.detach().clone() for name, tensor in new.items() if name in own}
    with torch.inference_mode(False), torch.no_grad():
        for block in blocks:
            _draw(model, old, block, seed)
    same = [n for block in blocks for n in block.tensors if _equal(old[n], new[n])]
    if same:
        raise UnchangedError(
            f"{len(same)} tensors are what they were, the first {same[0]!r}: a randomised network must keep nothing."
        )
    model.to(device)
    if calibrate is not None:
        with torch.inference_mode(False), torch.no_grad():
            _calibrate(model, (*drawn, *blocks), calibrate)


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _draw(clone: nn.Module, before: dict[str, Tensor], block: Block, seed: int) -> None:
    default: torch.Generator = torch.default_generator
    own = (int(bytes_id(block.name.encode())[:12], 16) + seed * 1_000_003) % (1 << 63)
    with torch.random.fork_rng(devices=()):
        default.manual_seed(own)
        inside = {n: t for n, t in _named(clone).items() if any(_holds(p, n) for p in block.modules)}
        kept = {n: t.clone() for n, t in inside.items() if n not in block.tensors}
        for path in block.modules:
            _initialise(clone.get_submodule(path))
        after = _named(clone)
        for name, tensor in kept.items():  # an initialiser may reach into what it holds
            after[name].copy_(tensor)
        buffers = dict(clone.named_buffers())
        for name in block.tensors:
            if _equal(after[name], before[name]):
                _redraw(after[name], buffer=name in buffers)


def _initialise(module: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(reset := getattr(module, name, None)):
            reset()
            return


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same; a NaN is the same as another, or it would count as changed."""
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def _redraw(tensor: Tensor, *, buffer: bool) -> None:
    flat = tensor.detach().flatten()
    if buffer and bool((flat != flat[0]).any()):
        shuffled = flat[torch.randperm(len(flat))]
        if torch.equal(shuffled, flat):
            shuffled = flat.roll(1) if not torch.equal(flat.roll(1), flat) else flat.flip(0)
        tensor.copy_(shuffled.view(tensor.shape))
        return
    spread = float(flat.double().std(correction=0)) or 0.1 * max(float(flat[0].abs()), 1.0)
    drawn = flat.double().mean() + spread * torch.randn(flat.shape, dtype=torch.float64)
    tensor.copy_(drawn.abs().view(tensor.shape) if buffer else drawn.view(tensor.shape))


def _calibrate(clone: nn.Module, blocks: Sequence[Block], inputs: Tensor) -> None:
    """Estimate the running statistics of the blocks' BatchNorms on inputs, all in one pass."""
    owners = [clone.get_submodule(path) for block in blocks for path in block.modules]
    norms = [m for m in owners if isinstance(m, _NORMS) and m.track_running_stats]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
        norm.train()
    device, default = device_of(clone), torch.default_generator
    on_cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_cuda):  # a dropout inside a norm would draw
        default.manual_seed(0)
        for place in on_cuda:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(0)
        for part in torch.split(inputs.detach(), 32):
            clone(part.to(device).clone())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
