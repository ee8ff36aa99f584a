"""Read is not used: planted networks in which an attribute is readable, and weighs a known amount or nothing."""

from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from concepts.erasure.eraser import ErasureError
from concepts.erasure.erasure import Erasure, Kind
from concepts.erasure.result import ErasureResult
from probing.models.scores import Score
from probing.store.store import ActivationStore

FEATURES = 6


class Planted(nn.Module):
    """Two layers that turn their inputs, and a score in which input 0 weighs `weight`, input 3 one."""

    def __init__(self, weight: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        turns = [torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator).double()).Q for _ in range(2)]
        self.first, self.second, self.head = (
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, 2),
        )
        self.double()
        weights = torch.zeros(2, FEATURES).double()
        weights[1, 0], weights[1, 3] = weight, 1
        with torch.no_grad():
            for layer, turn in zip((self.first, self.second), turns, strict=True):
                layer.weight.copy_(turn)
                layer.bias.fill_(0.5)
            self.head.weight.copy_(weights @ turns[0].mT @ turns[1].mT)
            self.head.bias.zero_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x)))
        return logits


def examples(n: int = 96, seed: int = 0) -> tuple[Tensor, list[str], list[str]]:
    """Return inputs, the attribute of each, and clusters of two that differ in it alone: input 0 is -1 or 1."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n // 2, FEATURES, generator=generator, dtype=torch.float64).repeat_interleave(2, 0)
    x[:, 0] = (torch.arange(n) % 2) * 2.0 - 1
    return x, ["old", "new"] * (n // 2), [f"pair {i // 2}" for i in range(n)]


def erased(net: nn.Module, how: Erasure, **given: object) -> ErasureResult:
    x, kinds, clusters = examples()
    return how(ActivationStore(), {"score": Score(net, 1)}, x, kinds, clusters=clusters, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["leace", "mean"])
@pytest.mark.parametrize("weight", [0.3, -2.0])
def test_what_is_used_is_lost_by_its_weight(kind: Kind, weight: float) -> None:
    found = erased(Planted(weight), Erasure(("first", "second"), kind, controls=30))
    assert found.columns == ("old",)  # of two values, the second in order
    assert found.slope.item() == pytest.approx(-2 * weight)
    torch.testing.assert_close(found.slope_after, torch.zeros(2, 1, 1, dtype=torch.float64), atol=1e-9, rtol=0)
    assert found.readable.tolist() == [1.0, 1.0]
    assert found.readable_after.tolist() == [0.5, 0.5]
    assert found.rank == (1, 1)
    # A random direction takes a part of what it meets, on average one of so many directions.
    assert (found.used > 0.5 * abs(found.slope)).all()
    assert (found.used_low > 0).all()
    assert (found.used_p < 0.01).all()
    assert (found.as_much <= 0.1).all()
    assert found.fitted == found.judged == 24


@pytest.mark.parametrize("kind", ["leace", "mean"])
def test_what_is_readable_and_not_used_moves_nothing(kind: Kind) -> None:
    found = erased(Planted(0.0), Erasure(("first", "second"), kind))
    assert found.readable.tolist() == [1.0, 1.0]
    assert found.readable_after.tolist() == [0.5, 0.5]
    for name in ("slope", "slope_after", "moved"):
        values = getattr(found, name)
        torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-9, rtol=0)
    assert (found.used_p > 0.05).all()
    assert (found.moved_control > 0.1).all()  # random directions do move the score


def test_after_an_earlier_layer_there_is_nothing_left_in_a_later_one() -> None:
    found = erased(Planted(1.0), Erasure(("first", "second"), sequence=True, controls=2))
    assert found.rank == (1, 0)
    assert found.readable[1] == found.readable_after[1] == 0.5
    torch.testing.assert_close(found.slope_after[1], found.slope_after[0])


def test_accuracy_is_lost_where_classes_hang_on_the_attribute() -> None:
    net = Planted(3.0)
    x, *_ = examples()
    with torch.no_grad():
        labels = net(x).argmax(1)
    found = erased(net, Erasure("first", controls=10), labels=labels)
    assert found.accuracy == 1
    assert found.lost_low.item() > 0.1
    assert erased(net, Erasure("first", controls=2)).lost.isnan().all()  # without labels


class Maps(nn.Module):
    """Channels that hold the inputs at every place, as maps or as tokens, and the mean over places for a score."""

    def __init__(self, *, tokens: bool) -> None:
        super().__init__()
        self.planted, self.places, self.tokens = Planted(1.0), nn.Identity(), tokens

    def forward(self, x: Tensor) -> Tensor:
        slope = torch.linspace(0.5, 1.5, 4, dtype=x.dtype)
        rows = x[:, None, :] * slope[:, None]
        whole = self.places(rows if self.tokens else rows.mT.reshape(len(x), FEATURES, 2, 2))
        logits: Tensor = self.planted(whole.mean(1) if self.tokens else whole.mean((2, 3)))
        return logits


@pytest.mark.parametrize("tokens", [True, False])
def test_maps_and_tokens_are_erased_at_every_place(tokens: bool) -> None:
    found = erased(Maps(tokens=tokens).eval(), Erasure("places", controls=3))
    assert found.slope.item() == pytest.approx(-2)
    assert found.slope_after.abs().item() < 1e-9
    assert found.rank == (1,)


def test_a_layer_of_a_series_is_erased_by_its_channels() -> None:
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)).double().eval()
    x, kinds = torch.rand(20, 2, 5, dtype=torch.float64), ["old", "new"] * 10
    along, pooled = (Erasure(n, controls=1)(ActivationStore(), {"score": Score(net, 1)}, x, kinds) for n in ("0", "2"))
    assert along.rank == (1,)
    assert torch.allclose(along.slope, pooled.slope)  # the mean over time is all that the head reads


class Turned(nn.Module):
    """As many units as places, behind a transposition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after, self.head = nn.Conv1d(2, 5, 1), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.after(self.conv(x).mT).mean(1))


