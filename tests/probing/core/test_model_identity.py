"""A name that was found once stands until anything changes that it is made of; each kind of change is seen."""

import functools
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from host_reads import host_reads
from nets import ConvNet, seeded
from test_content_ids import CHANGES, HOOKS, SAME, Everything, everything
from torch import Tensor, fx, nn

from probing.core import checksums, model_identity
from probing.core.content_ids import model_id
from probing.core.foreign import ForeignHookError
from probing.core.model_identity import identity


class Config:
    """Settings as an object, as transformers keeps them."""

    def __init__(self) -> None:
        self.sizes = [1, 2]
        self.inner = {"eps": 1e-5}


class Wide(Everything):
    """More places that a model may keep what it computes by in."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.more = [1, [2.0, {"deep": "x"}]]
        self.by_name = {"first": [nn.Linear(2, 2)], "second": 1}
        self.parts = nn.ModuleList([nn.Conv2d(1, 1, 3), nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
        self.table = nn.Parameter(torch.arange(12.0).reshape(4, 3))
        self.register_buffer("brief", torch.tensor([1.0, 2.0, 4.0]), persistent=False)
        self.scaled = by(2.0)
        self.loop: list[object] = [self]


def by(factor: float) -> Callable[[Tensor], Tensor]:
    settings = [factor]

    def times(x: Tensor, *, more: float = 1.0) -> Tensor:
        return settings[0] * more * x

    return times


def wide() -> Wide:
    torch.manual_seed(0)
    return Wide().eval()


@pytest.fixture
def whole_ids(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Collect the models of which an id is made anew."""
    asked: list[nn.Module] = []

    def counted(model: nn.Module) -> str:
        asked.append(model)
        return model_id(model)

    monkeypatch.setattr(model_identity, "model_id", counted)
    return asked


def swap_rows(net: Wide) -> None:
    net.table.data[[0, 2]] = net.table.data[[2, 0]]


def swap_values(net: Wide) -> None:
    net.brief[:2] = net.brief[:2].flip(0)


def same_sum(net: Wide) -> None:
    net.brief += torch.tensor([1.0, -1.0, 0.0])


def last_bit(tensor: Tensor) -> None:
    bits = tensor.detach().view(torch.int32)
    bits.view(-1)[-1] ^= 1


def another(function: Callable[..., object], **changes: object) -> None:
    for name, value in changes.items():
        setattr(function, name, value)


WEIGHTS: dict[str, Callable[[Wide], object]] = {
    "a weight in place": lambda net: net.table.detach().mul_(2),
    "a weight through .data": lambda net: net.table.data.zero_(),
    "a weight through numpy": lambda net: net.table.detach().numpy().fill(7),
    "the last bit": lambda net: last_bit(net.table),
    "the last bit, through .data": lambda net: last_bit(net.table.data),
    "rows that change places": swap_rows,
    "values that change places": swap_values,
    "another value of the same sum": same_sum,
    "weights that change places": lambda net: setattr(
        net, "table", nn.Parameter(net.table.detach().flip(0).contiguous().flip(1))
    ),
    "another tensor behind a weight": lambda net: setattr(net.table, "data", net.table.data + 1),
    "other shapes of the same bits": lambda net: setattr(net.table, "data", net.table.data.view(3, 4)),
    "another type of the same bits": lambda net: setattr(net.brief, "data", net.brief.view(torch.int32)),
    "a running statistic": lambda net: last_bit(net.norm.running_mean),
    "a buffer that no checkpoint keeps": lambda net: last_bit(net.brief),
    "a weight of a module in a dictionary": lambda net: last_bit(net.by_name["first"][0].weight),
    "an optimizer's step": lambda net: step(net.table),
}
OTHERS: dict[str, Callable[[Wide], object]] = {
    "an attribute in a nested list": lambda net: net.more[1].append(3.0),
    "a value in a nested list": lambda net: net.more.__setitem__(0, 2),
    "a value in a nested dictionary": lambda net: net.more[1][1].update(deep="y"),
    "two values that change places": lambda net: net.more.reverse(),
    "an attribute of an object": lambda net: setattr(net.config, "hidden", 3),
    "a list of an object": lambda net: net.config.sizes.append(3),
    "a dictionary of an object": lambda net: net.config.inner.update(eps=1e-3),
    "a key of another name": lambda net: net.by_name.update(third=net.by_name.pop("second")),
    "a module swapped": lambda net: net.parts.__setitem__(0, nn.Conv2d(1, 1, 3)),
    "modules that change places": lambda net: setattr(net.parts, "_modules", dict(reversed(net.parts._modules.items()))),
    "a module swapped in a list": lambda net: net.hidden.__setitem__(0, nn.Linear(2, 2)),
    "a tie": lambda net: setattr(net.hidden[0], "weight", net.by_name["first"][0].weight),
    "what a function closes over": lambda net: net.scaled.__closure__[0].cell_contents.append(2),
    "what a function closes over, replaced": lambda net: setattr(net.scaled.__closure__[0], "cell_contents", [3.0]),
    "a default of a function": lambda net: net.scaled.__kwdefaults__.update(more=2.0),
    "the code of a function": lambda net: another(net.scaled, __code__=replaced_code(net.scaled)),
    "another class": lambda net: setattr(net, "__class__", Other),
    "other attributes": lambda net: setattr(net, "__dict__", vars(net) | {"extra_hooks": 4}),
}


