"""How a forward pass runs: number format, memory layout, folded BatchNorm, on a prepared copy."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from probing.core.doubles import has_doubles
from probing.core.errors import ArgumentError
from probing.core.foreign import take_off
from probing.core.inputs import Batch, Inputs, joined
from probing.models.calling import run
from probing.models.layers import resolve, split_call

Kind = Literal["float32", "tf32", "fast", "reference", "float64"]
BatchT = TypeVar("BatchT", Tensor, Inputs, Batch)


@dataclass(frozen=True)
class Precision:
    """How activations and gradients are computed.

    Attributes:
        kind: `float32`: channels_last layout and BatchNorm folded into convolutions, equal to the
            model as given up to rounding. `tf32`: the same on a CUDA device, which rounds factors of products to ten
            bits (about three digits); gradients in `float32`. `fast`: bfloat16 autocast besides (about three digits),
            with gradients in `float32`. `reference`: the model exactly as given. `float64`: double
            precision throughout.
    """

    kind: Kind = "float32"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ArgumentError(f"precision must be one of {get_args(Kind)}, got {self.kind!r}.")

    @property
    def gradients(self) -> "Precision":
        """How gradients are computed: bfloat16 is unfit for them (cosine to float32 0.91–0.97)."""
        return Precision("float32") if self.kind in {"fast", "tf32"} else self

    @property
    def tolerance(self) -> float:
        """Relative difference (in norm) that rounding and batch shape explain."""
        return {"float32": 1e-3, "tf32": 2e-2, "fast": 5e-2, "reference": 1e-3, "float64": 1e-9}[self.kind]

    def arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context that forward and backward passes run in."""
        if self.kind == "fast":
            return torch.autocast(device.type, torch.bfloat16)
        if device.type != "cuda" or self.kind not in {"float32", "tf32"}:
            return nullcontext()
        return _float32_as("ieee" if self.kind == "float32" else "tf32")

    def prepare(self, model: nn.Module, layers: Collection[str], device: torch.device, example: Batch) -> "Prepared":
        """Return a frozen copy of the model, ready to run, that shares weights it need not change.

        The layout channels_last and folded BatchNorm are used only where two rows of a real example show that the
        copy runs and gives the model's own output; else folding alone, else the model as given. Time is not
        measured: which copy serves, and so the last digits of a result, would change from run to run.

        Args:
            model: in evaluation mode.
            layers: paths whose outputs will be read, so that what they return stays what it is.
            device: where it will run.
            example: one input or more, `[n, …]`; the first is passed.

        Raises:
            Exception: the model's own, if it does not take the example.
        """
        with torch.inference_mode(False):  # folded weights take part in gradients later
            given = self._as_given(model, device, example)
            if self.kind not in {"float32", "tf32", "fast"}:
                return given
            candidates = list(_candidates(given, layers, example))
            if not candidates:
                return given
            rows, expected = given.reference(example)
            for candidate in candidates:
                try:
                    if agree(candidate.output(rows), expected):
                        return candidate
                except Exception:  # what the model itself runs its copy may not, as `view` in another layout
                    continue
            return given

    def _as_given(self, model: nn.Module, device: torch.device, example: Batch) -> "Prepared":
        if self.kind == "float64" and not has_doubles(device):
            raise ArgumentError(f"{device.type} has no float64: compute in float32, or move the model to the CPU.")
        if self.kind == "tf32" and device.type != "cuda":
            raise ArgumentError(f"tf32 is a format of CUDA devices, which {device.type} has not: compute in float32.")
        copy = frozen_copy(model).to(device)
        if self.kind == "float64":
            return Prepared(copy.double(), self, device, torch.float64)
        given = Prepared(copy, self, device)
        weights = (t.dtype for t in (*copy.parameters(), *copy.buffers()) if t.is_floating_point())
        own = next(weights, example.dtype)
        if not example.is_floating_point() or own == example.dtype:
            return given
        try:
            given.output(example[:1])
        except RuntimeError:  # most layers take numbers of their weights' format only
            return replace(given, dtype=own, cast=str(own).removeprefix("torch."))
        return given


