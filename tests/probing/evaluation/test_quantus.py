"""Agreement with Quantus where it is right, and its faults where it is not (known faults 12, 13, 14)."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from nets import images, seeded
from torch import Tensor, nn

from probing.attribution.baselines import ZERO
from probing.attribution.gradient import Saliency
from probing.evaluation.curves import Deletion
from probing.evaluation.randomisation import CascadingRandomisation
from probing.evaluation.similarity import SignedSpearman
from probing.models.scores import Score

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantus = pytest.importorskip("quantus")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def net() -> nn.Module:
    return seeded(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3))
    )


def gradient(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
    return Saliency()(Score(model, torch.from_numpy(targets)), torch.from_numpy(inputs)).values.numpy()


def test_pixel_flipping_of_one_channel_gives_the_same_curve(net: nn.Module) -> None:
    x, maps = images(4, size=8), images(4, size=8, seed=1)
    target = torch.tensor([0, 1, 2, 0])
    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True
    )
    with quietly(), torch.no_grad():
        theirs = metric(net, x.numpy(), target.numpy(), a_batch=maps.numpy(), device="cpu")
    ours = Deletion((ZERO,), steps=16)(maps, Score(net, target, unit="probability"), x)
    # Theirs starts after the first step.
    torch.testing.assert_close(ours.values[0, 0, :, 1:], torch.tensor(np.array(theirs)).double(), atol=1e-5, rtol=0)


def test_fault_14_quantus_flips_channels_one_by_one_and_so_takes_three_times_the_passes() -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    x, maps = images(2, 3, 8), images(2, 3, 8, seed=1)
    metric = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True
    )
    with quietly(), torch.no_grad():
        theirs = metric(model, x.numpy(), np.array([0, 1]), a_batch=maps.numpy(), device="cpu")
    assert np.array(theirs).shape[1] == 48
    ours = Deletion((ZERO,), steps=16)(maps, Score(model, torch.tensor([0, 1])), x)
    assert ours.n_forward == 2 * 17  # as many pixels a step


def mprt(net: nn.Module, x: Tensor, target: Tensor, **settings: object) -> object:
    metric = quantus.MPRT(layer_order="top_down", abs=False, normalise=False, disable_warnings=True, **settings)
    with quietly(), torch.random.fork_rng(devices=()):
        return metric(net, x.numpy(), target.numpy(), explain_func=gradient, device="cpu")


def test_similarities_of_the_same_random_networks_are_the_same(net: nn.Module) -> None:
    x, target = images(3, size=8), torch.tensor([0, 1, 2])
    theirs = mprt(net, x, target)
    assert isinstance(theirs, dict)
    trained = torch.from_numpy(gradient(net, x.numpy(), target.numpy()))
    networks = quantus.helpers.model.pytorch_model.PyTorchModel(net)
    with torch.random.fork_rng(devices=()):
        for layer, network in networks.get_random_layer_generator("top_down", 42):
            maps = torch.from_numpy(gradient(network, x.numpy(), target.numpy()))
            found = SignedSpearman()(trained, maps)
            torch.testing.assert_close(found, torch.tensor(theirs[layer]).double(), atol=1e-3, rtol=0)


def test_fault_13_quantus_averages_the_trained_network_in_and_ours_does_not(net: nn.Module) -> None:
    x, target = images(3, size=8), torch.tensor([0, 1, 2])
    by_layer = mprt(net, x, target)
    assert isinstance(by_layer, dict)
    averaged = np.mean(mprt(net, x, target, return_average_correlation=True))  # type: ignore[call-overload]
    assert averaged == pytest.approx(np.mean(list(by_layer.values())))  # with the 1 of "original"
    assert np.mean(by_layer["original"]) == pytest.approx(1)
    ours = CascadingRandomisation(seeds=1, measures=("spearman",))(Saliency(), Score(net, target), x)
    assert ours.values.shape[1] == 3  # layers, none of which is the trained network
    assert float(ours.values.max()) < 0.999


def test_fault_12_quantus_calls_exactly_complete_maps_incomplete(net: nn.Module) -> None:
    linear = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)))
    x, target = images(3, size=8), torch.tensor([0, 1, 2])
    maps = x * torch.from_numpy(gradient(linear, x.numpy(), target.numpy()))
    score = Score(linear, target)(x).detach().double()
    gap = (maps.double().sum((1, 2, 3)) - score).abs() / score.abs()
    assert float(gap.max()) < 1e-5  # what `evaluation.axioms` reports
    metric = quantus.Completeness(abs=False, disable_warnings=True)
    with quietly(), torch.no_grad():
        theirs = metric(linear, x.numpy(), target.numpy(), a_batch=maps.numpy(), device="cpu")
    assert not any(theirs)