class Other(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def replaced_code(function: Callable[..., object]) -> object:
    return function.__code__.replace(co_consts=(*function.__code__.co_consts, "more"))  # type: ignore[attr-defined]


def step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    weight.grad = None


@pytest.mark.parametrize("change", (WEIGHTS | OTHERS).values(), ids=WEIGHTS | OTHERS)
def test_each_change_is_seen_by_the_short_way(change: Callable[[Wide], object], whole_ids: list[nn.Module]) -> None:
    net = wide()
    before = identity(net)
    assert identity(net) == before == model_id(net)
    assert len(whole_ids) == 1, "the short way is not taken where nothing changed"
    change(net)
    assert identity(net) == model_id(net) != before
    assert identity(net) == model_id(net)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_in_an_id_is_seen_by_the_short_way(
    change: Callable[[Everything], object], whole_ids: list[nn.Module]
) -> None:
    net = everything()
    before = identity(net)
    assert identity(net) == before
    assert len(whole_ids) == 1
    change(net)
    assert identity(net) == model_id(net) != before


@pytest.mark.parametrize("touch", SAME.values(), ids=SAME)
def test_what_changes_no_id_changes_no_identity(touch: Callable[[Everything], object]) -> None:
    net = everything()
    before = identity(net)
    touch(net)
    assert identity(net) == before == identity(net)


def test_the_training_flag_does_not_cost_a_whole_id(whole_ids: list[nn.Module]) -> None:
    net = wide()
    assert identity(net) == identity(net.train()) == identity(net.eval())
    assert len(whole_ids) == 1


@pytest.mark.parametrize("cls", [Everything, nn.ReLU, nn.Module])
def test_a_forward_replaced_on_a_class_is_seen(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    net = wide()
    before = identity(net)
    monkeypatch.setattr(cls, "forward", lambda self, x: x)
    assert identity(net) == model_id(net) != before
    monkeypatch.undo()
    assert identity(net) == before


def test_other_code_of_the_same_method_is_seen() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, by: float = 1.0) -> Tensor:
            return x + by

    net = Net()
    ids = [identity(net)]
    Net.forward.__defaults__ = (2.0,)
    ids.append(identity(net))
    Net.forward.__code__ = (lambda self, x, by=1.0: x - by).__code__
    ids.append(identity(net))
    Net.bias = 3
    ids.append(identity(net))
    assert len(set(ids)) == 4
    assert ids[-1] == model_id(net)


def test_a_wrapped_methods_inner_code_is_seen() -> None:
    class Net(nn.Module):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    net = Net()
    before = identity(net)
    assert identity(net) == before
    Net.forward.__wrapped__.__code__ = (lambda self, x: x + 2).__code__  # type: ignore[attr-defined]
    assert identity(net) == model_id(net) != before


@pytest.mark.parametrize("add", HOOKS.values(), ids=HOOKS)
def test_a_hook_added_after_the_name_was_found_is_refused(add: Callable[[nn.Module], object]) -> None:
    net = seeded(ConvNet())
    identity(net)
    add(net.features[2])
    with pytest.raises(ForeignHookError, match=r"'features\.2' \(Conv2d\) carries a "):
        identity(net)


def test_a_global_hook_and_a_forward_put_on_an_instance_are_refused_after_the_name_was_found() -> None:
    net = seeded(ConvNet())
    before = identity(net)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    with pytest.raises(ForeignHookError, match="global forward hooks"):
        identity(net)
    handle.remove()
    assert identity(net) == before
    net.features[0].forward = lambda x: x
    with pytest.raises(ForeignHookError, match="has the method 'forward' replaced"):
        identity(net)


def test_a_part_that_changes_unseen_is_named_by_the_whole_id_each_time(whole_ids: list[nn.Module]) -> None:
    net = wide()
    net.data = bytearray(b"ab")  # can be written to without any assignment
    before = identity(net)
    net.data[0] = 99
    assert identity(net) == model_id(net) != before
    assert len(whole_ids) == 2


def test_a_traced_models_other_code_is_seen(whole_ids: list[nn.Module]) -> None:
    traced = fx.symbolic_trace(seeded(ConvNet()))
    before = identity(traced)
    assert identity(traced) == before
    assert len(whole_ids) == 1
    output = next(node for node in traced.graph.nodes if node.op == "output")
    with traced.graph.inserting_before(output):
        output.args = (traced.graph.call_function(torch.neg, output.args),)
    traced.recompile()
    assert identity(traced) == model_id(traced) != before


@pytest.mark.parametrize("make", [wide, lambda: seeded(ConvNet())], ids=["with a reference to itself", "plain"])
def test_a_name_keeps_no_model_alive(make: Callable[[], nn.Module]) -> None:
    net = make()
    identity(net)
    identity(net)
    there, weights = weakref.ref(net), weakref.ref(next(net.parameters()))
    del net
    gc.collect()
    assert there() is None
    assert weights() is None


def test_real_models_are_named_the_short_way(whole_ids: list[nn.Module]) -> None:
    import timm
    import torchvision
    from transformers import BertConfig, BertModel

    nets = [
        torchvision.models.resnet18(weights=None),
        timm.create_model("tf_efficientnet_lite0"),
        timm.create_model("vit_tiny_patch16_224"),
        BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)),
        nn.LSTM(3, 4),
        nn.TransformerEncoderLayer(8, 2),
    ]
    for net in nets:
        assert identity(net) == identity(net)
        with torch.no_grad():
            first = next(net.parameters())
            last_bit(first.data)
        assert identity(net) == model_id(net)
    assert len(whole_ids) == 2 * len(nets)


