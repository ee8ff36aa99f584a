"""Properties of methods: what is said to hold holds, and what is said to fail fails (spec of attribution, sec. 13)."""

from dataclasses import dataclass, replace
from typing import Literal

import attribution_nets
import nets
import pytest
import torch
from jaxtyping import Float
from methods import made
from torch import Tensor, nn

from probing.attribution import METHODS
from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.baselines import ZERO
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.superpixels import Grid
from probing.attribution.perturbation.surrogate import Local
from probing.evaluation.axioms import (
    AXIOMS,
    AxiomTable,
    Check,
    Completeness,
    Dummy,
    ImplementationInvariance,
    InputShift,
    Linearity,
    SensitivityA,
    axiom_table,
)
from probing.evaluation.base import EvaluationError
from probing.models.scores import Score

OF_A_LAYER = {"layer_ig", "layer_conductance", "internal_influence"}
NAMES = tuple(n for n in METHODS if n not in OF_A_LAYER)


def method(name: str) -> AttributionMethod:
    if name == "ig":
        return IntegratedGradients(steps=16)
    if name == "lime":
        return LIME(Grid(6, 6), hidden=ZERO, surrogate=Local(samples=150))
    return made(name)


@pytest.fixture(scope="module")
def table() -> AxiomTable:
    score = Score(nets.seeded(nets.ConvNet()).double(), torch.tensor([0, 1, 2]))
    axioms = {n: a for n, a in AXIOMS.items() if n not in {"completeness", "sensitivity_a"}}
    return axiom_table({n: method(n) for n in NAMES}, score, nets.images(3).double(), axioms)


# dummy, linearity, symmetry, implementation invariance, input shift; o: can't be asked there
EXPECTED = {
    "saliency": "+++++",
    "gradient_times_input": "++++-",
    "guided_backprop": "+-+-+",
    "deconvolution": "+-+++",
    "smoothgrad": "++-++",  # the noise is not symmetric
    "ig": "++++-",  # the baseline stays where it was
    "guided_ig": "+-++-",  # the path follows the gradient
    "blur_ig": "+++++",
    "xrai": "-++++",  # linear only as an image this small is cut the same way four times
    "expected_gradients": "++-+-",
    "cam": "-oo++",
    "gradcam": "--o++",
    "gradcam++": "--o++",
    "guided_gradcam": "+-o-+",
    "hirescam": "-+o++",
    "layercam": "--o++",
    "xgradcam": "--o++",
    "scorecam": "--o+-",  # zero stays what hides
    "eigencam": "--o++",
    "finercam": "-oo++",
    "ablationcam": "--o++",
    "deeplift": "++++-",  # as of IG
    "lrp": "+++--",  # linear, since relevance starts with the scores themselves
    "lime": "-+-+-",  # its parts straddle the border of what is read
    "occlusion": "++++-",  # windows of one pixel; what covers them stays as it was
    "feature_ablation": "-+++-",  # its parts straddle, too
    "shapley": "-++++",  # a part's mean moves with the input
    "owen": "-+-++",  # eight superpixels are not symmetric
    "sobol": "---++",  # a variance is a square; drawn masks are not symmetric
    "rise": "-+-+-",  # what plays no role gets the mean score; drawn masks are not symmetric
}


@pytest.mark.parametrize("name", NAMES)
def test_each_method_has_the_properties_that_are_said_of_it_and_no_other(name: str, table: AxiomTable) -> None:
    signs = {True: "+", False: "-", None: "o"}
    found = "".join(signs[table.holds(name, axiom)] for axiom in table.axioms)
    assert found == EXPECTED[name], dict(zip(table.axioms, table.worst[table.methods.index(name)].tolist(), strict=True))


def test_what_cannot_be_asked_says_why(table: AxiomTable) -> None:
    said = table.to_pandas().loc["cam", "linearity"]
    assert "CAM needs a global average" in said


class Saturating(nn.Module):
    """Minus the mean of ReLU(1 - x): flat where x is above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(1, 1)
        with torch.no_grad():
            for layer, weight, bias in ((self.features[0], -1.0, 1.0), (self.head, -1.0, 1.0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


SEES_WHAT_SATURATED = {
    "ig": True,
    "expected_gradients": True,
    "deeplift": True,
    "lime": True,
    "saliency": False,
    "gradient_times_input": False,
    "guided_backprop": False,
    "gradcam": False,
}


@pytest.mark.parametrize("name", SEES_WHAT_SATURATED)
def test_gradients_miss_what_saturated_and_paths_do_not(name: str) -> None:
    x = 2 + 0.1 * nets.images(2, size=4).double()
    chosen = method(name)
    if name == "lime":
        chosen = LIME(Grid(4, 4), hidden=ZERO, surrogate=Local(samples=150))
    if name == "expected_gradients":
        chosen = replace(chosen, samples=40)  # type: ignore[type-var]
    found = SensitivityA(trials=3)(chosen, Score(Saturating(), 0), x)
    assert found.passed is SEES_WHAT_SATURATED[name]
    assert len(found.statistic) == 6


def test_a_value_that_the_score_does_not_read_says_nothing_about_sensitivity() -> None:
    model = nn.Linear(2, 1, bias=False).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0]]))
    found = SensitivityA(trials=20)(Saliency(), Score(model, 0), torch.ones(1, 2).double())
    assert 0 < found.excluded < 20
    assert found.passed


@pytest.mark.parametrize(
    ("name", "complete"),
    [
        ("gradient_times_input", True),
        ("ig", True),
        ("lrp", True),
        ("saliency", False),
        ("guided_backprop", False),
        ("gradcam", False),
    ],
)
def test_maps_of_a_homogeneous_network_are_complete_or_are_not(name: str, complete: bool) -> None:
    model = nets.seeded(attribution_nets.Homogeneous()).double()
    found = Completeness()(method(name), Score(model, 1), nets.images(3).double())
    assert found.passed is complete, str(found)


@pytest.mark.parametrize(("steps", "passes"), [(400, True), (1, False)])
def test_paths_are_complete_up_to_their_steps(steps: int, passes: bool) -> None:
    score = Score(nets.seeded(attribution_nets.Smooth()).double(), 1)
    found = Completeness()(IntegratedGradients(steps=steps), score, nets.images(3).double())
    assert found.passed is passes


class Exact(IntegratedGradients):
    """A linear score's exact parts, in float32 and with its rounding."""

    def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        return GradientTimesInput()(score, inputs)


