"""Corrections of a last layer: planted shortcuts go and nothing else does; a clean network is best left alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from concepts.erasure.corrections import Correction, GroupDro, Head, LastLayer, Projection, Seen
from concepts.erasure.eraser import ErasureError
from concepts.erasure.mending import Mended, Mending, last_linear
from concepts.erasure.mending_result import COSTS, LEAVE, MEND, UNKNOWN, MendingResult
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.data.examples import TensorExamples

FEATURES = 6


class Leaning(nn.Module):
    """Two classes: what is named shows in input 0, and input 1, the attribute, weighs `weight` as much."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        turn = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator).double()).Q
        self.body, self.head = nn.Linear(FEATURES, FEATURES, bias=False), nn.Linear(FEATURES, 2)
        self.double().eval()
        with torch.no_grad():
            self.body.weight.copy_(turn)
            own = torch.zeros(2, FEATURES).double()
            own[1, 0], own[1, 1] = 2, 2 * weight
            self.head.weight.copy_((own - own.flip(0)) @ turn.mT)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def data(n: int = 400, seed: int = 0) -> tuple[Tensor, list[str], Tensor, list[str]]:
    """Return inputs, the attribute, labels, which go with the attribute in 80 %, and clusters of two."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    kinds = torch.where(torch.rand(n, generator=generator) < 0.8, labels, 1 - labels)
    x = torch.randn(n, FEATURES, generator=generator).double()
    x[:, 0] = x[:, 0] * 0.5 + 2.0 * labels - 1
    x[:, 1] = x[:, 1] * 0.3 + 2.0 * kinds - 1
    return x, ["dark" if k else "light" for k in kinds.tolist()], labels, [f"pair {i // 2}" for i in range(n)]


def swapped(index: int, name: str, n: int = 60) -> MatchedConcept:
    x = data(n, 5)[0]
    sides = []
    for value in (1.0, -1.0):
        side = x.clone()
        side[:, index] = value
        sides.append(TensorExamples(side))
    return MatchedConcept(name, *sides)


def mended(net: nn.Module, by: Correction, **given: object) -> Mended:
    x, kinds, labels, clusters = data()
    matched = [swapped(1, "dark"), swapped(2, "other")]
    return Mending(by, **given)(net, x, kinds, labels, clusters=clusters, matched=matched, name="dark")  # type: ignore[arg-type]


ALL = {"projection": Projection(), "mean": Projection("mean"), "last layer": LastLayer(draws=3), "dro": GroupDro(steps=150)}


@pytest.mark.parametrize("name", ALL)
def test_a_network_that_leans_on_the_attribute_is_mended_on_data_never_used(name: str) -> None:
    net = Leaning(1.5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = mended(net, ALL[name]).result
    assert found.verdict == MEND
    assert found.groups[found.worst] in {"class 0, dark", "class 1, light"}
    assert found.change_low[found.worst] > 0
    assert found.overall_low > 0
    assert (found.flips_before[0] > 0.5) & (found.flips_high[0] < 0)
    assert found.swap_high[0].max() < 0
    assert found.swap_after[0].abs().max() < 0.3 * found.swap_before[0].abs().min()
    assert found.fitted == found.judged == 100
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    said = found.sentences()
    assert said[0].startswith("Mend: others of its class were classified better than the group that was worst before")
    assert found.gap_low > 0
    assert "Swapping dark changes the top class of" in said[1]


@pytest.mark.parametrize("name", ["projection", "last layer", "dro"])
def test_a_clean_network_is_left_alone(name: str) -> None:
    found = mended(Leaning(0.0), ALL[name]).result
    assert found.verdict == LEAVE
    assert found.overall_high >= 0
    assert found.flips_before[0] == 0
    assert found.gap_low <= 0 <= found.gap_high
    assert found.sentences()[0].startswith("Do not mend: others of its class were classified")


def test_the_gap_is_between_the_worst_group_and_the_rest_of_its_class() -> None:
    found = mended(Leaning(1.5), Projection()).result
    kind = found.groups[found.worst].split(",")[0]
    others = [g for g, name in enumerate(found.groups) if name.startswith(kind) and g != found.worst]
    assert found.gap == pytest.approx(float(found.before[others[0]] - found.before[found.worst]))
    assert found.gap_low < found.gap < found.gap_high


def test_a_gain_where_nothing_leaned_is_no_mending() -> None:
    """As where a layer that is fitted anew serves unseen data better."""
    found = mended(Leaning(1.5), Projection()).result
    assert replace(found, gap_low=-0.01).verdict == LEAVE
    assert replace(found, gap_low=float("nan")).verdict == MEND  # a class of one group tells no gap


def test_projection_is_exact_in_the_weights_and_takes_the_attribute_away() -> None:
    """The head fitted to an eraser is the head behind it; what is matched no longer moves along the directions taken."""
    x, kinds, _, clusters = data()
    net = Leaning(1.5)
    found = Mending(Projection())(net, x, kinds, clusters=clusters)
    rows = net.body(x).detach()
    from concepts.effects.logit_effect import split_clusters
    from concepts.erasure.eraser import CrossMoments, leace

    fitted_on = split_clusters(clusters, 0.5, 0)[0]
    fit = [i for i, c in enumerate(clusters) if c in fitted_on]
    moments = CrossMoments()
    moments.add(rows[fit], torch.tensor([[float(k == "light")] for k in kinds])[fit])
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), net.head(leace(moments.value())(rows)))


def test_where_attribute_and_class_go_together_projection_keeps_the_class_only_if_it_knows_it() -> None:
    x, kinds, labels, _ = data(4000)
    attribute = torch.tensor([int(k == "dark") for k in kinds])
    net = Leaning(0.0)
    head = Head(net.head.weight.detach(), net.head.bias.detach())
    rows = net.body(x).detach()
    told, untold = (
        Projection()(head, Seen(rows, attribute, known, torch.arange(4000)), 0)(rows).argmax(1) for known in (labels, None)
    )
    right = (head(rows).argmax(1) == labels).double().mean()
    assert (told == labels).double().mean() > right - 0.01
    assert (untold == labels).double().mean() < right - 0.05


def test_the_last_layer_is_fitted_to_groups_of_equal_size() -> None:
    """With one group a hundred times the others, the border between classes does not follow it."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([400, 8, 8, 400])
    groups = torch.arange(4).repeat_interleave(counts)
    labels, attribute = groups // 2, groups % 2
    rows = torch.randn(len(groups), 3, generator=generator).double() * 0.3
    rows[:, 0] += labels * 2 - 1.0
    rows[:, 1] += attribute * 2 - 1.0
    seen = Seen(rows, attribute, labels, torch.arange(len(groups)))
    blank = Head(torch.zeros(2, 3).double(), torch.zeros(2).double())
    found = LastLayer((1e-2,), draws=20)(blank, seen, 0)
    weight = found.weight[1] - found.weight[0]
    assert abs(float(weight[1] / weight[0])) < 0.15
    from probing.probes.feature_tables import TableRows
    from probing.probes.probes import SoftmaxProbe

    plain = SoftmaxProbe((1e-2,)).fit(TableRows(rows), labels[None], 2).weights[0, 0]
    assert abs(float((plain[1] - plain[0])[1] / (plain[1] - plain[0])[0])) > 2 * abs(float(weight[1] / weight[0]))


