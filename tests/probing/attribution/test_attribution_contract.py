"""What every local method promises, whatever it computes."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import nets
import pytest
import torch
from methods import ARGUMENTS, TARGETS, made
from torch import Tensor, nn

from probing.attribution import METHODS
from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.baselines import Samples
from probing.core.content_ids import model_id
from probing.core.errors import ProbingError
from probing.core.inputs import InputError
from probing.models.readings import OutputError
from probing.models.scores import ModelModeError, Score, TargetError, Unit
from probing.results.result import describe, rebuild

OF_A_LAYER = {"layer_ig", "layer_conductance", "internal_influence"}
MAPS = {"cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "ablationcam", "scorecam", "eigencam", "finercam"}
every_method = pytest.mark.parametrize("name", METHODS)


def net() -> nn.Module:
    return nets.seeded(nets.ConvNet()).double()


def batch() -> Tensor:
    return nets.images().double()


@every_method
def test_values_have_the_inputs_shape_and_format(name: str) -> None:
    found = made(name)(Score(net(), TARGETS), batch())
    assert isinstance(made(name), AttributionMethod)
    assert isinstance(found, Attribution)
    assert found.values.dtype == torch.float64
    shape = (4, 5, 6, 6) if name in OF_A_LAYER else (4, 1, 6, 6)
    assert found.values.shape == shape
    assert torch.isfinite(found.values).all()
    assert not found.values.requires_grad
    assert found.values.is_contiguous()
    if name not in OF_A_LAYER:
        assert found.upsampled().shape == batch().shape
    if name in MAPS | OF_A_LAYER:
        assert found.layer == "features"


@every_method
def test_the_score_its_unit_and_its_targets_are_in_the_result(name: str) -> None:
    found = made(name)(Score(net(), TARGETS), batch())
    expected = net()(batch())[torch.arange(4), TARGETS].detach()
    torch.testing.assert_close(found.score, expected)
    assert found.target == (0, 1, 2, 1)
    assert found.unit == "logit"
    assert found.n_forward > 0
    assert found.prepared == ("as given" if name in {"lrp", "deeplift"} else "channels_last")
    for key, values in found.diagnostics.items():
        assert len(values) == 4, key


@every_method
def test_no_target_is_the_top_class_of_each_input(name: str) -> None:
    model, x = net(), batch()
    tops = model(x).argmax(1)
    assert len(set(tops.tolist())) > 1
    found, expected = (made(name)(score, x) for score in (Score(model), Score(model, tops)))
    assert found.target == tuple(tops.tolist())
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.score, expected.score)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["saliency", "lrp", "lime"])
def test_examples_are_cast_for_the_top_class_and_for_probabilities(name: str, dtype: torch.dtype) -> None:
    model, x = nets.seeded(nets.ConvNet()).to(dtype), nets.images()
    tops = model(x.to(dtype)).argmax(1)
    for unit in ("logit", "probability"):
        found = made(name)(Score(model, unit=unit), x)
        assert found.target == tuple(tops.tolist())
        assert found.values.dtype == torch.float32
        expected = made(name)(Score(model, tops, unit), x)
        assert torch.equal(found.values, expected.values)


class Ends(nn.Module):
    """A network with another end."""

    def __init__(self, net: nn.Module, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.end = net, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.net(x))


@pytest.mark.parametrize("unit", ["probability", "logprob"])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"cam", "finercam", "deeplift"}))  # which take logits only
def test_probabilities_of_probabilities_are_refused_and_one_logit_s_is_its_sigmoid(name: str, unit: Unit) -> None:
    x = batch()
    for end in (torch.sigmoid, lambda y: y.softmax(1), lambda y: y[:, :1].sigmoid()):
        with pytest.raises(OutputError, match="returns probabilities already"):
            made(name)(Score(Ends(net(), end).eval(), 0, unit), x)
    one = Ends(net(), lambda y: y[:, :1] * 0.1).eval()
    two = Ends(net(), lambda y: torch.cat([y[:, :1] * 0.1, torch.zeros_like(y[:, :1])], 1)).eval()
    found, expected = (made(name)(Score(model, 0, unit), x) for model in (one, two))
    torch.testing.assert_close(found.score, expected.score)
    assert found.score.std() > 0
    if name != "lrp":  # which shares the score by the logits' own network
        torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-7)


@every_method
def test_float32_and_float64_agree(name: str) -> None:
    wide = made(name)(Score(net(), TARGETS), batch()).values
    arguments = ARGUMENTS.get(name, {})
    if "background" in arguments:
        arguments = arguments | {"background": Samples.of(nets.images(3, seed=9))}
    narrow = METHODS[name](**arguments)(Score(net().float(), TARGETS), nets.images()).values
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-4)


def state(model: nn.Module, inputs: Tensor) -> Iterator[object]:
    yield model_id(model)
    yield [(n, type(m), m.training, len(m._forward_hooks), vars(m).keys()) for n, m in model.named_modules()]
    for parameter in model.parameters():
        yield parameter.requires_grad
        yield parameter.grad is not None and parameter.grad.tolist()
    yield inputs.tolist()
    yield inputs.requires_grad
    yield torch.get_rng_state().tolist()
    yield torch.is_grad_enabled()


@every_method
@pytest.mark.parametrize("fails", [False, True])
def test_model_input_and_random_state_are_left_as_found(name: str, fails: bool) -> None:
    model, inputs = net(), batch().requires_grad_()
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.ones_like(parameter)
        parameter.requires_grad_(i % 2 == 0)
    before = list(state(model, inputs))
    if fails:
        with pytest.raises(TargetError):
            made(name)(Score(model, 99), inputs)
    else:
        made(name)(Score(model, TARGETS), inputs)
    assert list(state(model, inputs)) == before


@every_method
def test_a_batch_equals_one_at_a_time(name: str) -> None:
    model, x = net(), batch()
    whole = made(name)(Score(model, TARGETS), x)
    for i in range(4):
        one = made(name)(Score(model, int(TARGETS[i])), x[i : i + 1])
        torch.testing.assert_close(whole.values[i], one.values[0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(whole.score[i], one.score[0])


@every_method
def test_a_method_is_repeatable(name: str) -> None:
    model, x = net(), batch()
    a, b = (made(name)(Score(model, TARGETS), x).values for _ in range(2))
    assert torch.equal(a, b)


@every_method
def test_another_model_is_another_map(name: str) -> None:
    model, x = net(), batch()
    before = made(name)(Score(model, TARGETS), x)
    with torch.no_grad():
        # What follows the layer is linear: the gradients there hang on the head alone.
        layer = model.head if name == "internal_influence" else model.features[0]  # type: ignore[index]
        layer.weight.mul_(-1.5)  # type: ignore[union-attr, operator]
    after = made(name)(Score(model, TARGETS), x)
    assert not torch.equal(before.values, after.values)
    assert before.provenance.model != after.provenance.model


@every_method
def test_the_saved_result_rebuilds_the_method(name: str, tmp_path: Path) -> None:
    method = made(name)
    found = method(Score(net(), TARGETS), batch())
    loaded = Attribution.load(found.save(tmp_path))
    assert rebuild(loaded.provenance.method) == method
    assert describe(method) == found.provenance.method
    torch.testing.assert_close(loaded.values, found.values, rtol=0, atol=0)
    assert loaded.geometry == found.geometry
    assert loaded.target == found.target
    assert loaded.diagnostics.keys() == found.diagnostics.keys()


@every_method
def test_methods_hold_plain_settings_only(name: str) -> None:
    method = made(name)
    assert not any(isinstance(getattr(method, f.name), nn.Module | Tensor) for f in fields(method))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        method.anything = 1  # type: ignore[attr-defined]


@every_method
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_the_callers_gradient_mode_does_not_matter(name: str, mode: str) -> None:
    score, x = Score(net(), TARGETS), batch()
    with getattr(torch, mode)():
        found = made(name)(score, x).values
    expected = made(name)(Score(net(), TARGETS), x).values
    torch.testing.assert_close(found.clone(), expected)


@every_method
def test_the_input_may_be_overwritten_by_the_model(name: str) -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), batch()
    model.features.insert(0, nn.ReLU(inplace=True).eval())  # type: ignore[operator]
    before = x.clone()
    found = made(name)(Score(model, TARGETS), x)
    assert torch.equal(x, before)
    torch.testing.assert_close(found.score, model(x.clone())[torch.arange(4), TARGETS].detach())


@every_method
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ("empty", InputError, "at least one, got shape \\(0, 1, 6, 6\\)"),
        ("nan", InputError, "input 1 holds NaN or infinity"),
        ("infinite", InputError, "input 1 holds NaN or infinity"),
        ("flat", InputError, "must be a batch \\[n, …\\] of at least one, got shape \\(4,\\)"),
        ("channels", InputError, "ConvNet does not take inputs of shape"),
        ("range", TargetError, "class 7 is out of range: the model has 3 classes"),
        ("negative", TargetError, "class -1 is out of range: the model has 3 classes"),
        ("length", TargetError, "one class per input, 4, got shape \\(3,\\)"),
        ("mode", ModelModeError, "'features.1' of ConvNet is in training mode"),
    ],
)
def test_bad_input_is_refused_by_its_own_error(name: str, bad: str, error: type[Exception], message: str) -> None:
    model, x, score = net(), batch(), None
    score = Score(model, {"range": 7, "negative": -1, "length": TARGETS[:3]}.get(bad, TARGETS))
    if bad == "mode":
        model.features[1].train()  # type: ignore[index, union-attr]
    if bad in {"nan", "infinite"}:
        x[1, 0, 2, 2] = torch.nan if bad == "nan" else -torch.inf
    others = {"empty": x[:0], "channels": x.expand(-1, 2, -1, -1), "flat": x[:, 0, 0, 0]}
    x = others.get(bad, x)
    method = made(name)
    if bad == "channels" and name == "expected_gradients":
        method = METHODS[name](Samples.of(x[:2].flip(0) + 1))
    with pytest.raises(error, match=message):
        method(score, x)


class Broken(nets.ConvNet):
    """A network whose code fails after its maps are made."""

    error: Exception = KeyError("lost")

    def forward(self, x: Tensor) -> Tensor:
        self.features(x)
        raise self.error


@every_method
@pytest.mark.parametrize("kind", [KeyError, IndexError])
def test_fault_15_errors_in_a_model_are_raised_and_leave_it_as_found(
    name: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "error", kind("lost"))
    model, x = nets.seeded(Broken()).double(), batch()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = list(state(model, x))
    with pytest.raises((kind, InputError), match="lost"):
        made(name)(Score(model, TARGETS), x)
    assert list(state(model, x)) == before


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_examples_of_another_number_format_than_the_model_are_brought_to_it(name: str, dtype: torch.dtype) -> None:
    model, x = nets.seeded(nets.ConvNet()).to(dtype), nets.images()
    given = x.float() if dtype == torch.float64 else x.double()
    made(name)(Score(model, TARGETS), x.to(dtype))  # the copy for these serves no others
    found = made(name)(Score(model, TARGETS), given)
    assert f"examples cast to {str(dtype)[6:]}" in found.prepared
    wanted = made(name)(Score(model.double(), TARGETS), x.double())
    assert found.values.dtype == (dtype if name in OF_A_LAYER else given.dtype)
    scale = float(wanted.values.abs().max())
    torch.testing.assert_close(found.values.double(), wanted.values, rtol=1e-3, atol=1e-4 * scale)


class Noisy(nets.ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Counting(nets.ConvNet):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x) * self.calls


class Centred(nets.ConvNet):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


@every_method
@pytest.mark.parametrize("kind", [Noisy, Counting, Centred])
def test_a_model_that_is_no_function_of_one_example_is_refused(name: str, kind: type[nets.ConvNet]) -> None:
    with pytest.raises(
        ProbingError,
        match=rf"^{kind.__name__} (in evaluation mode returns something else|draws random)",
    ):
        made(name)(Score(nets.seeded(kind()).double(), TARGETS), batch())


class Named(nn.Module):
    """A network that returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nets.ConvNet()

    def forward(self, x: Tensor) -> object:
        return {"logits": self.inner(x), "mean": x.mean((1, 2, 3))}


class Paired(Named):
    """A network that returns a tuple."""

    def forward(self, x: Tensor) -> object:
        return x.mean((1, 2, 3)), self.inner(x)


@every_method
@pytest.mark.parametrize(
    ("kind", "part", "message"),
    [
        (
            Named,
            "logits",
            r"a mapping with keys \['logits', 'mean'\]: name the class scores by Score\(output=…\)",
        ),
        (
            Paired,
            1,
            r"a tuple of \['Tensor', 'Tensor'\]: name the class scores by Score\(output=…\)",
        ),
    ],
)
def test_outputs_of_several_parts_need_a_selector(name: str, kind: type[Named], part: str | int, message: str) -> None:
    model = nets.seeded(kind()).double()
    with pytest.raises(OutputError, match=message):
        made(name)(Score(model, TARGETS), batch())
    with pytest.raises(OutputError, match="has no part 'lost': it is a"):
        made(name)(Score(model, TARGETS, output="lost"), batch())
    found = made(name)(Score(model, TARGETS, output=part), batch())
    expected = made(name)(Score(model.inner, TARGETS), batch())
    torch.testing.assert_close(found.values, expected.values)