AS_GIVEN = Precision("reference")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frozen copy of a model, and how batches enter it.

    Attributes:
        model: the copy.
        precision: how it computes.
        device: where it runs.
        dtype: number format that floating-point batches are brought to; None for their own.
        channels_last: whether images are laid out so.
        folded: how many BatchNorm layers went into convolutions.
        cast: the format that examples were brought to since the model takes no other; empty if they were not.
    """

    model: nn.Module
    precision: Precision
    device: torch.device
    dtype: torch.dtype | None = None
    channels_last: bool = False
    folded: int = 0
    cast: str = ""

    @property
    def how(self) -> str:
        """What was done to the model and to what it is given, in words."""
        layout = ["channels_last"] if self.channels_last else []
        folded = [f"{self.folded} BatchNorm folded"] if self.folded else []
        cast = [f"examples cast to {self.cast}"] if self.cast else []
        return ", ".join(layout + folded + cast) or "as given"

    def arithmetic(self) -> AbstractContextManager[object]:
        """Return the context that forward and backward passes run in."""
        return self.precision.arithmetic(self.device)

    def inputs(self, batch: BatchT) -> BatchT:
        """Return a copy of a batch as the model takes it: it may be overwritten."""
        return self._placed(batch) if isinstance(batch, Tensor) else batch.map(self._placed)

    def _placed(self, tensor: Tensor) -> Tensor:
        image = self.channels_last and tensor.ndim == 4
        layout = torch.channels_last if image else torch.contiguous_format
        dtype = self.dtype if tensor.is_floating_point() and self.dtype else tensor.dtype
        return tensor.to(self.device, dtype, copy=True, memory_format=layout)

    def output(self, batch: Batch) -> object:
        """Return the model's output, without gradients; what it draws from random generators is not missed afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices),
            self.precision.gradients.arithmetic(self.device),  # bfloat16 would hide what is compared
        ):
            return run(self.model, self.inputs(batch))

    def reference(self, example: Batch) -> tuple[Batch, object]:
        """Return two rows of an example and the output for them; one row for a model that takes no more.

        One row alone is laid out like another where its batch axis is merged with the next.
        """
        pair = joined([example[:1]] * 2)
        try:
            return pair, self.output(pair)
        except (RuntimeError, AssertionError, ValueError, IndexError):
            return example[:1], self.output(example[:1])


def _candidates(given: Prepared, layers: Collection[str], example: Batch) -> Iterator[Prepared]:
    """Yield quicker copies that may do, the quickest first."""
    keep = {split_call(layer)[0] for layer in layers}
    folded = frozen_copy(given.model)
    count = fold_batchnorm(folded, keep)
    tensors = (*given.model.parameters(), *given.model.buffers())
    if example.ndim == 4 or any(tensor.ndim == 4 for tensor in tensors):
        laid = frozen_copy(folded)
        _lay_channels_last(laid)
        yield replace(given, model=laid, channels_last=True, folded=count)
    if count:
        yield replace(given, model=folded, folded=count)


@contextmanager
def _float32_as(how: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Multiply float32 as float32, or with factors rounded to TF32's ten bits, as GPUs do in convolutions by default."""
    cudnn, products = cast("Any", torch.backends.cudnn), cast("Any", torch.backends.cuda.matmul)
    new = hasattr(cudnn, "conv")  # since torch 2.9
    switches = [cudnn.conv, cudnn.rnn, products] if new else [cudnn, products]
    name, value = ("fp32_precision", how) if new else ("allow_tf32", how == "tf32")
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, value)
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            setattr(switch, name, was)


