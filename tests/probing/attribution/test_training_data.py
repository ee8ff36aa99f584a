"""Influence of training data: one gradient per example by autograd, captum's, planted wrong labels, and the baseline."""

import math
import warnings

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from probing.attribution.training_data import InfluenceResult, RepresentationSimilarity, TracIn
from probing.core.errors import ArgumentError
from probing.core.inputs import InputError
from probing.models.scores import ModelModeError


class Small(nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh())
        self.fc = nn.Linear(7, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


TRAIN = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(9) % 3
SEEN, THEIRS = TRAIN[:4] + 0.1, torch.tensor([2, 0, 1, 0])


def checkpoints(*, bias: bool = True) -> list[tuple[nn.Module, float]]:
    return [(nets.seeded(Small(bias=bias), seed).double(), rate) for seed, rate in ((0, 0.3), (1, 0.1))]


def gradient(net: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    parameters = list(net.fc.parameters())  # type: ignore[union-attr]
    loss = cross_entropy(net(x[None]), label[None])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("bias", [True, False])
def test_influence_is_the_sum_over_checkpoints_of_rates_times_products_of_gradients(bias: bool) -> None:
    nets_and_rates = checkpoints(bias=bias)
    found = TracIn("fc", batch_size=4)(nets_and_rates, TRAIN, LABELS, SEEN, THEIRS)
    expected, own = torch.zeros(4, 9).double(), torch.zeros(9).double()
    for net, rate in nets_and_rates:
        theirs = [gradient(net, x, y) for x, y in zip(SEEN, THEIRS, strict=True)]
        ours = [gradient(net, x, y) for x, y in zip(TRAIN, LABELS, strict=True)]
        expected += rate * torch.stack([torch.stack([t @ o for o in ours]) for t in theirs])
        own += rate * torch.stack([o @ o for o in ours])
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.own, own)
    assert found.n_forward == 2 * 13
    assert found.proponents(0, 2).tolist() == expected[0].argsort(descending=True)[:2].tolist()
    assert found.opponents(0, 2).tolist() == expected[0].argsort()[:2].tolist()


def test_influence_is_captums() -> None:
    influence = pytest.importorskip("captum.influence")
    nets_and_rates = checkpoints()
    model = nets.seeded(Small()).double()
    states = [(net.state_dict(), rate) for net, rate in nets_and_rates]

    def load(net: nn.Module, kept: tuple[dict[str, Tensor], float]) -> float:
        net.load_state_dict(kept[0])
        return kept[1]

    theirs = influence.TracInCP(
        model,
        TensorDataset(TRAIN, LABELS),
        states,
        checkpoints_load_func=load,
        layers=["fc"],
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        batch_size=3,
        sample_wise_grads_per_batch=True,
    )
    found = TracIn("fc")(nets_and_rates, TRAIN, LABELS, SEEN, THEIRS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that inputs are made to require gradients
        of_inputs, of_each = theirs.influence((SEEN, THEIRS)), theirs.self_influence()
    torch.testing.assert_close(found.values, of_inputs)
    torch.testing.assert_close(found.own, of_each)


def test_a_step_on_an_example_lowers_the_loss_by_its_influence_to_first_order() -> None:
    """What the number means: the error of that is of second order, a quarter at half the rate."""
    errors = []
    for rate in (0.02, 0.01):
        net = nets.seeded(Small()).double()
        found = TracIn("fc")([(net, rate)], TRAIN[:1], LABELS[:1], SEEN, THEIRS)
        before = cross_entropy(net(SEEN), THEIRS, reduction="none")
        step = torch.autograd.grad(cross_entropy(net(TRAIN[:1]), LABELS[:1]), list(net.fc.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(net.fc.parameters(), step, strict=True):
                parameter.sub_(rate * slope)
        fall = (before - cross_entropy(net(SEEN), THEIRS, reduction="none")).detach()
        errors.append(float((fall - found.values[:, 0]).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def blobs(wrong: list[int]) -> tuple[Tensor, Tensor, nn.Module, list[tuple[nn.Module, float]]]:
    """Return two clouds far apart, some labels turned, and a linear network at moments of its training on them."""
    generator = torch.Generator().manual_seed(3)
    true = torch.arange(80) % 2
    x = 0.5 * torch.randn(80, 2, generator=generator, dtype=torch.float64) + 3 * (2 * true[:, None] - 1)
    labels = true.clone()
    labels[wrong] = 1 - labels[wrong]
    net = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
    kept: list[tuple[nn.Module, float]] = []
    for _ in range(4):
        for _ in range(5):
            slopes = torch.autograd.grad(cross_entropy(net(x), labels), list(net.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(net.parameters(), slopes, strict=True):
                    parameter.sub_(0.1 * slope)
        copy = nn.Sequential(nn.Linear(2, 2)).double().eval()
        copy.load_state_dict(net.state_dict())
        kept.append((copy, 0.1))
    return x, labels, net.eval(), kept


def test_planted_wrong_labels_come_first() -> None:
    """Eight of eighty: where the clouds don't overlap a wrong label has the larger residual, and right labels none."""
    wrong = [4, 11, 23, 30, 42, 51, 67, 78]
    x, labels, net, kept = blobs(wrong)
    found = TracIn("0")(kept, x, labels, x[:2], labels[:2])
    assert sorted(found.first(8).tolist()) == wrong
    _, right, _, before = blobs([])
    control = TracIn("0")(before, x, right, x[:2], right[:2])
    by_chance = len(set(control.first(8).tolist()) & set(wrong))
    # With right labels these eight are like any others: hypergeometric, mean 0.8, deviation 0.81.
    assert by_chance <= 0.8 + 4 * math.sqrt(8 * 0.1 * 0.9 * 72 / 79)
    # A clean input's opponents are the wrong labels of its own cloud; its proponents have its label.
    assert set(found.opponents(0, 4).tolist()) <= set(wrong)
    assert all(labels[i] == labels[0] for i in found.proponents(0).tolist())
    near = RepresentationSimilarity("0")(net, x, x[:2])
    assert near.own.tolist() == pytest.approx([1] * 80)


def test_similarity_is_the_cosine_of_what_a_layer_returns() -> None:
    net = nets.seeded(Small()).double()
    found = RepresentationSimilarity("body", batch_size=2)(net, TRAIN, SEEN)
    a, b = net.body(SEEN).detach(), net.body(TRAIN).detach()
    expected = torch.stack([torch.stack([u @ v / (u.norm() * v.norm()) for v in b]) for u in a])
    torch.testing.assert_close(found.values, expected)
    assert found.n_forward == 13


def test_a_result_is_saved_tabulated_and_drawn(tmp_path: object) -> None:
    found = TracIn("fc")(checkpoints(), TRAIN, LABELS, SEEN, THEIRS)
    loaded = InfluenceResult.load(found.save(str(tmp_path)))
    assert torch.equal(loaded.values, found.values)
    table = loaded.to_pandas()
    assert len(table) == 4 * 10
    assert table[table["role"] == "for"]["value"].is_monotonic_decreasing is False  # an order for each input
    assert len(loaded.plot().axes) == 1


class Soft(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


def test_what_has_no_influence_is_refused() -> None:
    good = checkpoints()
    with pytest.raises(ArgumentError, match=r"its learning rate above 0, got rates \[\]"):
        TracIn("fc")([], TRAIN, LABELS, SEEN, THEIRS)
    with pytest.raises(ArgumentError, match=r"got rates \[-1.0\]"):
        TracIn("fc")([(good[0][0], -1.0)], TRAIN, LABELS, SEEN, THEIRS)
    with pytest.raises(ArgumentError, match="'body' is a Sequential"):
        TracIn("body")(good, TRAIN, LABELS, SEEN, THEIRS)
    with pytest.raises(ArgumentError, match="'fc' is not the network's last layer"):
        TracIn("fc")([(nets.seeded(Soft()).double(), 0.1)], TRAIN, LABELS, SEEN, THEIRS)
    with pytest.raises(ArgumentError, match="batch_size must be at least 1, got 0"):
        TracIn("fc", batch_size=0)(good, TRAIN, LABELS, SEEN, THEIRS)
    with pytest.raises(InputError, match="9 examples need a class each"):
        TracIn("fc")(good, TRAIN, LABELS[:3], SEEN, THEIRS)
    with pytest.raises(InputError, match=r"the network has 3 .*, got 0 to 5"):
        TracIn("fc")(good, TRAIN, LABELS, SEEN, torch.tensor([0, 5, 1, 1]))
    with pytest.raises(ModelModeError, match="training mode"):
        TracIn("fc")([(good[0][0].train(), 0.1)], TRAIN, LABELS, SEEN, THEIRS)
