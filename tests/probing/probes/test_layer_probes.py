"""Probes at layers of networks: what they must find, must not find, and refuse."""

import copy
from dataclasses import replace
from math import sqrt
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probing.data.examples import TensorExamples
from probing.data.toy_images import shapes
from probing.models.hooks import LayerCallError
from probing.models.layers import LayerNotFoundError
from probing.probes import (
    FeatureSizeError,
    Flat,
    GlobalAverage,
    Grid,
    LayerProbes,
    ProbeResult,
    RandomProjection,
    RandomSubset,
    RidgeProbe,
    SoftmaxProbe,
    Split,
    SplitError,
)
from probing.probes.features import INPUT, ProbeLayerError
from probing.probes.parallel import side_by_side
from probing.probes.split import control_labels, draw_split, encode
from probing.probes.training_probes import ProbeHistory, TrainingProbes
from probing.probes.untrained_copy import UntrainedError, untrained_copy
from probing.results.result import rebuild
from probing.statistics.clustered import clustered_share
from probing.statistics.row_products import DegenerateRowsError
from probing.store.store import ActivationStore

QUICK = LayerProbes(probe=SoftmaxProbe((1e-3, 1e-1), tolerance=1e-5), untrained=False, description_length=False)


def store() -> ActivationStore:
    return ActivationStore(progress=False)


def planted(n: int = 240, seed: int = 0) -> tuple[nn.Module, TensorExamples, Tensor]:
    """A network whose `keep` passes on the channel that tells the label, and whose `lose` passes on the other."""
    net = nn.Sequential()
    for name, row in (("keep", [1.0, 0.0]), ("lose", [0.0, 0.0])):
        conv = nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            conv.weight.copy_(torch.tensor([row, [0.0, 1.0]])[:, :, None, None])
            conv.bias.zero_()
        net.add_module(name, conv)
    labels = torch.arange(n) % 2
    images = nets.images(n, 2, 4, seed)
    images[:, 0] += 3.0 * (2 * labels - 1)[:, None, None]
    return net.eval(), TensorExamples(images), labels


@pytest.mark.kernels
def test_probes_find_a_planted_label_where_it_is_and_not_where_it_was_lost() -> None:
    net, examples, labels = planted()
    found = QUICK(store(), net, examples, labels)
    assert found.layers == (INPUT, "keep", "lose")
    assert found.error[:2].tolist() == [0, 0]
    assert float(found.low[2]) < 0.5 < float(found.high[2])
    assert float(found.step_p_holm[1]) < 1e-6  # from keep to lose
    assert float(found.step_p_holm[0]) == 1
    assert found.high[0] > 0  # no error among 72 is no proof of none
    assert found.converged == (True, True, True)


