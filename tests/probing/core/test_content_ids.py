"""Ids follow content: all of it, nothing else, and in every process alike."""

import copy
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import BatchNormNet, ConvNet, SharedReluNet, images, seeded
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from where import SUPPORT

from probing.core.content_ids import (
    FingerprintError,
    bytes_id,
    content_id,
    model_id,
    tensor_id,
)
from probing.core.foreign import ForeignHookError


class Kind(Enum):
    FIRST = 1
    SECOND = 2


class Everything(nn.Module):
    """A module with each kind of state that a module can have."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.act = nn.ReLU()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.plain = torch.ones(2)
        self.hidden = [nn.Linear(2, 2, bias=False)]
        self.options = {"eps": 1e-6, "sizes": (1, [2, 3])}
        self.norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)
        self.function = functional.relu
        self.block_type = nn.Linear
        self.kind = Kind.FIRST
        self.nothing = None
        self.extra_hooks = 3
        self.meta = {"a": 1}

    @functools.cached_property
    def doubled(self) -> int:
        return 2 * self.extra_hooks

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.act(self.norm(self.conv(x)))


def everything() -> Everything:
    net = Everything()
    net.hidden[0].weight.data.fill_(0.5)
    net.conv.weight.data.fill_(0.25)
    return net


def _next_float(tensor: Tensor) -> None:
    first = tensor.flatten()[:1]
    first.copy_(torch.nextafter(first, torch.tensor(torch.inf)))


CHANGES: dict[str, Callable[[Everything], object]] = {
    "the last bit of a weight": lambda net: _next_float(net.conv.weight.data),
    "a weight written through .data": lambda net: net.conv.weight.data.zero_(),
    "the sign of a zero": lambda net: net.norm.bias.data.neg_(),
    "a buffer": lambda net: _next_float(net.kept),
    "a buffer that no checkpoint keeps": lambda net: _next_float(net.passing),
    "running statistics": lambda net: _next_float(net.norm.running_var),
    "a tensor attribute": lambda net: _next_float(net.plain),
    "a weight of a module hidden in a list": lambda net: _next_float(net.hidden[0].weight.data),
    "a stride": lambda net: setattr(net.conv, "stride", (2, 2)),
    "an epsilon": lambda net: setattr(net.norm, "eps", 1e-3),
    "a nested option": lambda net: net.options["sizes"][1].append(4),
    "a new attribute": lambda net: setattr(net, "new", None),
    "an attribute named like hooks": lambda net: setattr(net, "extra_hooks", 4),
    "an attribute named like a graph's": lambda net: net.meta.update(a=2),
    "a partial's keyword": lambda net: setattr(net, "norm_layer", functools.partial(nn.LayerNorm, eps=1e-5)),
    "a function attribute": lambda net: setattr(net, "function", functional.gelu),
    "a class attribute": lambda net: setattr(net, "block_type", nn.Bilinear),
    "an enum": lambda net: setattr(net, "kind", Kind.SECOND),
    "None to 0": lambda net: setattr(net, "nothing", 0),
    "1 to True": lambda net: net.meta.update(a=True),
    "1 to 1.0": lambda net: net.meta.update(a=1.0),
    "a submodule of another class": lambda net: setattr(net, "act", nn.SiLU()),
    "a submodule more": lambda net: net.add_module("more", nn.Identity()),
    "a submodule less": lambda net: delattr(net, "act"),
    "a bias where none was": lambda net: setattr(net.conv, "bias", nn.Parameter(torch.zeros(2))),
    "another precision": lambda net: net.conv.double(),
    "another shape": lambda net: setattr(net.conv, "weight", nn.Parameter(net.conv.weight.detach().reshape(2, 1, 9, 1))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_a_module_computes_with_is_in_its_id(
    change: Callable[[Everything], object],
) -> None:
    net = everything()
    before = model_id(net)
    assert model_id(everything()) == before
    change(net)
    assert model_id(net) != before


SAME: dict[str, Callable[[Everything], object]] = {
    "training mode": lambda net: net.eval(),
    "frozen weights": lambda net: net.requires_grad_(False),
    "a gradient": lambda net: net.eval()(images()).sum().backward(),
    "the memory layout": lambda net: net.to(memory_format=torch.channels_last),
    "a pass in evaluation mode": lambda net: net.eval()(images()),
    "a pass in inference mode": torch.inference_mode()(lambda net: net.eval()(images())),
    "a cached property": lambda net: net.doubled,
    "a state dict loaded onto itself": lambda net: net.load_state_dict(net.state_dict()),
}


@pytest.mark.parametrize("touch", SAME.values(), ids=SAME)
def test_what_does_not_change_the_output_does_not_change_the_id(
    touch: Callable[[Everything], object],
) -> None:
    net = everything()
    before = model_id(net)
    touch(net)
    assert model_id(net) == before


def test_equal_weights_on_a_fresh_instance_and_on_a_copy_have_one_id() -> None:
    first, second = seeded(ConvNet(), seed=3), seeded(ConvNet(), seed=4)
    assert model_id(first) != model_id(second)
    second.load_state_dict(first.state_dict())
    assert model_id(first) == model_id(second) == model_id(copy.deepcopy(first))


def test_a_class_compiled_in_place_keeps_its_id() -> None:
    net = everything()
    before = model_id(net)
    net.compile(backend="eager")
    assert model_id(net) == before


def test_the_order_and_the_names_of_submodules_are_content() -> None:
    def sequence(*names: str) -> nn.Module:
        return nn.Sequential(OrderedDict((name, nn.ReLU()) for name in names))

    ids = {model_id(sequence(*names)) for names in [("a", "b"), ("b", "a"), ("a", "c"), ("a",)]}
    assert len(ids) == 4
    assert model_id(nn.Sequential(nn.ReLU(), nn.GELU())) != model_id(nn.Sequential(nn.GELU(), nn.ReLU()))


def test_a_module_used_twice_differs_from_two_equal_modules() -> None:
    for layer in (nn.Linear(2, 2), nn.ReLU()):
        shared, apart = nn.Sequential(layer, layer), nn.Sequential(layer, copy.deepcopy(layer))
        assert model_id(shared) != model_id(apart)
        assert model_id(shared) == model_id(copy.deepcopy(shared))


def test_tied_weights_differ_from_equal_weights() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    equal = copy.deepcopy(tied)
    equal[1].weight = nn.Parameter(tied[0].weight.detach().clone())
    assert model_id(tied) != model_id(equal)
    assert model_id(tied) == model_id(copy.deepcopy(tied))


def _class_with(body: str) -> type[nn.Module]:
    """Return a class whose source no file holds, always of the same name."""
    scope: dict[str, object] = {"nn": nn, "torch": torch, "functools": functools}
    exec(f"class Net(nn.Module):\n{body}", scope)
    found = scope["Net"]
    assert isinstance(found, type)
    return found


BODIES = [
    "    def forward(self, x): return x + 1",
    "    def forward(self, x): return x + 2",
    "    def forward(self, x): return x - 1",
    "    def forward(self, x, by=1): return x + by",
    "    def forward(self, x, by=2): return x + by",
    "    by = 1\n    def forward(self, x): return x + self.by",
    "    by = 2\n    def forward(self, x): return x + self.by",
    "    @staticmethod\n    def f(x): return x + 1\n    def forward(self, x): return self.f(x)",
    "    @staticmethod\n    def f(x): return x + 2\n    def forward(self, x): return self.f(x)",
    "    @property\n    def by(self): return 1\n    def forward(self, x): return x + self.by",
    "    @property\n    def by(self): return 2\n    def forward(self, x): return x + self.by",
    "    @torch.no_grad()\n    def forward(self, x): return x + 1",
    "    @torch.no_grad()\n    def forward(self, x): return x + 2",
    "    def forward(self, x): return [i + 1 for i in x]",
    "    def forward(self, x): return [i + 2 for i in x]",
    "    steps = (1, (2, 3))\n    def forward(self, x): return self.steps",
    "    steps = (1, (2, 4))\n    def forward(self, x): return self.steps",
    "    def forward(self, x):\n        x.a()\n        try: x.b()\n        except ValueError: x.c()",
    "    def forward(self, x):\n        try: x.a(); x.b()\n        except ValueError: x.c()",
]


def test_classes_of_one_name_and_other_code_have_other_ids_without_source() -> None:
    assert len({model_id(_class_with(body)()) for body in BODIES}) == len(BODIES)
    assert model_id(_class_with(BODIES[0])()) == model_id(_class_with(BODIES[0])())


def test_classes_of_one_name_and_other_source_have_other_ids(tmp_path: Path) -> None:
    """A list on a class may change while the program runs, so that only the source tells of it."""
    ids = []
    for steps in ("[1, 2]", "[1, 3]", "[1, 2]"):
        file = tmp_path / f"{len(ids)}" / "net.py"
        file.parent.mkdir()
        file.write_text(f"from torch import nn\n\nclass Net(nn.Module):\n    steps = {steps}\n")
        spec = importlib.util.spec_from_file_location("some_net", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules["some_net"] = module  # where `inspect` looks for the file
        spec.loader.exec_module(module)
        ids.append(model_id(module.Net()))
        module.Net.steps.append(4)
        assert model_id(module.Net()) == ids[-1]
        del sys.modules["some_net"]
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize("cls", [Everything, nn.ReLU])
def test_a_forward_replaced_on_the_class_is_seen(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net = everything()
    before = model_id(net)
    monkeypatch.setattr(cls, "forward", lambda self, x: x)
    assert model_id(net) != before


def test_a_constant_replaced_on_the_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    net = everything()
    before = model_id(net)
    monkeypatch.setattr(Everything, "scale", 3.0)
    assert model_id(net) != before


def test_a_base_class_is_part_of_the_class() -> None:
    class Base(nn.Module):
        def shift(self, x: Tensor) -> Tensor:
            return x + 1

    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.shift(x)

    before = model_id(Net())
    Base.shift = lambda self, x: x + 2
    assert model_id(Net()) != before


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward hook": lambda m: m.register_forward_hook(lambda *_: None),
    "forward hook with keywords": lambda m: m.register_forward_hook(lambda *_: None, with_kwargs=True),
    "forward pre hook": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
    "backward pre hook": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "pruning": lambda m: prune.l1_unstructured(m, "weight", 0.5),
}


@pytest.mark.parametrize("add", HOOKS.values(), ids=HOOKS)
def test_a_hook_is_refused_with_the_layer_that_carries_it(
    add: Callable[[nn.Module], object],
) -> None:
    net = seeded(ConvNet())
    add(net.features[2])
    with pytest.raises(ForeignHookError, match=r"'features\.2' \(Conv2d\) carries a "):
        model_id(net)


def test_a_pruned_model_has_an_id_once_pruning_is_made_permanent() -> None:
    net = seeded(ConvNet())
    before = model_id(net)
    prune.l1_unstructured(net.head, "weight", 0.5)
    prune.remove(net.head, "weight")
    assert model_id(net) != before


def test_a_global_hook_is_refused() -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ForeignHookError, match="global forward hooks"):
            model_id(seeded(ConvNet()))
    finally:
        handle.remove()
    assert model_id(seeded(ConvNet()))


def test_a_removed_hook_is_forgotten() -> None:
    net = seeded(ConvNet())
    before = model_id(net)
    net.head.register_forward_hook(lambda *_: None).remove()
    assert model_id(net) == before


@pytest.mark.parametrize("bound", [False, True])
def test_a_forward_patched_onto_an_instance_is_refused(*, bound: bool) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return x

    net = seeded(ConvNet())
    patch = types.MethodType(forward, net.head) if bound else lambda x: x
    net.head.forward = patch
    with pytest.raises(ForeignHookError, match=r"'head' \(Linear\) has the method 'forward' replaced"):
        model_id(net)


def test_a_compiled_model_is_refused_as_compiled() -> None:
    with pytest.raises(ForeignHookError, match=r"the model .* is compiled: pass the model"):
        model_id(torch.compile(seeded(ConvNet()), backend="eager"))


def test_a_compiled_part_is_refused_as_compiled() -> None:
    net = nn.Sequential(torch.compile(seeded(ConvNet()), backend="eager"))
    with pytest.raises(ForeignHookError, match=r"'0' .* is compiled"):
        model_id(net)


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.trace(nn.ReLU(), torch.ones(1))
    with pytest.raises(ForeignHookError, match=r"'0' .* is TorchScript"):
        model_id(nn.Sequential(scripted))


def test_a_traced_graph_is_named_by_its_code_and_weights() -> None:
    class Plus(nn.Module):
        def __init__(self, by: int) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.by

    nets = [seeded(Plus(1)), seeded(Plus(1)), seeded(Plus(2)), seeded(Plus(1), seed=1)]
    first, again, other_code, other_weights = (model_id(fx.symbolic_trace(net)) for net in nets)
    assert first == again
    assert len({first, other_code, other_weights}) == 3


def test_a_graph_edited_in_place_has_another_id() -> None:
    traced = fx.symbolic_trace(seeded(SharedReluNet()))
    before = model_id(traced)
    node = next(n for n in traced.graph.nodes if n.target == "relu")
    node.replace_all_uses_with(node.args[0])
    traced.graph.erase_node(node)
    traced.recompile()
    assert model_id(traced) != before


def test_parametrized_weights_are_content() -> None:
    net = nn.Sequential(parametrizations.weight_norm(seeded(nn.Linear(3, 2))))
    before = model_id(net)
    assert model_id(copy.deepcopy(net)) == before
    net[0].parametrizations.weight.original0.data.mul_(2)
    assert model_id(net) != before


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4, bidirectional=True),  # keeps weak references to its weights
        lambda: nn.GRU(3, 4),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: nn.Embedding(5, 2, padding_idx=0),
        lambda: nn.DataParallel(nn.Linear(2, 2)),
    ],
)
def test_modules_of_pytorch_have_ids_that_follow_their_weights(
    make: Callable[[], nn.Module],
) -> None:
    net = seeded(make())
    before = model_id(net)
    assert model_id(copy.deepcopy(net)) == model_id(seeded(make())) == before
    next(net.parameters()).data.neg_()
    assert model_id(net) != before


def test_an_unregistered_reference_to_the_parent_is_followed_once() -> None:
    def family(bias: float) -> nn.Module:
        parent, child = nn.Sequential(nn.Linear(1, 1)), nn.Identity()
        nn.init.constant_(parent[0].weight, 1.0)
        nn.init.constant_(parent[0].bias, bias)
        child.parent = [parent]
        parent.append(child)
        parent.elder = weakref.ref(child)
        return parent

    assert model_id(family(0)) == model_id(family(0)) != model_id(family(1))


def test_a_module_hidden_in_an_object_may_lead_back_to_the_model() -> None:
    def ring(weight: float) -> nn.Module:
        outer, inner = nn.Identity(), nn.Linear(1, 1, bias=False)
        nn.init.constant_(inner.weight, weight)
        inner.back = types.SimpleNamespace(outer=(outer,))
        outer.hidden = [inner]
        return outer

    assert model_id(ring(0)) == model_id(ring(0)) != model_id(ring(1))


# Settings


@dataclass(frozen=True)
class Setting:
    size: int = 1
    rest: object = None


@dataclass(frozen=True)
class OtherSetting:
    size: int = 1
    rest: object = None


@dataclass
class Loose:
    size: int = 1
    seen: list[int] = field(default_factory=list)


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


class Plain:
    def __init__(self, a: object) -> None:
        self.a = a

    @functools.cached_property
    def costly(self) -> str:
        return f"{self.a}"

    def method(self) -> object:
        return self.a


class Pipeline(list[object]):
    def __call__(self, x: object) -> object:
        return x


class OtherPipeline(list[object]):
    def __call__(self, x: object) -> object:
        return [x]


def adder(by: object) -> Callable[[float], object]:
    def add(x: float) -> object:
        return x + by

    return add


def defaulted(x: int, by: int = 1, *, more: int = 2) -> int:
    return x + by + more


def other_default(by: int, more: int) -> Callable[..., int]:
    function = types.FunctionType(defaulted.__code__, {}, "defaulted", (by,), defaulted.__closure__)
    function.__kwdefaults__ = {"more": more}
    function.__qualname__, function.__module__ = defaulted.__qualname__, defaulted.__module__
    return function


def scaled(by: int) -> Callable[[Callable[[int], int]], Callable[[int], int]]:
    def decorate(function: Callable[[int], int]) -> Callable[[int], int]:
        @functools.wraps(function)
        def call(x: int) -> int:
            return by * function(x)

        return call

    return decorate


@scaled(2)
def twice(x: int) -> int:
    return x


@scaled(3)
def thrice(x: int) -> int:
    return x


thrice.__qualname__ = "twice"


# fmt: off
DISTINCT: dict[str, list[object]] = {
    "scalars": [
        None, 0, 0.0, -0.0, False, "", b"", 1, 1.0, True, "1", b"1", 1j, float("nan"), float("inf"),
    ],
    "strings": ["a", "a\0b", "b", "\ud800", "ä"],
    "containers": [
        [], (), {}, set(), [1], (1,), {1: 1}, {1}, frozenset({1}), [[1]], [1, [2]], [[1], 2],
    ],
    "order": [[1, 2], [2, 1], {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}],
    "paths": [Path("a"), Path("b"), "a"],
    "enums": [Kind.FIRST, Kind.SECOND, 1],
    "dataclasses": [
        Setting(), Setting(2), Setting(rest=Setting()), OtherSetting(), Loose(), Loose(seen=[1]),
    ],
    "objects": [Plain(1), Plain(2), Plain([1]), Slotted(1), Slotted(2)],
    "lists that are pipelines": [Pipeline(), OtherPipeline(), Pipeline([1]), []],
    "lambdas": [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x: x, lambda x: x.real],
    "closures": [adder(1), adder(2), adder([1]), adder((1,))],
    "defaults": [defaulted, other_default(2, 2), other_default(1, 3)],
    "decorated": [twice, thrice],
    "cached functions": [functools.lru_cache(adder(1)), functools.lru_cache(adder(2))],
    "partials": [
        functools.partial(adder, 1), functools.partial(adder, 2), functools.partial(adder, by=1),
        functools.partial(defaulted, 1),
    ],
    "methods": [
        Plain(1).method, Plain(2).method, Plain(1), "a".upper, "b".upper, "a".lower, [1].append,
    ],
    "classes": [
        int, float, nn.Linear, Plain, Setting, _class_with(BODIES[0]), _class_with(BODIES[1]),
    ],
    "builtins": [
        len, print, torch.relu, torch.sigmoid, torch.Tensor.relu, functional.gelu, functional.relu,
        functional.max_pool2d,
    ],
    "tensors": [
        torch.zeros(2), torch.zeros(3), torch.zeros(2, 1), torch.zeros(0), torch.zeros(0, 3),
        torch.zeros(()), torch.ones(2),
        *(torch.zeros(2, dtype=d) for d in (torch.int32, torch.float64, torch.half, torch.bool)),
    ],
    "arrays": [
        np.zeros(2), np.zeros(2, dtype=np.float32), np.zeros((2, 1)), np.ones(2),
        np.array(["a", None], dtype=object), np.array(["b", None], dtype=object),
        np.float64(0), np.float32(0), np.sqrt, np.cos,
    ],
    "patterns": [re.compile("a"), re.compile("b"), re.compile("a", re.IGNORECASE)],
    "modules": [
        nn.ReLU(), nn.GELU(), nn.Dropout(0.1), nn.Dropout(0.2), seeded(ConvNet()),
        seeded(ConvNet(), 1),
    ],
    "random generators": [
        torch.Generator().manual_seed(0), torch.Generator().manual_seed(1),
        np.random.default_rng(0), np.random.default_rng(1),
    ],
    "dtypes": [
        torch.half, torch.float64, torch.device("cpu"), torch.device("meta"), torch.channels_last,
    ],
}
# fmt: on


@pytest.mark.parametrize("values", DISTINCT.values(), ids=DISTINCT)
def test_settings_that_differ_have_ids_that_differ(values: Sequence[object]) -> None:
    ids = [content_id(value) for value in values]
    same = [(a, b) for i, a in enumerate(values) for j, b in enumerate(values[:i]) if ids[i] == ids[j]]
    assert not same
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in ids)
    assert [content_id(value) for value in values] == ids


EQUAL: dict[str, tuple[object, object]] = {
    "sets in another order": ({0, 8}, {8, 0}),  # which collide, so the order of insertion shows
    "equal lambdas": (adder(1), adder(1)),
    "equal objects": (Plain([1]), Plain([1])),
    "a tensor and its copy in another layout": (
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(2, 3).t().contiguous().t(),
    ),
    "a conjugate view and its values": (
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().resolve_conj(),
    ),
    "a negative view and its values": (torch.tensor([1 + 2j]).conj().imag, torch.tensor([-2.0])),
    "a sliced array and its values": (np.arange(4)[::2], np.array([0, 2])),
    "weak references": (weakref.ref(nn.ReLU), weakref.ref(nn.ReLU)),
}


@pytest.mark.parametrize("pair", EQUAL.values(), ids=EQUAL)
def test_equal_settings_have_one_id(pair: tuple[object, object]) -> None:
    assert content_id(pair[0]) == content_id(pair[1])


def test_a_property_computed_and_cached_is_not_content() -> None:
    value = Plain(1)
    before = content_id(value)
    assert value.costly == "1"
    assert content_id(value) == before


def test_values_that_contain_themselves_have_ids() -> None:
    ring: list[object] = [1]
    ring.append(ring)
    other: list[object] = [2]
    other.append(other)

    def countdown(n: int) -> int:
        return countdown(n - 1) if n else 0

    loop = Plain(None)
    loop.a = {"back": loop}
    assert content_id(ring) != content_id(other)
    assert content_id(countdown) == content_id(countdown)
    assert content_id(loop)


def test_a_name_not_bound_yet_may_be_closed_over() -> None:
    def outer() -> Callable[[], object]:
        def inner() -> object:
            return later

        found = content_id(inner)
        later = 1
        assert found != content_id(inner)
        return inner

    assert outer()() == 1


@contextmanager
def _block() -> Iterator[None]:
    yield


REFUSED: dict[str, Callable[[], object]] = {
    "generator": lambda: (i for i in range(3)),
    "generator in a closure": lambda: adder(i for i in range(3)),
    "generator in a module's list": lambda: [nn.ReLU(), {"a": (i for i in range(3))}],
    "lock": threading.Lock,
    "memory view": lambda: memoryview(b"a"),
    "coroutine-like context": _block,
    "frame": sys._getframe,
    "thread-local storage": threading.local,
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "tensor without values": lambda: torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_has_no_stable_content_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(FingerprintError, match=r"has no (stable content|plain values)") as caught:
        content_id(make())
    assert isinstance(caught.value, TypeError)


def test_an_open_file_is_refused(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(FingerprintError, match="TextIOWrapper"),
    ):
        content_id(Setting(rest=file))


def test_a_module_with_an_attribute_of_no_stable_content_is_refused() -> None:
    net = seeded(ConvNet())
    net.lock = threading.Lock()
    with pytest.raises(FingerprintError, match="a lock has no stable content"):
        model_id(net)


def test_bytes_are_named_by_their_content() -> None:
    # XXH3-128 of nothing, as the algorithm's own test vectors give it.
    assert bytes_id(b"") == "99aa06d3014798d86001c324468d497f"
    assert bytes_id(b"a") == bytes_id(bytearray(b"a")) == bytes_id(memoryview(b"a")) != bytes_id(b"b")


def test_one_changed_value_changes_a_tensor_id() -> None:
    tensor = torch.zeros(3, 4)
    ids = {tensor_id(tensor)}
    for i in range(12):
        tensor.view(-1)[i] = 1.0
        ids.add(tensor_id(tensor))
    assert len(ids) == 13


# Real models, and other processes


def sample_ids() -> dict[str, str]:
    """Return ids of many kinds of things, to be compared between processes."""
    import timm
    import torchvision
    from torchvision.transforms import v2

    found: dict[str, str] = {}
    makers: dict[str, Callable[[], nn.Module]] = {
        "resnet18": lambda: torchvision.models.resnet18(weights=None),
        "lite0": lambda: timm.create_model("tf_efficientnet_lite0"),
        "vit": lambda: timm.create_model("vit_tiny_patch16_224"),
        "batch norm": BatchNormNet,
        "lstm": lambda: nn.LSTM(3, 4),
        "everything": everything,
        "graph": lambda: fx.symbolic_trace(SharedReluNet()),
    }
    for name, make in makers.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found[name] = model_id(make())
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    settings: dict[str, object] = {
        "transforms": weights.transforms(),
        "transform maker": weights.transforms,
        "weights": weights,
        "v2": v2.Compose([v2.Resize(3), v2.Normalize([0.5], [0.5])]),
        "timm transform": timm.data.create_transform(224),
        "strings": {f"name {i}": {f"{i}", f"{i + 1}"} for i in range(20)},
        "constants": lambda x: x in {"a", "b", "c", "d"},
        "class": Plain,
        "object": Plain({"a", "b", "c"}),
        "pooling": functional.max_pool2d,
        "array": np.array(["a", None, {"x", "y"}], dtype=object),
        "weak": weakref.WeakValueDictionary({"a": Plain}),
    }
    return found | {name: content_id(value) for name, value in settings.items()}


def test_ids_are_the_same_in_a_process_whose_strings_hash_otherwise(repository: Path) -> None:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    code = "import json, test_content_ids; print(json.dumps(test_content_ids.sample_ids()))"
    elsewhere = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "PYTHONHASHSEED": seed,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{SUPPORT}{os.pathsep}{repository}",
        },
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    here = sample_ids()
    assert json.loads(elsewhere.communicate()[0]) == here
    assert len(set(here.values())) == len(here)


def test_the_id_of_a_real_model_survives_a_pass_and_costs_milliseconds() -> None:
    import torchvision

    net = torchvision.models.resnet18(weights=None).eval()
    before = model_id(net)
    net(torch.zeros(1, 3, 32, 32))
    start = time.perf_counter()
    assert model_id(net) == before
    assert time.perf_counter() - start < 2  # 0.01 s on a free machine


def _eight_bits(seed: int) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return torch.ao.quantization.quantize_dynamic(seeded(net, seed), {nn.Linear}, dtype=torch.qint8).eval()


@pytest.mark.filterwarnings("ignore")  # such tensors are deprecated
def test_quantised_weights_are_in_the_id() -> None:
    assert model_id(_eight_bits(0)) == model_id(_eight_bits(0)) != model_id(_eight_bits(1))
    values = torch.tensor([[-1.0, 0.5], [0.25, 1.0]])
    whole = torch.quantize_per_tensor(values, 0.25, 0, torch.qint8)
    other = torch.quantize_per_tensor(values * 2, 0.5, 0, torch.qint8)
    assert torch.equal(whole.int_repr(), other.int_repr())  # which mean other numbers
    rows = torch.quantize_per_channel(values, torch.tensor([0.25, 0.25]), torch.tensor([0, 0]), 0, torch.qint8)
    columns = torch.quantize_per_channel(values, torch.tensor([0.25, 0.25]), torch.tensor([0, 0]), 1, torch.qint8)
    assert len({tensor_id(t) for t in (whole, other, rows, columns, whole.dequantize(), whole.int_repr())}) == 6
    assert tensor_id(whole) == tensor_id(whole.clone())
