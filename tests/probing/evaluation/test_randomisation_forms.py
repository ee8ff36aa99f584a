"""Efficient and smooth randomisation: their formulas in plain loops, maps whose answer is known, and what they can't see."""

import math
from dataclasses import dataclass, replace

import nets
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.evaluation.base import EvaluationError, drawn_noise
from probing.evaluation.complexity import histogram_entropy
from probing.evaluation.randomisation import CascadingRandomisation, EfficientRandomisation, SmoothRandomisation
from probing.evaluation.reference_maps import EdgeDetector, RandomMap
from probing.evaluation.reinitialise import plan_of, randomised
from probing.evaluation.similarity import SignedSpearman
from probing.models.scores import Score


def conv() -> nn.Module:
    return nets.seeded(nets.ConvNet()).double()


def entropy(values: Tensor, bins: int) -> float:
    counts = np.histogram(values.detach().numpy(), bins)[0]
    return float(stats.entropy(counts))


def test_the_entropy_of_a_histogram_is_numpys_and_hangs_on_no_scale() -> None:
    maps = torch.randn(5, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = histogram_entropy(maps, 20)
    assert found.tolist() == pytest.approx([entropy(m, 20) for m in maps])
    torch.testing.assert_close(histogram_entropy(8 * maps, 20), found)  # by a power of two: no value moves over an edge
    known = torch.tensor([[0.0, 0, 0, 0, 1, 1, 2, 3], [2.0] * 8, torch.arange(8.0)]).double()
    assert histogram_entropy(known, 4).tolist() == pytest.approx([1.75 * math.log(2), 0, 2 * math.log(2)])


def test_efficient_randomisation_is_the_mean_relative_rise_of_entropy() -> None:
    model, x = conv(), nets.images(3, size=8).double()
    score = Score(model, torch.tensor([0, 1, 2]))
    found = EfficientRandomisation(seeds=2, bins=12)(GradientTimesInput(), score, x)
    plan = plan_of(model, x)
    maps = [
        GradientTimesInput()(replace(score, model=m), x).values
        for m in (model, *(randomised(model, plan.blocks, s, x) for s in (0, 1)))
    ]
    for row in range(3):
        trained, *others = (entropy(m[row], 12) for m in maps)
        assert float(found.values[row]) == pytest.approx(sum(o - trained for o in others) / 2 / trained)
    assert found.n_forward == 9
    assert found.n_backward == 9
    assert not torch.equal(
        EfficientRandomisation(seeds=2, bins=12, seed=2)(GradientTimesInput(), score, x).values, found.values
    )
    assert not torch.equal(EfficientRandomisation(seeds=2, bins=30)(GradientTimesInput(), score, x).values, found.values)
    kept = EfficientRandomisation(seeds=1, keep=("features*",))(GradientTimesInput(), score, x)
    assert not torch.equal(kept.values, EfficientRandomisation(seeds=1)(GradientTimesInput(), score, x).values)


class Narrow(nn.Module):
    """Trained to read two pixels only: the weights of the others are zero, which none drawn anew is."""

    def __init__(self, places: int = 400) -> None:
        super().__init__()
        self.read = nn.Linear(places, 2, bias=False).double()
        with torch.no_grad():
            self.read.weight.zero_()
            self.read.weight[:, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x)


def test_maps_that_become_noise_rise_as_far_as_theory_says_and_others_do_not() -> None:
    """Planted truth: from two places of 400 to independent values of all; edges and noise stay as they are."""
    x = torch.randn(4, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = EfficientRandomisation(seeds=4, bins=50)(Saliency(), Score(Narrow().eval(), 0), x)
    shares = torch.tensor([1 / 400, 398 / 400, 1 / 400]).double()  # of the values 1, 0 and -1
    trained = float(-(shares * shares.log()).sum())
    # Weights drawn by the layer's own initialiser are uniform: the entropy of 400 draws is log 50 less what is empty.
    lost = (50 - 1) / (2 * 400)  # the bias of an entropy that is estimated (Miller & Madow), to first order
    expected = (math.log(50) - lost - trained) / trained
    assert float(found.mean) == pytest.approx(expected, rel=0.02)
    images = nets.images(4, size=16).double()
    edges = EfficientRandomisation(seeds=2)(EdgeDetector(), Score(conv(), 1), images)
    assert edges.values.tolist() == [0] * 4
    noise = EfficientRandomisation(seeds=4)(RandomMap(), Score(conv(), 1), nets.images(24, size=16).double())
    low, high = noise.interval
    assert low < 0.02
    assert high > -0.02


class DeadUnlessTrained(nets.ConvNet):
    """Trained networks have a bias of 7; all others say nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(self.head.bias[0] == 7)


def test_maps_of_one_value_are_counted_not_averaged() -> None:
    model = nets.seeded(DeadUnlessTrained()).double()
    with torch.no_grad():
        model.head.bias[0] = 7.0  # type: ignore[index, union-attr, operator]
    found = EfficientRandomisation(seeds=2)(Saliency(), Score(model, 1), nets.images().double())
    assert found.excluded == 4


def test_smooth_randomisation_is_the_cascade_of_mean_maps_over_the_same_noise() -> None:
    model, x = conv(), nets.images(3, size=8).double()
    targets = torch.tensor([0, 1, 2])
    metric = SmoothRandomisation(seeds=2, draws=4, noise=0.3, measures=("spearman",))
    found = metric(Saliency(), Score(model, targets), x)
    width = 0.3 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    whole = randomised(model, plan_of(model, x).blocks, 0, x)
    noise = list(drawn_noise(x, 4, 0, "normal"))
    means = [
        torch.stack([Saliency()(Score(m, targets), x + width * z).values[:, 0] for z in noise]).mean(0)
        for m in (model, whole)
    ]
    torch.testing.assert_close(found.values[0, -1, 0], SignedSpearman()(*means))
    cascade = CascadingRandomisation(seeds=2, measures=("spearman",))(Saliency(), Score(model, targets), x)
    assert found.n_forward == 4 * cascade.n_forward
    assert found.layers == cascade.layers
    assert not torch.equal(found.values, replace(metric, noise=0.1)(Saliency(), Score(model, targets), x).values)


def test_noise_that_hides_what_is_kept_is_taken_out_by_smoothing() -> None:
    """Planted truth: only a bias is drawn anew, so true maps stay; noise makes the plain test say otherwise."""
    model, x = conv(), nets.images(6, size=8).double()
    kept = {"seeds": 2, "measures": ("spearman",), "keep": ("features*", "head.weight")}
    score = Score(model, 1)
    clean = CascadingRandomisation(**kept)(Saliency(), score, x)  # type: ignore[arg-type]
    torch.testing.assert_close(clean.values, torch.ones_like(clean.values))
    plain = CascadingRandomisation(**kept)(_PerNetwork(), score, x)  # type: ignore[arg-type]
    smooth = SmoothRandomisation(**kept, draws=50, noise=1e-6)(_PerNetwork(), score, x)  # type: ignore[arg-type]
    assert float(plain.mean[0, 0]) < 0.5 < float(smooth.mean[0, 0])


@dataclass(frozen=True)
class _PerNetwork:
    """Saliency under noise that is another for each network and input."""

    def __call__(self, score: Score, inputs: Tensor) -> Attribution:
        found, noise = Saliency()(score, inputs), RandomMap()(score, inputs)
        return replace(found, values=found.values + 2 * found.values.std() * noise.values)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (EfficientRandomisation(seeds=0), "seeds must be at least 1 and bins at least 2, got 0 and 100"),
        (EfficientRandomisation(bins=1), "got 5 and 1"),
        (SmoothRandomisation(draws=0), "draws must be at least 1 and noise above 0, got 0 and 0.1"),
        (SmoothRandomisation(noise=0.0), "got 50 and 0.0"),
        (SmoothRandomisation(seeds=0), "seeds must be at least 1 and measures of"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(metric: EfficientRandomisation, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        metric(Saliency(), Score(conv(), 1), nets.images().double())