def test_fault_12_exactly_complete_maps_are_found_complete_and_others_by_how_much_they_are_not() -> None:
    model = nn.Linear(300, 1, bias=False).eval()
    x = nets.images(6, size=300)[:, 0, 0]
    found = Completeness()(Exact(), Score(model, 0), x)
    assert found.passed
    assert found.statistic.tolist() == pytest.approx([0] * 6, abs=1e-4)
    assert float(found.statistic.max()) > 0  # no equality of floats was asked for

    class Short(Exact):
        def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
            whole = super().__call__(score, inputs)
            return replace(whole, values=0.9 * whole.values)

    missing = Completeness()(Short(), Score(model, 0), x)
    assert not missing.passed
    assert missing.statistic.tolist() == pytest.approx([0.1] * 6, abs=1e-4)
    assert "does not hold for Short: gap" in str(missing)


def test_a_network_that_is_no_twin_is_refused() -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 1), nets.images(2).double()
    other = nets.seeded(nets.ConvNet(), 1).double()
    with pytest.raises(EvaluationError, match="a twin's scores differ by up to"):
        ImplementationInvariance()(Saliency(), score, x, [other])
    same = nets.seeded(nets.ConvNet()).double()
    assert ImplementationInvariance()(Saliency(), score, x, [same]).worst == 0


def test_hidden_units_may_be_scaled() -> None:
    model = nets.seeded(nets.ConvNet()).double()
    scaled = nets.seeded(nets.ConvNet()).double()
    with torch.no_grad():
        scaled.features[2].weight.mul_(4)  # type: ignore[index, union-attr, operator]
        scaled.features[2].bias.mul_(4)  # type: ignore[index, union-attr, operator]
        scaled.head.weight.div_(4)  # type: ignore[union-attr, operator]
    score, x = Score(model, 1), nets.images(2).double()
    for name in ("saliency", "ig", "gradcam"):
        assert ImplementationInvariance()(method(name), score, x, [scaled]).passed


def test_settings_and_inputs_that_do_not_fit_are_refused() -> None:
    score = Score(attribution_nets.lin(), 0)
    x = torch.ones(2, 4).double()
    with pytest.raises(EvaluationError, match=r"classes \(0, 1\) need more than the model's 1"):
        Linearity()(Saliency(), score, x)
    assert Dummy(columns=3)(Saliency(), score, x).worst == 0
    assert InputShift(0.5)(Saliency(), score, x).worst == 0
    assert InputShift(0.5)(GradientTimesInput(), score, x).worst == pytest.approx(0.5)
    longer = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).double().eval()
    with pytest.raises(EvaluationError, match="twins are made for vectors and images"):
        ImplementationInvariance()(Saliency(), Score(longer, 0), torch.ones(1, 2, 3).double())


@dataclass(frozen=True)
class Undefined:
    """A method that explains all inputs but the last."""

    what: Literal["values", "score", "baseline_score"]

    def __call__(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        found = IntegratedGradients(steps=2)(score, inputs)
        values = getattr(found, self.what).clone()
        values[-1] = torch.nan
        return replace(found, **{self.what: values})


@pytest.mark.parametrize("undefined", [Undefined(what) for what in ("values", "score", "baseline_score")])
@pytest.mark.parametrize("axiom", AXIOMS)
def test_a_map_of_nan_is_no_trial_that_says_nothing(axiom: str, undefined: Undefined) -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 0), nets.images(2).double()
    name = {"values": "map", "score": "score", "baseline_score": "baseline score"}[undefined.what]
    with pytest.raises(EvaluationError, match=rf"^{name} [01] holds NaN or infinity"):
        AXIOMS[axiom](undefined, score, x)


def test_a_score_of_nan_without_a_value_is_no_sensitivity() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.5).log()  # NaN where a value is zero

    with pytest.raises(EvaluationError, match="the score is NaN or infinite"):
        SensitivityA()(Saliency(), Score(Log().eval(), 0), torch.ones(1, 1).double())


def test_checks_are_saved(tmp_path: object, table: AxiomTable) -> None:
    found = Completeness()(Saliency(), Score(attribution_nets.lin(), 0), torch.ones(2, 4).double())
    loaded = Check.load(found.save(f"{tmp_path}/check"))
    assert loaded.worst == pytest.approx(found.worst)
    assert AxiomTable.load(table.save(f"{tmp_path}/table")).outcomes == table.outcomes
