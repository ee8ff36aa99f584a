"""Significance of parts: its level under nulls that hold, planted truths, and what it refuses."""

import math

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.attribution.perturbation.superpixels import Each, Given, Grid
from probing.core.inputs import Inputs
from probing.evaluation.base import EvaluationError
from probing.evaluation.retraining import Training
from probing.evaluation.significance import PartSignificance, PartsResult, exceedance, other_classes, untrained_twins
from probing.models.scores import Score

DRAWS = 200


def maps_of_nets(networks: int, hidden: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return gradient × input of rectifier networks drawn at random, one row each, of one input."""
    first = torch.randn(networks, hidden, len(x), generator=generator, dtype=torch.float64)
    last = torch.randn(networks, hidden, generator=generator, dtype=torch.float64)
    scale = torch.exp(torch.randn(networks, 1, generator=generator, dtype=torch.float64))  # some networks are louder
    active = ((first @ x) > 0).double()
    return scale * torch.einsum("nh,nhd->nd", last * active, first) * x


def test_where_the_network_is_one_of_the_null_at_most_five_percent_of_inputs_have_a_part() -> None:
    """The level, over 200 draws of an input, a network and 39 twins: heavy tails, dependent parts, unequal scales."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(DRAWS):
        x = torch.randn(30, generator=generator, dtype=torch.float64)
        maps = maps_of_nets(40, 4, x, generator)
        wrong += bool((exceedance(maps) <= 0.05).any())
    se = math.sqrt(0.05 * 0.95 / DRAWS)
    assert wrong / DRAWS <= 0.05 + 3 * se
    # The control: without the correction over parts, it would be most inputs.
    generator = torch.Generator().manual_seed(0)
    plain = 0
    for _ in range(40):
        x = torch.randn(30, generator=generator, dtype=torch.float64)
        maps = maps_of_nets(40, 4, x, generator)
        plain += any(float(exceedance(maps[:, i : i + 1])[0]) <= 0.05 for i in range(30))
    assert plain / 40 > 0.3


def test_p_is_that_of_the_step_down_maximum_worked_out_in_loops() -> None:
    values = torch.randn(20, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values[0, 2] += 4
    t = values - values.mean(0)
    t = t / t.square().mean(0).sqrt()
    order = sorted(range(5), key=lambda i: -float(t[0, i]))
    expected, before = [0.0] * 5, 0.0
    for place, part in enumerate(order):
        left = order[place:]
        hits = sum(max(float(t[b, i]) for i in left) >= float(t[0, part]) - 1e-9 for b in range(1, 20))
        before = max(before, (1 + hits) / 20)
        expected[part] = before
    assert exceedance(values).tolist() == pytest.approx(expected)
    assert expected[2] == 1 / 20
    same = torch.ones(20, 2, dtype=torch.float64) / 3
    assert exceedance(same).tolist() == [1, 1]  # nothing exceeds where all maps are the same


def trained_on_the_left() -> tuple[nn.Module, Tensor]:
    """Return a linear network whose class 1 is told by the upper left quarter only, and pictures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1, 6, 6, generator=generator)
    x[:, :, :3, :3] += 0.8 * (torch.arange(300) % 2 * 2 - 1)[:, None, None, None]
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2))  # noqa: E731
    return Training(epochs=12, rate=1e-2)(make, x, torch.arange(300) % 2, 0).double(), x.double()


def test_a_planted_part_is_found_and_no_other() -> None:
    model, x = trained_on_the_left()
    score, seen = Score(model, 1), x[1:9:2]
    nulls = untrained_twins(score, seen, draws=19)
    found = PartSignificance(Grid(2, 2), channels="sumabs")(Saliency(), score, seen, nulls)
    assert found.significant.tolist() == [[True, False, False, False]] * 4
    assert float(found.p[0, 0]) == 1 / 20
    assert found.shown[0].nonzero().amax(0).tolist() == [2, 2]
    assert found.n_forward == 20 * 4
    assert found.draws == 19
    assert "4 of 4 inputs" in found.sentences()[0]
    table = found.to_pandas()
    assert table["significant"].sum() == 4
    assert len(table) == 16


def test_an_untrained_network_among_its_twins_has_no_more_than_the_level_says() -> None:
    """The whole way through a method: 8 networks that were never trained, each against 19 others."""
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 2))  # noqa: E731
    x = nets.images(1).double()
    wrong = 0
    for number in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(1000 + number)
            net = make().double().eval()
        nulls = untrained_twins(Score(net, 1), x, draws=19, seed=100 * number)
        wrong += bool(PartSignificance(Grid(3, 3))(Saliency(), Score(net, 1), x, nulls).significant.any())
    assert wrong <= 8 * 0.05 + 4 * math.sqrt(8 * 0.05 * 0.95)


def test_networks_on_permuted_labels_are_a_null() -> None:
    """The planted part is found against the same training on labels that mean nothing."""
    generator = torch.Generator().manual_seed(1)
    _, x = trained_on_the_left()
    labels = torch.arange(300) % 2
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2))  # noqa: E731
    train = Training(epochs=3, rate=1e-2)
    model = train(make, x.float(), labels, 0).double()
    nulls = [
        Score(train(make, x.float(), labels[torch.randperm(300, generator=generator)], 1 + i).double(), 1) for i in range(19)
    ]
    found = PartSignificance(Grid(2, 2), scaled=False)(Saliency(), Score(model, 1), x[:2], nulls)
    assert found.significant.tolist() == [[True, False, False, False]] * 2


def test_other_classes_are_those_that_are_left() -> None:
    model, x = nets.seeded(nn.Linear(5, 21)).double(), torch.randn(2, 5, dtype=torch.float64)
    target = torch.tensor([0, 20])
    nulls = list(other_classes(Score(model, target), x, 21))
    seen = torch.stack([n.target for n in nulls])  # type: ignore[arg-type]
    assert seen.shape == (20, 2)
    assert all(set(column.tolist()) == set(range(21)) - {int(t)} for column, t in zip(seen.T, target, strict=True))
    with torch.no_grad():
        model.weight[0, 3] = 50.0
    found = PartSignificance(Each(), scaled=False)(Saliency(), Score(model, 0), x, other_classes(Score(model, 0), x, 21))
    assert found.significant.tolist() == [[False, False, False, True, False]] * 2


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, 4), nn.Linear(4, 2, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head((self.table(input_ids) * attention_mask[..., None].to(self.table.weight)).sum(1))


def test_texts_are_cut_into_tokens_and_padding_is_no_part() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [2, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    texts = Inputs({"input_ids": ids, "attention_mask": mask})
    model = nets.seeded(Words()).double()
    with torch.no_grad():
        model.table.weight[2] = 30 * model.head.weight[1]
    nulls = [Score(nets.seeded(Words(), 1 + i).double(), 1) for i in range(19)]
    found = PartSignificance(scaled=False)(GradientTimesInput(), Score(model, 1), texts, nulls)
    assert found.labels.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
    assert found.p[1, 2:].isnan().all()
    assert bool(found.significant[0, 1])
    assert bool(found.significant[1, 0])
    assert found.shown[1, 2:].tolist() == [0, 0]


def test_settings_are_followed_and_a_batch_is_each_alone(tmp_path: object) -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images(3).double()
    labels = torch.stack([torch.arange(36).view(6, 6) // k for k in (9, 12, 7)]) + 5
    target = torch.tensor([0, 1, 2])

    def found(rows: slice, **settings: object) -> PartsResult:
        cut = PartSignificance(Given.of(labels[rows]), alpha=0.25, **settings)  # type: ignore[arg-type]
        score = Score(model, target[rows])
        with torch.random.fork_rng():
            return cut(GradientTimesInput(), score, x[rows], untrained_twins(score, x[rows], draws=3, seed=4))

    whole = found(slice(0, 3))
    assert whole.labels.amin((1, 2)).tolist() == [0, 0, 0]
    for row in range(3):
        alone = found(slice(row, row + 1))
        torch.testing.assert_close(alone.p[0], whole.p[row][: alone.p.shape[1]])
        assert whole.values[row, alone.p.shape[1] :].isnan().all()
    assert not torch.equal(found(slice(0, 3), scaled=False).values, whole.values)
    assert not torch.equal(found(slice(0, 3), channels="sumabs").values.nan_to_num(), whole.values.nan_to_num())
    loaded = PartsResult.load(whole.save(str(tmp_path)))
    assert torch.equal(loaded.significant, whole.significant)
    assert len(whole.plot().axes) == 1


def test_what_cannot_be_tested_is_refused() -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images(2).double()
    score = Score(model, 1)
    with pytest.raises(EvaluationError, match=r"18 maps of the null can't show anything at 0.05: give 19 or more"):
        PartSignificance(Grid(2, 2))(Saliency(), score, x, untrained_twins(score, x, draws=18))
    with pytest.raises(EvaluationError, match=r"give 99 or more"):
        PartSignificance(Grid(2, 2), alpha=0.01)(Saliency(), score, x, [score] * 19)
    with pytest.raises(EvaluationError, match="a score of the null names no class"):
        PartSignificance(Grid(2, 2))(Saliency(), score, x, [Score(model)] * 19)
    with pytest.raises(EvaluationError, match=r"maps must be finite and lie over parts of shape \(2, 6, 6\)"):
        PartSignificance(Grid(2, 2))(_Small(), score, x, [score] * 19)


class _Small:
    def __call__(self, score: Score, inputs: Tensor) -> Attribution:
        found = Saliency()(score, inputs)
        return Attribution(found.provenance, found.values[..., :3], found.score, found.target, found.unit, 0, 0)
