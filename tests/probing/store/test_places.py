"""Means over places: which axes of a layer's output are places is told by convolutions, not by how many axes there are."""

import nets
import pytest
import torch
from torch import Tensor, nn

import probing as pb
from probing.models.geometry import units_axis
from probing.models.precision import Precision
from probing.models.runner import PoolError
from probing.probes import LayerProbes, RidgeProbe

DOUBLE = Precision("float64")


class Heard(nn.Module):
    """Convolutions along time, then tokens of what they found, with a class token before them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(2, 5, 3, stride=2), nn.ReLU())
        self.start, self.mix = nn.Parameter(torch.randn(1, 1, 5)), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(x.unflatten(1, (2, -1)) if x.ndim == 2 else x).mT
        tokens = self.mix(torch.cat([self.start.expand(len(x), -1, -1), found], 1))
        return self.head(tokens.relu().mean(1))


class Seen(nn.Module):
    """A volume's patches, with channels last behind the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv3d(1, 6, 2, stride=2), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.patches(x).movedim(1, -1)).relu().mean((1, 2, 3)))


@pytest.mark.parametrize("shape", [(2, 15), (30,)], ids=["series", "samples without an axis of channels"])
def test_a_series_is_averaged_over_time_and_tokens_over_tokens(shape: tuple[int, ...]) -> None:
    net = nets.seeded(Heard()).double()
    x = torch.randn(4, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    store = pb.ActivationStore(precision=DOUBLE, progress=False)
    whole = store.activations(net, ["conv", "mix"], x)
    means = store.activations(net, ["conv", "mix"], x, pool="mean")
    assert whole["conv"].shape == (4, 5, 7)
    torch.testing.assert_close(means["conv"], whole["conv"].mean(2))
    torch.testing.assert_close(means["mix"], whole["mix"].mean(1))
    slopes, pooled = (store.gradients(pb.Score(net, 1), ["conv"], x, pool=p)["conv"] for p in ("none", "mean"))
    torch.testing.assert_close(pooled, slopes.sum(2))


def test_a_volume_with_channels_last_is_averaged_over_its_places() -> None:
    net = nets.seeded(Seen()).double()
    x = torch.randn(3, 1, 4, 6, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    store = pb.ActivationStore(precision=DOUBLE, progress=False)
    whole = store.activations(net, ["patches", "mix"], x)
    means = store.activations(net, ["patches", "mix"], x, pool="mean")
    torch.testing.assert_close(means["patches"], whole["patches"].mean((2, 3, 4)))
    torch.testing.assert_close(means["mix"], whole["mix"].mean((1, 2, 3)))


def test_probes_read_a_series_by_its_units() -> None:
    net = nets.seeded(Heard())
    x = torch.randn(40, 2, 15, generator=torch.Generator().manual_seed(0))
    x[::2, 0] += 2.0  # one label has the first channel raised
    probes = LayerProbes("conv", RidgeProbe((1e-3,)), inputs=False, untrained=False, controls=0, description_length=False)
    found = probes(pb.ActivationStore(progress=False), net, x, [i % 2 for i in range(40)])
    assert found.features.tolist() == [5]


class Square(nn.Module):
    """As many units as places, behind a transposition that tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.head = nn.Conv1d(2, 7, 3, padding=1), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.conv(x).mT).mean(1))


def test_axes_that_tell_nothing_are_refused_until_said() -> None:
    net, x = nets.seeded(Square()), torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    assert units_axis(net, x, "conv") == (3, 1)
    assert units_axis(net, x, "after") == (3, None)
    store = pb.ActivationStore(progress=False)
    with pytest.raises(PoolError, match=r"layer 'after' .*pool='mean_last' or 'mean_first'"):
        store.activations(net, ["after"], x, pool="mean")
    whole = store.activations(net, ["after"], x)["after"]
    for pool, axis in (("mean_last", 1), ("mean_first", 2)):
        found = store.activations(net, ["after"], x, pool=pool)["after"]  # type: ignore[arg-type]
        torch.testing.assert_close(found, whole.mean(axis))