def agree(a: object, b: object) -> bool:
    """Whether two outputs of a model are the same up to rounding; NaN agrees with NaN, and infinity with itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or not b.is_floating_point() or not b.numel():
            return torch.equal(a, b)
        scale = max(1e-4, 8 * torch.finfo(b.dtype).eps)
        largest = float(b.abs().nan_to_num(0, 0, 0).max())
        return torch.allclose(a, b, rtol=0, atol=scale * (largest + 1e-12), equal_nan=True)
    if isinstance(a, Sequence) and isinstance(b, Sequence) and len(a) == len(b):
        return all(agree(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return agree([*a.values()], [*b.values()])
    # What is no number, such as a cache of keys and values, is nothing that anybody reads.
    return type(a) is type(b) and not isinstance(a, Tensor | Sequence)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's tensors are; the CPU if it has none."""
    first: Tensor | None = next(model.parameters(), None)
    if first is None:
        first = next(model.buffers(), None)
    return torch.device("cpu") if first is None else first.device


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model that shares its weights, which get no gradients there.

    Tensors that are no weights are its own, since passes may write them. It keeps activations instead of computing
    them again: checkpointed parts hide their layers from readers.
    """
    with torch.inference_mode(False):
        memo: dict[int, object] = {id(b): b.detach().clone() for b in model.buffers()}
        for module in model.modules():
            # Tensors kept as plain attributes may have a graph, which can't be copied.
            own = [v for v in vars(module).values() if isinstance(v, Tensor)]
            memo |= {id(v): v.detach().clone() for v in own}
        memo |= {id(p): _frozen(p) for p in model.parameters()}
        clone = copy.deepcopy(model, memo)
    take_off(clone)
    for module in clone.modules():
        for switch in _CHECKPOINTING:
            if getattr(module, switch, None) is True:
                setattr(module, switch, False)
    return clone


# What timm, transformers, torchvision's DenseNet, Swin's authors and OpenMMLab call it.
_CHECKPOINTING = (
    "grad_checkpointing",
    "gradient_checkpointing",
    "memory_efficient",
    "use_checkpoint",
    "with_cp",
)


def _frozen(weight: Tensor) -> nn.Parameter:
    """Return a weight without gradients; one made in inference mode, which can enter no graph, is copied."""
    data = weight.clone() if weight.is_inference() else weight.detach()
    return nn.Parameter(data, requires_grad=False)


def _lay_channels_last(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:  # `Module.to` fails on five axes
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def fold_batchnorm(model: nn.Module, keep: Collection[str] = ()) -> int:
    """Fold BatchNorm layers in evaluation mode into the convolutions before them, in place.

    Only pairs that tracing proves are connected by nothing else are folded; a model that can't be
    traced stays as it is. The output of every layer in `keep` stays what it was.

    Returns:
        How many pairs were folded.
    """
    inside = [set(resolve(model, layer).modules()) for layer in keep if layer]
    count = 0
    if not _count_norms(model):
        return count  # nothing to trace for
    for conv_name, norm_name in _pairs(model):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        # A layer that holds the convolution but not the norm returns what lies between them.
        if not any(conv in modules and norm not in modules for modules in inside):
            _fold(conv, norm)
            model.set_submodule(norm_name, _what_follows(norm))
            count += 1
    return count


def _fold(conv: nn.Module, norm: nn.Module) -> None:
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    conv.requires_grad_(False)


# Exactly these classes: subclasses may compute something else. timm's convolution is an ordinary
# one, padding apart; its norm has the activation inside.
_CONVOLUTIONS = {
    "torch.nn.modules.conv.Conv1d",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.conv.Conv3d",
    "timm.layers.conv2d_same.Conv2dSame",
}
_NORM_WITH_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"
_NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d",
    _NORM_WITH_ACTIVATION,
}


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _count_norms(model: nn.Module) -> int:
    return sum(_class_of(module) in _NORMS for module in model.modules())


def _what_follows(norm: nn.Module) -> nn.Module:
    if _class_of(norm) != _NORM_WITH_ACTIVATION:
        return nn.Identity().eval()
    parts = OrderedDict(drop=norm.get_submodule("drop"), act=norm.get_submodule("act"))
    return nn.Sequential(parts).eval()


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = _class_of(m) in _CONVOLUTIONS | _NORMS
        return known or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the paths of convolutions and of the norms that alone read them."""
    try:
        nodes = list(_Tracer().trace(frozen_copy(model)).nodes)  # on a copy: it may keep proxies
    except Exception:  # tracing runs the model's own code, which may raise anything: fold nothing
        return
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    names = Counter(map(id, (m for _, m in model.named_modules(remove_duplicate=False))))
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = str(before.target), str(node.target)
        once = calls[conv] == 1 and calls[norm] == 1 and names[id(model.get_submodule(norm))] == 1
        if once and not {conv, norm} & read and _is_pair(*map(model.get_submodule, (conv, norm))):
            yield conv, norm


def _is_pair(conv: nn.Module, norm: nn.Module) -> bool:
    known = _class_of(conv) in _CONVOLUTIONS and _class_of(norm) in _NORMS
    return known and not norm.training and norm.running_mean is not None
