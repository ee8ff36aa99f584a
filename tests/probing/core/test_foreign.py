"""What libraries leave on a model and changes nothing is let pass, by proof; all else is refused with its own way out."""

import functools
import sys
import types
from collections.abc import Callable, Iterator

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from transformers import BertConfig, BertForSequenceClassification

from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import Saliency
from probing.attribution.path import IntegratedGradients, LayerIntegratedGradients
from probing.core.content_ids import model_id
from probing.core.foreign import ForeignHookError
from probing.evaluation.reinitialise import plan_of, randomised
from probing.models.precision import frozen_copy
from probing.models.scores import Score
from probing.probes.untrained_copy import untrained_copy
from probing.store.store import ActivationStore

X = nets.images()
IDS = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
LAYER = "bert.encoder.layer.1"


def store() -> ActivationStore:
    return ActivationStore(progress=False)


def bert(**settings: object) -> nn.Module:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
        **settings,
    )
    return nets.seeded(BertForSequenceClassification(config))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("always", [False, True])
def test_transformers_hooks_change_no_id_row_or_map(always: bool) -> None:
    model = bert(output_hidden_states=always)
    path = LayerIntegratedGradients("bert.embeddings.word_embeddings", IntegratedGradients(steps=2))
    before = model_id(model)
    rows = store().activations(model, [LAYER], IDS)[LAYER]
    maps = path(Score(model, 1, output="logits"), IDS).values
    with torch.no_grad():
        hidden = model(IDS, output_hidden_states=True).hidden_states[-1]
    left = hooks(model)
    assert left >= 2
    assert model_id(model) == before
    torch.testing.assert_close(store().activations(model, [LAYER], IDS)[LAYER], hidden)
    assert torch.equal(store().activations(model, [LAYER], IDS)[LAYER], rows)
    assert torch.equal(path(Score(model, 1, output="logits"), IDS).values, maps)
    assert hooks(model) == left
    assert len(model(IDS, output_hidden_states=True).hidden_states) == 3
    assert hooks(frozen_copy(model)) == 0


# The shape of accelerate 1.15
HOOKS = """
import functools
import torch

class ModelHook:
    no_grad = False
    def pre_forward(self, module, *args, **kwargs):
        return args, kwargs
    def post_forward(self, module, output):
        return output

class AlignDevicesHook(ModelHook):
    def __init__(self, execution_device, offload=False):
        self.execution_device, self.offload = execution_device, offload
    def pre_forward(self, module, *args, **kwargs):
        return tuple(a.to(self.execution_device) for a in args), kwargs

class SequentialHook(ModelHook):
    def __init__(self, *hooks):
        self.hooks = hooks

def add_hook_to_module(module, hook):
    old_forward = module._old_forward = module.forward
    module._hf_hook = hook
    def new_forward(module, *args, **kwargs):
        args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
        output = module._old_forward(*args, **kwargs)
        return module._hf_hook.post_forward(module, output)
    module.forward = functools.update_wrapper(functools.partial(new_forward, module), old_forward)
"""
MOVING = """
from functools import wraps

def add_warning(fn, model):
    @wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)
    return wrapper
"""