@pytest.mark.kernels
def test_random_labels_are_not_found_anywhere() -> None:
    net, examples, labels = planted()
    shuffled = labels[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    found = LayerProbes()(store(), net, examples, shuffled)
    assert bool((found.low < 0.5).all())
    assert bool((found.high > 0.5).all())
    assert bool((found.compression < 1.05).all())
    assert bool((found.step_p_holm > 0.05).all())


def train(net: nn.Module, images: Tensor, labels: Tensor, *, below: float, most: int = 60) -> None:
    """Train until an epoch's mean loss, in nats, is below a bound, which every kernel reaches by a path of its own."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(most):
        losses = []
        for part in torch.randperm(len(images), generator=generator).split(50):
            optimizer.zero_grad()
            loss = cross_entropy(net(images[part]), labels[part])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        if sum(losses) / len(losses) < below:
            net.eval()
            return
    raise AssertionError(f"the loss is not below {below} after {most} epochs")


def small_cnn() -> nn.Sequential:
    """Three blocks of convolution, ReLU and pooling, and a dense head, at random weights."""

    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

    net = nn.Sequential(
        block(1, 12),
        block(12, 16),
        block(16, 24),
        nn.Flatten(),
        nn.Sequential(nn.Linear(24 * 16, 32), nn.ReLU()),
        nn.Linear(32, 4),
    )
    return untrained_copy(net, seed=1)  # type: ignore[return-value]


BLOCKS = ("0", "1", "2", "4", "5")


@pytest.mark.kernels
@pytest.mark.slow
def test_me_2_probe_error_falls_with_depth_in_a_trained_net_and_rises_at_random_weights() -> None:
    drawn, probed = shapes(1200, seed=0), shapes(900, seed=1)
    net = small_cnn()
    train(net, drawn.images, drawn.labels, below=0.04)
    method = LayerProbes(BLOCKS, SoftmaxProbe((1e-4, 1e-3, 1e-2), 1e-5), controls=0, description_length=False)
    found = method(store(), net, TensorExamples(probed.images), probed.labels)
    error, random = found.error, found.untrained_error
    assert bool((found.step_p_holm[:2] < 1e-3).all())  # from the input to the second block
    assert bool((error[:2] > error[1:3]).all())
    # A probe of the logits can do all that the network does with them; three standard errors of its 270 test examples.
    own = float((net(probed.images).argmax(1) != probed.labels).double().mean())
    assert float(error[-1]) <= own + 3 * sqrt(max(own, 0.01) / found.examples[-1])
    assert own < 0.05
    assert bool((error[2:] < random[2:] - 0.15).all())
    assert bool((random[3:] > random[2:-1]).all())
    assert float(random[-1]) > float(random[1]) + 0.2
    assert float(error[0]) == float(random[0])  # the input is the same


def test_pr_6_the_model_and_the_random_state_are_left_as_found() -> None:
    net, examples, labels = planted()
    before = copy.deepcopy(net.state_dict())
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    LayerProbes()(store(), net, examples, labels)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_the_second_analysis_on_the_same_data_makes_no_forward_pass(tmp_path: Path) -> None:
    net, examples, labels = planted()
    first = ActivationStore(tmp_path, progress=False)
    result = LayerProbes()(first, net, examples, labels)
    assert first.stats.forward_rows == 2 * len(examples)  # as it is, and at random weights
    again = LayerProbes(probe=RidgeProbe())(first, net, examples, labels.roll(1))
    assert first.stats.forward_rows == 2 * len(examples)
    later = ActivationStore(tmp_path, progress=False)
    repeated = LayerProbes()(later, net, examples, labels)
    assert later.stats.forward_rows == 0
    assert torch.equal(repeated.error, result.error)
    assert torch.equal(repeated.cross_entropy, result.cross_entropy)  # to the bit
    assert again.cross_entropy.isnan().all()  # ridge gives no probabilities


@pytest.mark.kernels
@pytest.mark.parametrize("probe", [SoftmaxProbe((1e-2, 1e-1), tolerance=1e-5), RidgeProbe()])
def test_rows_that_exceed_memory_are_streamed_with_the_same_result(
    probe: SoftmaxProbe | RidgeProbe,
) -> None:
    net, examples, labels = planted(n=80)
    method = replace(QUICK, probe=probe, reduction=Flat(), description_length=True)
    whole = method(store(), net, examples, labels)
    streamed = replace(method, memory_bytes=1)(store(), net, examples, labels)
    by_layer = replace(method, memory_bytes=4 * 32 * 80)(store(), net, examples, labels)
    for other in (streamed, by_layer):
        assert torch.equal(other.error, whole.error)
        assert torch.equal(other.penalty, whole.penalty)
        torch.testing.assert_close(other.cross_entropy, whole.cross_entropy, rtol=1e-3, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(other.bits, whole.bits, rtol=1e-3, atol=1e-2, equal_nan=True)


def test_a_group_is_on_one_side_only_and_every_side_holds_every_class() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    groups = [f"person {i}" for i in torch.randint(30, (300,), generator=generator).tolist()]
    split = draw_split(labels, groups, validation=0.2, test=0.3, seed=0)
    sides = [{groups[i] for i in side} for side in (split.train, split.validation, split.test)]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert len(set.union(*sides)) == len(set(groups))
    for side in (split.train, split.validation, split.test):
        assert set(labels[side].tolist()) == {0, 1, 2}
    assert len(split.test) == pytest.approx(90, abs=15)
    other = draw_split(labels, groups, validation=0.2, test=0.3, seed=1)
    assert not torch.equal(split.test.sort()[0], other.test.sort()[0])


@pytest.mark.kernels
def test_groups_that_give_the_label_away_help_only_a_probe_that_ignores_them() -> None:
    """Each person has a face of their own and a random label: nothing can be read of persons never seen."""
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(240) % 24
    labels = torch.randint(2, (24,), generator=generator)[person]
    faces = 3 * torch.randn(24, 2, 4, 4, generator=generator)
    images = faces[person] + 0.1 * nets.images(240, 2, 4)
    net, _, _ = planted()
    method = replace(QUICK, reduction=Flat())
    naive = method(store(), net, TensorExamples(images), labels)
    honest = method(store(), net, TensorExamples(images), labels, groups=[str(p) for p in person])
    assert float(naive.error[0]) < 0.05
    assert float(honest.high[0]) > 0.4
    assert honest.groups < naive.groups == 72
    assert float(honest.high[0] - honest.low[0]) > float(naive.high[0] - naive.low[0])


def test_control_labels_follow_types_and_are_learnt_where_types_can_be_told() -> None:
    kinds = torch.arange(200) % 8
    labels = (kinds >= 4).long()
    control = control_labels(labels, [str(k) for k in kinds], seed=0)
    assert all(len(set(control[kinds == k].tolist())) == 1 for k in range(8))
    plain = control_labels(labels, None, seed=0)
    assert plain.bincount().tolist() == labels.bincount().tolist()
    images = torch.eye(8)[kinds][:, :, None, None] + 0.01 * nets.images(200, 8, 1)
    net = nets.seeded(nn.Sequential(nn.Conv2d(8, 8, 1)))
    method = replace(QUICK, seed=3)
    found = method(store(), net, TensorExamples(images), labels, types=[str(k) for k in kinds])
    assert found.control_error[0] < 0.05  # one-hot features learn any labels of types
    assert found.selectivity[0] < 0.05
    assert found.typed
    untyped = method(store(), net, TensorExamples(images), labels)
    assert untyped.selectivity[0] > 0.3
    assert any("random labels for every example" in note for note in untyped.sentences())


def test_the_majority_baseline_and_the_uniform_code_are_what_no_features_give() -> None:
    net, examples, _ = planted()
    labels = torch.tensor([0, 0, 1] * 80)
    found = LayerProbes(untrained=False)(store(), net, examples, labels)
    assert found.majority_error == pytest.approx(1 / 3, abs=0.02)
    assert found.uniform_bits == found.examples[0]


def test_a_result_is_saved_loaded_shown_and_drawn(tmp_path: Path) -> None:
    net, examples, labels = planted()
    result = LayerProbes()(store(), net, examples, labels)
    loaded = ProbeResult.load(result.save(tmp_path))
    assert torch.equal(loaded.error, result.error)
    assert rebuild(loaded.provenance.method) == LayerProbes()
    table = loaded.to_pandas()
    assert list(table.layer) == [INPUT, "keep", "lose"]
    assert np.isnan(table.step_p_holm[0])
    assert table.gap.tolist() == (result.error - result.train_error).tolist()
    axes = loaded.plot()
    assert [t.get_text() for t in axes.get_xticklabels()] == list(loaded.layers)
    labelled = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labelled == ["trained", "random weights", "control task", "majority class"]
    html = replace(loaded, layers=("<b>", "keep", "lose"))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<td><b>" not in html
    assert "independent" in html


def test_a_fit_that_stops_early_is_said_to() -> None:
    net, examples, labels = planted()
    method = replace(QUICK, probe=SoftmaxProbe((1e-4,), max_steps=1))
    found = method(store(), net, examples, labels)
    assert not any(found.converged)
    assert "stopped short of its optimum" in found.sentences()[0]


def test_each_setting_changes_the_result() -> None:
    net, examples, labels = planted(n=120)
    noisy = labels.clone()
    noisy[::7] = 1 - noisy[::7]

    def numbers(method: LayerProbes) -> list[object]:
        found = method(store(), net, examples, noisy)
        cells = (
            found.error,
            found.low,
            found.penalty,
            found.control_error,
            found.bits,
            found.features,
            found.untrained_error,
        )
        return [found.layers, found.examples, *(c.nan_to_num(-1).tolist() for c in cells)]

    base = replace(QUICK, reduction=Grid(2))
    changes: dict[str, object] = {
        "layers": "keep",
        "probe": SoftmaxProbe((1.0,)),
        "reduction": GlobalAverage(),
        "inputs": False,
        "validation": 0.3,
        "test": 0.2,
        "controls": 0,
        "untrained": True,
        "description_length": True,
        "level": 0.5,
        "seed": 1,
    }
    plain = numbers(base)
    for name, value in changes.items():
        assert numbers(replace(base, **{name: value})) != plain, name
    small = replace(base, max_features=4, oversized=RandomSubset(3))
    assert numbers(small) != plain


def test_reductions_give_as_many_features_as_they_say() -> None:
    outputs = {3: torch.randn(2, 7, 5), 4: torch.randn(2, 6, 5, 3), 2: torch.randn(2, 9)}
    for reduction in (GlobalAverage(), Grid(1), Grid(2), Flat(), RandomSubset(8), RandomProjection(8)):
        for values in outputs.values():
            found = reduction(values)
            assert found.shape == (2, reduction.size(tuple(values.shape[1:])))
    maps = outputs[4]
    torch.testing.assert_close(GlobalAverage()(maps), maps.mean((2, 3)))
    torch.testing.assert_close(GlobalAverage()(outputs[3]), outputs[3].mean(1))
    torch.testing.assert_close(Grid(1)(maps), maps.mean((2, 3)))
    torch.testing.assert_close(Grid(1)(outputs[3]), outputs[3].mean(1))
    assert torch.equal(RandomSubset(4, seed=1)(maps), RandomSubset(4, seed=1)(maps))
    assert not torch.equal(RandomSubset(4, seed=1)(maps), RandomSubset(4, seed=2)(maps))


def test_a_projection_keeps_lengths_on_average() -> None:
    rows = torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    found = RandomProjection(1000)(rows)
    ratio = found.square().sum(1) / rows.square().sum(1)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)
    assert not torch.equal(found, RandomProjection(1000, seed=1)(rows))
    assert not torch.equal(found, RandomProjection(1000, copies=2)(rows))


def test_random_weights_replace_every_weight_and_leave_the_model() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((1, 1, 8), 2.0) + torch.randn(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.norm = nn.BatchNorm1d(8)
            self.head = nn.Linear(8, 2)

    net = Attends()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
        assert net.norm.running_mean is not None
        net.norm.running_mean.add_(3)
    before = copy.deepcopy(net.state_dict())
    bare = untrained_copy(net, seed=0)
    for name, value in bare.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert torch.equal(bare.get_buffer("norm.running_mean"), torch.zeros(8))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    same, other = untrained_copy(net, seed=0), untrained_copy(net, seed=1)
    assert torch.equal(same.get_parameter("token"), bare.get_parameter("token"))
    assert not torch.equal(other.get_parameter("token"), bare.get_parameter("token"))
    with pytest.raises(UntrainedError, match="ReLU has no weights"):
        untrained_copy(nn.ReLU())


@pytest.mark.kernels
def test_snapshots_are_probed_while_a_network_trains(tmp_path: Path) -> None:
    drawn = shapes(240, seed=0)
    net = small_cnn().train()
    probes = TrainingProbes(replace(QUICK, layers=BLOCKS, controls=0), store(), TensorExamples(drawn.images), drawn.labels)
    for moment, loss in enumerate((1.2, 0.7)):  # chance is a loss of 1.39
        probes(net, moment)
        assert net.training
        train(net, drawn.images, drawn.labels, below=loss)
        net.train()
    probes(net, 2)
    history = ProbeHistory.load(probes.history().save(tmp_path))
    assert history.moments == (0, 1, 2)
    last, first = history.results[2], history.results[0]
    assert float(last.error[-1]) < float(first.error[-1]) - 0.1
    assert torch.equal(first.error[:1], last.error[:1])  # the input does not train
    assert len(history.to_pandas()) == 3 * 6
    assert len(history.plot().get_lines()) == 4
    assert "moment" in history._repr_html_()
    with pytest.raises(ValueError, match="no snapshot was probed yet"):
        TrainingProbes(QUICK, store(), TensorExamples(drawn.images), drawn.labels).history()


def test_globs_leave_out_what_returns_no_features_and_paths_are_told() -> None:
    net = nets.seeded(nets.SharedReluNet())
    examples, labels = TensorExamples(torch.randn(60, 4)), [i % 2 for i in range(60)]
    found = QUICK(store(), net, examples, labels)
    assert found.layers == (INPUT, "first", "second")  # relu runs twice
    named = replace(QUICK, layers=("relu:1",))(store(), net, examples, labels)
    assert named.layers == (INPUT, "relu:1")
    with pytest.raises(LayerCallError):
        replace(QUICK, layers=("relu",))(store(), net, examples, labels)
    with pytest.raises(LayerNotFoundError, match="has no layer 'secnd'"):
        replace(QUICK, layers=("secnd",))(store(), net, examples, labels)
    with pytest.raises(LayerNotFoundError, match=r"'re\*' matches, none runs once"):
        replace(QUICK, layers="re*")(store(), net, examples, labels)
    twice = nn.ReLU()
    with pytest.raises(ProbeLayerError, match="no layer of Sequential without layers inside runs"):
        QUICK(store(), nn.Sequential(nn.Sequential(twice, twice)), examples, labels)
    pair = nets.seeded(nets.TupleNet())
    with pytest.raises(ProbeLayerError, match="'split' returns tuple, and a probe needs a tensor"):
        replace(QUICK, layers=("split",))(store(), pair, examples, labels)


def test_a_layer_of_a_million_features_is_refused_with_its_size_or_reduced() -> None:
    net = nn.Sequential(nn.Conv2d(1, 100, 1)).eval()
    examples, labels = TensorExamples(nets.images(12, 1, 100)), [i % 2 for i in range(12)]
    method = replace(QUICK, reduction=Flat(), inputs=False)
    with pytest.raises(FeatureSizeError, match=r"'0' gives 1,000,000 features.*0\.0 GB for 12"):
        method(store(), net, examples, labels)
    found = replace(method, oversized=RandomProjection(50))(store(), net, examples, labels)
    assert found.features.tolist() == [50]
    assert found.reductions == (str(RandomProjection(50)),)


def test_labels_and_groups_that_allow_no_probe_are_refused() -> None:
    net, examples, labels = planted(n=40)
    with pytest.raises(SplitError, match="39 labels for 40 examples"):
        QUICK(store(), net, examples, labels[:-1])
    with pytest.raises(SplitError, match=r"two classes or more, got 40 of \['7'\]"):
        QUICK(store(), net, examples, [7] * 40)
    with pytest.raises(SplitError, match="'rare' occurs in 2 examples, and three are needed"):
        QUICK(store(), net, examples, ["common"] * 38 + ["rare"] * 2)
    with pytest.raises(SplitError, match="occurs in 1 examples, and three are needed"):
        QUICK(store(), net, examples, list(range(40)))
    with pytest.raises(SplitError, match="occurs in 1 groups, and three are needed"):
        QUICK(store(), net, examples, labels, groups=[f"person {int(k)}" for k in labels])
    with pytest.raises(SplitError, match="3 groups for 40 examples"):
        QUICK(store(), net, examples, labels, groups=["a", "b", "c"])
    with pytest.raises(ValueError, match="2 types for 40 examples"):
        QUICK(store(), net, examples, labels, types=["a", "b"])
    with pytest.raises(SplitError, match="1 labels are missing or NaN, the first at 3"):
        encode([0.0, 1.0, 1.0, float("nan")], 4)
    with pytest.raises(SplitError, match="shares above 0 that leave a share to fit on"):
        replace(QUICK, test=0.9)(store(), net, examples, labels)
    with pytest.raises(SplitError, match="must not share examples"):
        Split(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2]))
    with pytest.raises(SplitError, match="the test side of a split is empty"):
        Split(torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([], dtype=torch.long))


def test_groups_whose_classes_cannot_be_spread_are_refused() -> None:
    # Three groups hold everything, but one of them all of the last class's spread.
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 2, 2, 2])
    groups = ["a", "a", "b", "b", "c", "c", "a", "a", "b"]
    with pytest.raises(SplitError, match="occurs in 2 groups"):
        draw_split(labels, groups, validation=0.3, test=0.3, seed=0)


def test_a_layer_whose_features_are_constant_is_refused() -> None:
    net, examples, labels = planted(n=40)
    with torch.no_grad():
        net.get_submodule("lose").weight.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(DegenerateRowsError, match="2 features that are all constant"):
        QUICK(store(), net, examples, labels)


def test_a_split_of_ones_own_is_kept() -> None:
    net, examples, labels = planted(n=60)
    split = Split(torch.arange(0, 30), torch.arange(30, 40), torch.arange(40, 60))
    found = QUICK(store(), net, examples, labels, split=split)
    assert found.examples == (30, 10, 20)


def test_a_share_has_an_interval_also_where_nothing_was_wrong() -> None:
    hits = torch.zeros(40, 2)
    hits[:10, 1] = 1
    own = clustered_share(hits, torch.arange(40), 0.95)
    q = 2.0226909  # Student's t with 39 degrees of freedom
    assert float(own.low[0]) == 0
    assert float(own.high[0]) == pytest.approx(q**2 / (40 + q**2), rel=1e-5)
    clusters = clustered_share(hits, torch.arange(40) // 10, 0.95)  # each all right or all wrong
    assert float(clusters.high[1] - clusters.low[1]) > 2 * float(own.high[1] - own.low[1])
    assert bool(((clusters.low >= 0) & (clusters.high <= 1)).all())


def test_small_fits_run_one_thread_each_and_the_setting_is_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = side_by_side(lambda i: (i, torch.get_num_threads()), [1, 2, 3])
        assert seen == [(1, 1), (2, 1), (3, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