def test_a_lock_taken_by_another_thread_is_no_part_of_it() -> None:
    """Threads that ask at once get the same name."""
    net = wide()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(identity(net))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [model_id(net)] * 4


# Checksums, by themselves


def both(tensors: list[Tensor]) -> tuple[object, object]:
    """Return the checksum of the host and, made on the CPU as well, that of an accelerator."""
    return checksums.checksum(tensors), checksums.on_device(tensors, torch.device("cpu"))


FORMATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]


@pytest.mark.parametrize("dtype", FORMATS)
def test_one_flipped_bit_anywhere_changes_a_checksum(dtype: torch.dtype) -> None:
    tensors = [torch.arange(7).to(dtype), torch.zeros(3, 5, dtype=dtype), torch.ones((), dtype=dtype)]
    before = both(tensors)
    assert both(tensors) == before
    for tensor in tensors:
        if dtype == torch.bool:
            tensor.view(-1)[-1] = ~tensor.view(-1)[-1]
        else:
            tensor.view(-1)[-1:].view(torch.uint8)[0] ^= 1
        now = both(tensors)
        assert all(a != b for a, b in zip(now, before, strict=True))
        before = now


@pytest.mark.parametrize("rows", [1, 5])
def test_order_counts_inside_a_tensor_across_pieces_and_between_tensors(
    rows: int, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    monkeypatch.setattr(checksums, "_PIECE", 256)
    monkeypatch.setattr(checksums, "_WORTH_THREADS", 1024)
    monkeypatch.setattr(checksums, "_ROW", 16)
    monkeypatch.setattr(checksums, "_ROWS", rows)
    checksums._keys.cache_clear()
    tensors = [torch.randn(31, 7, generator=generator), torch.randn(64, generator=generator)]
    found = {both(tensors)}
    for a, b in [((0, 0), (30, 6)), ((3, 1), (3, 2)), ((0, 0), (15, 3))]:
        changed = [tensors[0].clone(), tensors[1]]
        changed[0][a], changed[0][b] = tensors[0][b], tensors[0][a]
        found.add(both(changed))
    found.add(both([tensors[0], tensors[1].flip(0)]))
    first, second = tensors[1].split(32)
    swapped = [tensors[0], torch.cat([second, first])]
    found.add(both(swapped))
    assert len(found) == len({a for a, _ in found}) == len({b for _, b in found}) == 6
    checksums._keys.cache_clear()


def test_what_does_not_lie_side_by_side_is_read_all_the_same() -> None:
    base = torch.arange(24.0).reshape(4, 6)
    for view in (
        base[:, ::2],
        base.t(),
        base[0].expand(3, 6),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ):
        before = both([view])
        assert both([view]) == before
        view.data.flatten()  # a read
        with torch.no_grad():
            view[0].add_(1)
        assert all(a != b for a, b in zip(both([view]), before, strict=True))


def test_threads_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    tensors = [torch.randn(5000, generator=generator) for _ in range(3)]
    monkeypatch.setattr(checksums, "_PIECE", 1024)
    alone = checksums.checksum(tensors)
    monkeypatch.setattr(checksums, "_WORTH_THREADS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert checksums.checksum(tensors) == alone


def test_an_accelerators_checksum_is_read_as_one_number() -> None:
    tensors = [torch.randn(100, 100), torch.zeros(3)]
    checksums.on_device(tensors, torch.device("cpu"))
    with host_reads(tensors) as reads:
        checksums.on_device(tensors, torch.device("cpu"))
    assert len(reads) == 1


def test_a_functions_partial_is_walked() -> None:
    net = seeded(ConvNet())
    net.make = functools.partial(nn.Linear, bias=False)
    before = identity(net)
    net.make.keywords["bias"] = True
    assert identity(net) == model_id(net) != before