def test_a_layer_of_a_series_is_refused_where_its_channels_are_not_known() -> None:
    net = Turned().double().eval()
    x, kinds = torch.rand(20, 2, 5, dtype=torch.float64), ["old", "new"] * 10
    with pytest.raises(ErasureError, match="which of them holds channels can't be told"):
        Erasure("after")(ActivationStore(), {"score": Score(net, 1)}, x, kinds)


def test_a_continuous_attribute_is_a_slope_per_unit() -> None:
    x, *_ = examples()
    generator = torch.Generator().manual_seed(3)
    amount = torch.randn(len(x), generator=generator, dtype=torch.float64)
    x[:, 0] = amount
    store = ActivationStore()
    found = Erasure("first", controls=20)(store, {"score": Score(Planted(2.0), 1)}, x, amount)
    assert found.readable.item() > 0.99
    assert found.readable_after.item() < 0.05
    assert found.chance == 0
    assert found.slope_low.item() < 2 + 3 * 0.4  # input 3 is noise beside it
    # Erased on one half, what is left on the other is of the size of the other inputs' chance slopes.
    assert abs(found.slope_after.item()) < 4 * (found.slope_high - found.slope_low).item()
    assert found.used_p.item() < 0.01


def test_an_attribute_that_has_nothing_to_do_with_the_network_is_seldom_called_used() -> None:
    draws = 24
    called = 0
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, FEATURES, generator=generator, dtype=torch.float64)
        kinds = torch.randint(0, 2, (40,), generator=generator)
        how = Erasure("first", controls=3, seed=seed)
        called += how(ActivationStore(), {"score": Score(Planted(1.0), 1)}, x, kinds).used_p.item() < 0.05
    assert called <= stats.binom.ppf(0.9999, draws, 0.05)


def test_a_result_is_a_table_a_figure_sentences_and_a_folder(tmp_path: Path) -> None:
    found = erased(Planted(1.0), Erasure(("first", "second"), controls=2))
    again = ErasureResult.load(found.save(tmp_path / "erasure"))
    assert again.to_pandas().equals(found.to_pandas())
    assert list(found.to_pandas()["layer"]) == ["first", "second"]
    assert "24 clusters and judged on 24 others" in found.sentences()[0]
    assert len(found.plot().axes) == 1
    assert len(repr(found).splitlines()) <= 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute": ["old"] * 96}, "the value 'old' alone"),
        ({"attribute": ["old", "new"]}, "96 examples need as many values of the attribute, got 2"),
        ({"attribute": torch.ones(96)}, "the same for all examples"),
        ({"attribute": torch.full((96,), torch.nan)}, "NaN or infinity"),
        ({"clusters": ["a", "b"]}, "as many clusters and labels"),
        ({"labels": [1]}, "as many clusters and labels"),
        ({"fitted_on": ["pair 99"]}, "0 examples are of clusters to fit on, and 96 of others"),
        ({"how": Erasure("first", controls=0)}, "controls must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_erased_is_refused(change: dict[str, object], message: str) -> None:
    x, kinds, clusters = examples()
    given = {"attribute": kinds, "clusters": clusters, "labels": None, "fitted_on": None, "how": Erasure("first")} | change
    how = given.pop("how")
    assert isinstance(how, Erasure)
    with pytest.raises(ErasureError, match=message):
        how(
            ActivationStore(),
            {"score": Score(Planted(1.0), 1)},
            x,
            given["attribute"],  # type: ignore[arg-type]
            clusters=given["clusters"],  # type: ignore[arg-type]
            labels=given["labels"],  # type: ignore[arg-type]
            fitted_on=given["fitted_on"],  # type: ignore[arg-type]
        )
