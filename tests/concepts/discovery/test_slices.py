"""Slices: a planted group in which a network errs is found on other examples; where errors are chance, nothing is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from concepts.discovery.slices import SliceError, Slices, SlicesResult, _more_errors
from probing.store.store import ActivationStore

FEATURES = 6


class Reader(nn.Module):
    """Two classes by input 0; the layer shows all inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Identity(), nn.Linear(FEATURES, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.weight[1, 0], self.head.weight[0, 0] = 2, -2
            self.head.bias.zero_()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x))
        return logits


def data(seed: int, share: float, n: int = 240) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, labels, and a group of a fifth that shows in two inputs, in which a share of labels is the other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator).double()
    group = torch.rand(n, generator=generator) < 0.2
    x[group, 2:4] += 4
    labels = (x[:, 0] > 0).long()
    turned = torch.rand(n, generator=generator) < torch.where(group, share, 0.08)
    return x, torch.where(turned, 1 - labels, labels), group


def sliced(seed: int, share: float, how: Slices, **given: object) -> SlicesResult:
    x, labels, _ = data(seed, share)
    return how(ActivationStore(), Reader(), x, labels, **given)  # type: ignore[arg-type]


HOW = Slices("layer", 4, permutations=999)


def test_the_planted_group_is_found_and_its_examples_are_of_it() -> None:
    x, labels, group = data(0, 0.6, 600)
    found = HOW(ActivationStore(), Reader(), x, labels)
    assert found.found
    first = found.examples(found.found[0])
    assert float(group[list(first)].double().mean()) > 2 * float(group.double().mean())
    assert found.error[found.found[0]] > 2 * found.elsewhere[found.found[0]]
    assert (found.member >= 0).sum() == found.size.sum()
    assert found.fitted == found.judged == 300
    assert f"{len(found.found)} of 4 slices err more often" in found.sentences()[0]


def test_where_errors_are_chance_slices_are_seldom_found() -> None:
    draws = 30
    called = sum(bool(sliced(seed, 0.08, Slices("layer", 4, permutations=199, seed=seed)).found) for seed in range(draws))
    assert called <= stats.binom.ppf(0.9999, draws, 0.05)


def test_no_held_out_error_decides_where_an_example_belongs() -> None:
    x, labels, _ = data(1, 0.6)
    first = HOW(ActivationStore(), Reader(), x, labels)
    held = first.member >= 0
    changed = torch.where(held, 1 - labels, labels)
    assert torch.equal(HOW(ActivationStore(), Reader(), x, changed).member, first.member)


def test_permutations_move_whole_clusters_of_one_size() -> None:
    """All ways to give four clusters' errors to each other, by hand; a lone cluster of three stays where it is."""
    clusters = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4])
    errors = torch.tensor([1.0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]).double()
    inside = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]).double()[:, None]
    centred = inside - inside.mean(0)
    from itertools import permutations

    rows = torch.arange(8).view(4, 2)
    hits = []
    for way in permutations(range(4)):
        given = torch.cat([errors[rows[list(way)]].flatten(), errors[8:]])
        hits.append(bool(given @ centred >= errors @ centred - 1e-12))
    p = _more_errors(inside, errors, clusters, 4999, 0)
    assert p.item() == pytest.approx(np.mean(hits), abs=4 * (np.mean(hits) / 5000) ** 0.5)


def test_every_hyperparameter_changes_what_is_found() -> None:
    plain = sliced(0, 0.6, HOW)
    for change in ({"features": 2}, {"weight": 0.1}, {"share": 0.7}, {"seed": 1}):
        other = sliced(0, 0.6, Slices("layer", 4, permutations=999, **change))  # type: ignore[arg-type]
        assert not torch.equal(other.member, plain.member), change
    names = [f"pair {i // 2}" for i in range(240)]
    paired = sliced(0, 0.6, HOW, clusters=names, fitted_on=set(names[:100]))
    assert (paired.fitted, paired.judged) == (50, 70)
    assert (paired.member[:100] == -1).all()


def test_a_result_is_a_table_a_figure_and_a_folder(tmp_path: Path) -> None:
    found = sliced(0, 0.6, HOW)
    again = SlicesResult.load(found.save(tmp_path / "slices"))
    assert again.to_pandas().equals(found.to_pandas())
    assert len(found.to_pandas()) == 4
    assert len(found.plot().lines) == 9
    assert len(repr(found).splitlines()) <= 10


def test_what_allows_no_slices_is_refused() -> None:
    x, labels, _ = data(0, 0.1, 60)
    with pytest.raises(SliceError, match="8 slices need 40 examples to be fitted on and 10 others, got 30 and 30"):
        Slices("layer")(ActivationStore(), Reader(), x, labels)
    with pytest.raises(SliceError, match="60 examples need as many labels"):
        Slices("layer")(ActivationStore(), Reader(), x, labels[:4])
    with pytest.raises(SliceError, match="labels must be classes from 0 to 1, got 7"):
        HOW(ActivationStore(), Reader(), x, labels + 6)