def test_group_dro_is_the_minimum_of_the_largest_loss() -> None:
    """No step away from what is found lowers the largest loss of a group by more than what descent leaves open."""
    x, kinds, labels, _ = data(200)
    attribute = torch.tensor([int(k == "dark") for k in kinds])
    seen = Seen(x, attribute, labels, torch.arange(200))
    head = GroupDro(penalty=1e-2, steps=1500)(Head(torch.zeros(2, FEATURES).double(), torch.zeros(2).double()), seen, 0)

    def largest(weight: Tensor, bias: Tensor) -> float:
        losses = nn.functional.cross_entropy(x @ weight.mT + bias, labels, reduction="none")
        return max(float(losses[seen.groups == g].mean()) for g in range(4))

    found = largest(head.weight, head.bias)
    assert found < 0.6 * largest(torch.zeros(2, FEATURES).double(), torch.zeros(2).double())
    losses = nn.functional.cross_entropy(head(x), labels, reduction="none")
    means = sorted(float(losses[seen.groups == g].mean()) for g in range(4))
    assert means[-1] - means[-2] < 0.1 * means[-1]  # at the optimum the worst groups are equal


def test_what_is_saved_mends_the_network_again(tmp_path: Path) -> None:
    found = mended(Leaning(1.5), Projection())
    folder = found.save(tmp_path / "mended")
    net = Leaning(1.5)
    left = net.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    assert not left.unexpected_keys
    x = data()[0]
    torch.testing.assert_close(net(x), found.model(x))
    with safe_open(folder / "weights.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        said = file.metadata()
    assert said["verdict"] == MEND
    assert "Projection" in said["by"]
    assert said["of"] == found.result.provenance.model
    again = MendingResult.load(folder)
    assert again.to_pandas().equals(found.result.to_pandas())
    assert len(again.to_pandas()) == 4 + 1 + 2 * 3
    assert len(again.plot().get_yticklabels()) == 4 + 1 + 2
    assert len(repr(again).splitlines()) <= 10


def test_without_labels_only_swaps_are_judged() -> None:
    x, kinds, _, clusters = data()
    found = Mending(Projection())(Leaning(1.5), x, kinds, clusters=clusters, matched=[swapped(1, "dark")]).result
    assert found.verdict == UNKNOWN
    assert found.groups == ()
    assert found.flips_high[0] < 0
    assert "what accuracy it costs is not known" in found.sentences()[0]
    assert found.to_pandas()["before"].isna().sum() == 1


def test_a_gain_that_costs_accuracy_is_called_one() -> None:
    found = mended(Leaning(1.5), Projection()).result
    assert replace(found, overall_high=-0.01).verdict == COSTS


def test_pairs_of_fitted_clusters_are_left_out_and_classes_may_be_named() -> None:
    x, kinds, labels, clusters = data()
    pairs = swapped(1, "dark")
    own = MatchedConcept("dark", pairs.positive, pairs.negative, tuple(clusters[:60]))
    fitted_on = set(clusters[:40])
    given = {"clusters": clusters, "fitted_on": fitted_on, "targets": {"one": 1}}
    found = Mending(Projection())(Leaning(1.5), x, kinds, labels, matched=[own], **given).result  # type: ignore[arg-type]
    alone = MatchedConcept("dark", *(TensorExamples(side.load(range(40, 60))) for side in (own.positive, own.negative)))
    other = Mending(Projection())(Leaning(1.5), x, kinds, labels, matched=[alone], **given).result  # type: ignore[arg-type]
    assert found.targets == ("one",)
    torch.testing.assert_close(found.swap_before, other.swap_before)
    sides = (TensorExamples(s.load(range(40))) for s in (own.positive, own.negative))
    part = MatchedConcept("dark", *sides, tuple(clusters[:40]))
    with pytest.raises(ErasureError, match="all pairs of 'dark' are of clusters that were fitted on"):
        Mending(Projection())(Leaning(1.5), x, kinds, labels, matched=[part], **given)  # type: ignore[arg-type]


def test_the_last_linear_layer_is_found_or_asked_for() -> None:
    examples = TensorExamples(data()[0])
    assert last_linear(Leaning(1.0), examples) == "head"
    with pytest.raises(ErasureError, match="no linear layer of Sequential returns its output"):
        last_linear(nn.Sequential(nn.Linear(6, 2), nn.ReLU()).double(), examples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute": ["dark"] * 400}, "the value 'dark' alone"),
        ({"labels": [0]}, "400 examples need as many labels, got 1"),
        ({"attribute": ["dark"]}, "400 examples need as many values of the attribute, got 1"),
        ({"labels": None}, "LastLayer fits the last layer to labels"),
        ({"labels": [0] * 400}, "class 1 has no examples to fit on"),
        ({"fitted_on": ["pair 900"]}, "0 examples are of clusters to fit on, and 400 of others"),
        ({"layer": "body"}, "never"),
    ],
)
def test_what_cannot_be_mended_is_refused(change: dict[str, object], message: str) -> None:
    x, kinds, labels, clusters = data()
    given = {"attribute": kinds, "labels": labels, "clusters": clusters, "layer": ""} | change
    layer = str(given.pop("layer"))
    if layer:
        net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(12, 2)).double().eval()
        with pytest.raises(ErasureError, match="is a Conv1d, and corrections"):
            Mending(Projection(), "0")(net, x[:, None], kinds, labels)
        return
    with pytest.raises(ErasureError, match=message):
        Mending(LastLayer(draws=1))(Leaning(1.0), x, **given)  # type: ignore[arg-type]