@pytest.fixture
def accelerate(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Return what accelerate has of which this suite knows, in modules of its names."""
    found = types.SimpleNamespace()
    for name, source in (("accelerate.hooks", HOOKS), ("accelerate.big_modeling", MOVING)):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, vars(module))
        vars(found).update(vars(module))
    return found


@pytest.mark.parametrize("how", ["plain", "aligning", "sequential", "dispatched"])
def test_accelerates_hooks_that_only_move_change_nothing(how: str, accelerate: types.SimpleNamespace) -> None:
    net = nets.seeded(nets.BatchNormNet())
    before, maps = model_id(net), Saliency()(Score(net, 1), X).values
    rows = store().activations(net, ["conv1"], X)["conv1"]
    weights = net.conv1.weight.clone()
    hook = accelerate.AlignDevicesHook("cpu")
    hook = {
        "plain": accelerate.ModelHook(),
        "sequential": accelerate.SequentialHook(accelerate.ModelHook(), hook),
    }.get(how, hook)
    accelerate.add_hook_to_module(net.conv1, hook)
    if how == "dispatched":
        accelerate.add_hook_to_module(net, accelerate.AlignDevicesHook("cpu"))
        net.to, net.cuda = (accelerate.add_warning(f, net) for f in (net.to, net.cuda))
        net.hf_device_map = {"": "cpu"}
    assert model_id(net) == before
    assert torch.equal(Saliency()(Score(net, 1), X).values, maps)
    assert torch.equal(store().activations(net, ["conv1"], X)["conv1"], rows)
    drawn = untrained_copy(net, 0)
    assert not torch.equal(drawn.conv1.weight, weights)
    for copied in (frozen_copy(net), drawn, randomised(net, plan_of(net, X).blocks, seed=0)):
        assert copied.to(torch.float64) is copied  # not the model that the method was made for
    assert torch.equal(net.conv1.weight, weights)
    assert net.conv1._hf_hook is hook


def _changing(accelerate: types.SimpleNamespace) -> object:
    class Twice(accelerate.ModelHook):  # type: ignore[misc, name-defined]
        def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
            return 2 * output

    return Twice()


def _without_gradients(accelerate: types.SimpleNamespace) -> object:
    hook = accelerate.ModelHook()
    hook.no_grad = True
    return hook


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_changing, "Twice"),
        (_without_gradients, "ModelHook"),
        (lambda a: a.AlignDevicesHook("cpu", offload=True), "AlignDevicesHook"),
        (lambda a: a.SequentialHook(a.ModelHook(), _changing(a)), "SequentialHook"),
    ],
)
def test_accelerates_hooks_that_do_more_are_refused_with_how_to_take_them_off(
    make: Callable[[types.SimpleNamespace], object], name: str, accelerate: types.SimpleNamespace
) -> None:
    net = nets.seeded(nets.ConvNet())
    accelerate.add_hook_to_module(net.head, make(accelerate))
    message = rf"'head' \(Linear\) runs through accelerate's {name}: .*remove_hook_from_module"
    with pytest.raises(ForeignHookError, match=message):
        model_id(net)


def test_a_forward_that_accelerate_wraps_over_one_of_the_users_is_refused(
    accelerate: types.SimpleNamespace,
) -> None:
    net = nets.seeded(nets.ConvNet())
    net.head.forward = lambda x: 2 * x
    accelerate.add_hook_to_module(net.head, accelerate.ModelHook())
    with pytest.raises(ForeignHookError, match="runs through accelerate's"):
        model_id(net)


def test_accelerates_mixed_precision_is_refused_with_how_to_unwrap() -> None:
    net = nets.seeded(nets.ConvNet())
    net._original_forward = net.forward
    net.forward = functools.partial(type(net).forward, net)
    with pytest.raises(ForeignHookError, match=r"unwrap_model\(model, keep_fp32_wrapper=False\)"):
        model_id(net)


def keep(module: nn.Module, args: object, output: Tensor) -> None:
    KEPT.append(output)


def double(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


KEPT: list[Tensor] = []
OTHERS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "recording": (
        lambda m: m.register_forward_hook(keep),
        "carries a forward hook, 'keep' of test_foreign, .*remove it, by the handle",
    ),
    "changing": (lambda m: m.register_forward_hook(double), "'double' of test_foreign"),
    "partial": (
        lambda m: m.register_forward_hook(functools.partial(keep)),
        "a forward hook, 'keep' of test_foreign",
    ),
    "changing inputs": (
        lambda m: m.register_forward_pre_hook(lambda _, args: args),
        "a forward pre hook, .*<lambda>",
    ),
    "backward": (lambda m: m.register_full_backward_hook(lambda *_: None), "a backward hook"),
    "pruning": (
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        r"'L1Unstructured' of torch\.nn\.utils\.prune, .*permanent by torch\.nn\.utils\.prune\.remove",
    ),
    "old weight norm": (weight_norm, r"remove_weight_norm, or use torch\.nn\.utils\.parametrizations\.weight_norm"),
    "old spectral norm": (spectral_norm, r"remove_spectral_norm, or use .*parametrizations\.spectral_norm"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_hook_is_refused_by_name_with_its_own_way_out(kind: str) -> None:
    net = nets.seeded(nets.ConvNet())
    add, message = OTHERS[kind]
    add(net.head)
    with pytest.raises(ForeignHookError, match=rf"'head' \(Linear\) .*{message}") as refused:
        Saliency()(Score(net, 1), X)
    assert ("prune" in str(refused.value)) == (kind == "pruning")
    assert not KEPT


@pytest.fixture
def posing() -> Iterator[Callable[..., Tensor]]:
    """Return a hook that changes outputs and says that it is of a library's harmless ones."""
    before, double.__module__ = double.__module__, "transformers.utils.output_capturing"
    yield double
    double.__module__ = before


def test_a_hook_let_pass_by_its_name_is_refused_once_it_changes_an_output(
    posing: Callable[..., Tensor],
) -> None:
    for read in (
        lambda net: Saliency()(Score(net, 1), X),
        lambda net: GradCAM()(Score(net, 1), X),
        lambda net: store().activations(net, [""], X),
    ):
        net = nets.seeded(nets.ConvNet())
        net.head.register_forward_hook(posing)
        with pytest.raises(ForeignHookError, match="another output without the hooks"):
            read(net)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


@pytest.mark.parametrize("kind", ["weight norm", "spectral norm", "own"])
def test_parametrized_weights_are_read_as_they_are(kind: str) -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    plain = model_id(net)
    if kind == "own":
        parametrize.register_parametrization(net[0], "weight", Symmetric())
    else:
        norm = {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}
        norm[kind](net[0])
    net.eval()
    inputs = X.flatten()[:20].reshape(5, 4)
    leaf = inputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(Saliency()(Score(net, 1), inputs).values, slope)
    torch.testing.assert_close(store().activations(net, ["0"], inputs)["0"], net[0](inputs).detach())
    before = model_id(net)
    assert before != plain
    with torch.no_grad():
        next(net[0].parametrizations.weight.parameters()).mul_(-1.5)
    assert model_id(net) != before
