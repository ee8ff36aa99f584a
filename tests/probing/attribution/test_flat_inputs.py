"""Inputs of one value, and maps of zeros: where nothing was measured, no number says that all is well."""

import pytest
import torch
from torch import Tensor, nn

from probing.attribution.baselines import Blurred, Constant, Samples
from probing.attribution.cam.grad_cam import AblationCAM
from probing.attribution.gradient import Saliency, SmoothGrad
from probing.attribution.path import (
    ExpectedGradients,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from probing.attribution.perturbation.lime import TextLIME
from probing.attribution.perturbation.parts import Words
from probing.core.inputs import InputError
from probing.evaluation.axioms import Completeness, SensitivityA, axiom_table
from probing.evaluation.complexity import PictureBytes
from probing.evaluation.curves import Deletion, Insertion, PixelFlipping, Road
from probing.evaluation.robustness import MaxSensitivity
from probing.evaluation.scorecard.measure import _gap
from probing.models.scores import Score

SIDE = 12
BLACK = torch.zeros(2, 1, SIDE, SIDE)
GREY = torch.full((2, 1, SIDE, SIDE), 0.5)
HALF = Constant((0.5,))


def noise() -> Tensor:
    return torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def curved() -> Score:
    """The square of the mean, and its negative: a score that is not linear, without a bias."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(1, 2, 1, bias=False)
            nn.init.constant_(self.features.weight, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            mean = self.features(x).mean((1, 2, 3))
            return torch.stack([mean.square(), -mean.square()], 1)

    return Score(Squared().eval(), 0)


@pytest.mark.parametrize(("inputs", "baseline"), [(BLACK, Constant()), (GREY, HALF), (BLACK, Blurred(2.0))])
@pytest.mark.parametrize("steps", [10, "auto"])
def test_an_input_that_is_its_own_baseline_has_an_empty_map_and_says_so(
    inputs: Tensor, baseline: Constant | Blurred, steps: int
) -> None:
    found = IntegratedGradients(baseline, steps=steps)(curved(), inputs)
    assert not found.values.any()
    assert found.diagnostics["relative_gap"].isnan().all()
    assert found.diagnostics["unmoved"].tolist() == [1, 1]
    assert found.diagnostics.get("converged", torch.ones(1)).all()
    assert found.checks() == ("empty: the input is its own baseline",) * 2
    assert _gap(found).isnan().all()
    other = IntegratedGradients(baseline, steps=10)(curved(), noise())  # the control
    assert other.diagnostics["relative_gap"].max() < 1e-3
    assert other.diagnostics["unmoved"].max() == 0
    assert other.checks()[0].startswith("gap ")
    assert _gap(other).max() < 1e-3


def test_what_equals_the_baseline_is_counted() -> None:
    """A white stroke on black: black gets nothing, whatever the network makes of it."""
    digit = BLACK.clone()
    digit[:, :, 3:9, 5:7] = 1
    found = IntegratedGradients()(curved(), digit)
    assert found.diagnostics["unmoved"].tolist() == pytest.approx([1 - 12 / 144] * 2)
    assert "92% equals the baseline and gets 0" in found.checks()[0]
    layer = LayerIntegratedGradients("features")(curved(), digit)
    assert layer.diagnostics["unmoved"].tolist() == pytest.approx([1 - 12 / 144] * 2)


def test_of_several_baselines_each_counts() -> None:
    both = Samples.of(torch.stack([BLACK[0], GREY[0]]))
    found = IntegratedGradients(both)(curved(), GREY)
    assert found.diagnostics["unmoved"].tolist() == [0, 0]
    assert found.values.any()


def test_a_background_of_the_input_alone_is_refused() -> None:
    with pytest.raises(InputError, match="nothing but the input itself: give other samples"):
        ExpectedGradients(Samples.of(GREY), samples=4)(curved(), GREY)
    mixed = ExpectedGradients(Samples.of(torch.cat([GREY, BLACK])), samples=40)(curved(), GREY)
    assert mixed.values.min() > 0  # the control: the input's own copies are left out
    assert mixed.baseline_score is not None
    assert not mixed.baseline_score.any()


def test_noise_of_no_range_is_told() -> None:
    flat = SmoothGrad(samples=4)(curved(), GREY)
    assert flat.diagnostics["noise"].tolist() == [0, 0]
    assert flat.checks() == ("no noise: the input has one value",) * 2
    for method, inputs in (
        (SmoothGrad(samples=4), noise()),
        (SmoothGrad(samples=4, unit="absolute"), GREY),
    ):
        found = method(curved(), inputs)
        assert found.diagnostics["noise"].min() > 0.1
        assert found.checks()[0].startswith("standard error ")


def test_a_layer_without_activity_gives_an_empty_map_that_says_so() -> None:
    found = AblationCAM("features")(curved(), BLACK)
    assert not found.values.any()
    assert found.checks() == ("empty: nothing raises the score",) * 2
    assert AblationCAM("features")(curved(), GREY).checks() == ("", "")


@pytest.mark.parametrize(
    ("metric", "inputs", "said"),
    [
        (Deletion(steps=4), BLACK, ["removed (constant)"]),
        (Deletion((HALF,), steps=4), GREY, ["removed (constant)"]),
        (Deletion((HALF, Constant()), steps=4), GREY, ["removed (constant 1)"]),
        (Insertion(steps=4), GREY, ["inserted (blurred)"]),
        (Road(steps=3), BLACK, ["removed (imputed)"]),
        (PixelFlipping(steps=4, patch=3), GREY, []),  # noise shows whatever it replaces
        (Deletion(steps=4), GREY, []),
    ],
)
def test_curves_that_measure_nothing_are_counted(
    metric: Deletion | Insertion | PixelFlipping | Road, inputs: Tensor, said: list[str]
) -> None:
    found = metric(Saliency(), curved(), inputs)
    assert len(found.sentences()) == len(said)
    for sentence, what in zip(found.sentences(), said, strict=True):
        assert sentence == (f"The score of 2 of 2 inputs never changes, whatever is {what}: their curves measure nothing.")
    assert metric(Saliency(), curved(), noise()).sentences() == ()


def test_a_map_of_zeros_is_not_the_simplest_picture() -> None:
    maps = IntegratedGradients()
    assert PictureBytes()(maps, curved(), BLACK).values.isnan().all()
    assert PictureBytes()(maps, curved(), noise()).values.min() > 74


def test_an_input_that_is_not_moved_has_no_sensitivity() -> None:
    assert MaxSensitivity(draws=2)(Saliency(), curved(), GREY).values.isnan().all()
    assert MaxSensitivity(draws=2)(Saliency(), curved(), noise()).values.min() > 1e-3


def test_an_axiom_without_a_trial_is_neither_kept_nor_broken() -> None:
    methods = {"ig": IntegratedGradients()}
    axioms = {"completeness": Completeness(), "sensitivity_a": SensitivityA()}
    score = curved()
    for axiom in axioms.values():
        found = axiom(methods["ig"], score, BLACK)
        assert str(found) == (
            f"{found.axiom} can't be judged for IntegratedGradients: no trial says anything, as where maps are zero or "
            "the score never changes."
        )
    table = axiom_table(methods, score, BLACK, axioms)
    assert all(outcome.startswith("no trial says") for outcome in table.outcomes[0])
    assert axiom_table(methods, score, noise(), axioms).outcomes == (("holds", "holds"),)


def test_words_that_a_model_does_not_know_have_no_r2() -> None:
    def blind(texts: list[str]) -> Tensor:
        return torch.tensor([[0.25, 0.75]]).repeat(len(texts), 1)

    with pytest.raises(InputError, match="whichever parts of the text"):
        TextLIME()(blind, "not a word of these is known", 1)

    def knows(texts: list[str]) -> Tensor:
        known = torch.tensor([float("known" in t) for t in texts])
        return torch.stack([1 - known, known], 1)

    found = TextLIME(Words())(knows, "not a word of these is known", 1)
    assert found.diagnostics["r2"] > 0.99
