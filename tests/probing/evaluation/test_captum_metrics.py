"""Infidelity and the largest sensitivity equal captum's where both define the same, given the same perturbations."""

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.base import AttributionMethod
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.attribution.path import IntegratedGradients
from probing.evaluation.base import drawn_noise
from probing.evaluation.robustness import Infidelity, MaxSensitivity
from probing.models.scores import Score

captum = pytest.importorskip("captum.metrics")
X = nets.images(3, size=8).double()
TARGET = torch.tensor([0, 1, 2])
WIDTH = X.flatten(1).amax(1) - X.flatten(1).amin(1)
METHODS: dict[str, AttributionMethod] = {
    "saliency": Saliency(),
    "gradient x input": GradientTimesInput(),
    "ig": IntegratedGradients(steps=8),
}


def conv() -> nn.Module:
    return nets.seeded(nets.ConvNet()).double()


def steps(share: float, draws: int, seed: int, kind: str) -> Tensor:
    """Return perturbations as captum takes them: all draws of the first input, then those of the second."""
    noise = torch.stack(list(drawn_noise(X, draws, seed, kind)), 1)  # type: ignore[arg-type]
    return (share * WIDTH.view(-1, 1, 1, 1, 1) * noise).flatten(0, 1)


def infidelity(model: nn.Module, maps: Tensor, metric: Infidelity) -> Tensor:
    step = steps(metric.noise, metric.draws, metric.seed, "normal")
    found: Tensor = captum.infidelity(
        model,
        lambda inputs: (step, inputs - step),
        X,
        maps,
        target=TARGET,
        n_perturb_samples=metric.draws,
        normalize=metric.scaled,
    )
    if metric.scaled:  # captum's stays in squared score units; ours is a share of the changes' own size
        of = TARGET.repeat_interleave(metric.draws)
        changed = model(X.repeat_interleave(metric.draws, 0) - step).gather(1, of[:, None])[:, 0].view(3, -1)
        found = found / (model(X).gather(1, TARGET[:, None]) - changed).square().mean(1)
    return found.detach()


def sensitivity(model: nn.Module, method: AttributionMethod, metric: MaxSensitivity) -> Tensor:
    step = steps(metric.radius, metric.draws, metric.seed, "uniform")

    def explain(inputs: tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, ...]:
        return (method(Score(model, target), inputs[0]).values,)

    def moved(inputs: Tensor) -> tuple[Tensor, ...]:
        return (inputs + step,)

    found: Tensor = captum.sensitivity_max(explain, X, moved, n_perturb_samples=metric.draws, target=TARGET)
    return found


def plain(model: nn.Module, method: AttributionMethod) -> tuple[Tensor, Tensor]:
    metric = Infidelity(draws=7, scaled=False, seed=1)
    maps = method(Score(model, TARGET), X).values
    return metric(maps, Score(model, TARGET), X).values, infidelity(model, maps, metric)


def scaled(model: nn.Module, method: AttributionMethod) -> tuple[Tensor, Tensor]:
    metric = Infidelity(draws=7, noise=0.4)
    maps = method(Score(model, TARGET), X).values
    return metric(maps, Score(model, TARGET), X).values, infidelity(model, maps, metric)


def largest(model: nn.Module, method: AttributionMethod) -> tuple[Tensor, Tensor]:
    metric = MaxSensitivity(draws=5, seed=2)
    return metric(method, Score(model, TARGET), X).values, sensitivity(model, method, metric)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("compare", [plain, scaled, largest])
def test_the_value_is_captums(compare: Callable[[nn.Module, AttributionMethod], tuple[Tensor, Tensor]], name: str) -> None:
    ours, theirs = compare(conv(), METHODS[name])
    torch.testing.assert_close(ours, theirs)
    assert (ours > 0).all()
