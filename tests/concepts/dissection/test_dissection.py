"""Network dissection's numbers: closed forms, a slow reference, and the oracles ND-1 to ND-10 of the specification."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from dissection_nets import blobs, given_units, named, scenes_of, slow_counts, slow_upsampled
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from concepts.data.segmentation import Scenes, Vocabulary
from concepts.dissection import kernels, two_passes
from concepts.dissection.dissection import Dissection
from concepts.dissection.permutation_null import NullTally
from concepts.dissection.protocols import LITE, PAPER, PNAS, PROTOCOLS, DissectionError, Protocol
from concepts.dissection.result import DissectionResult
from concepts.dissection.rotation import Rotation, haar, power
from concepts.dissection.soft_scores import average_precision
from concepts.dissection.tally import Tally
from concepts.dissection.unit_masks import Upsampling
from probing.models.geometry import Geometry, Layout
from probing.statistics.kernels import compiled
from probing.statistics.streaming import UpperQuantile
from probing.store.launchers import Local, SlurmArray, Work
from probing.store.shares import Share
from probing.store.store import ActivationStore

QUIET = Dissection(("units",), draws=0)


def dissected(scenes: Scenes, method: Dissection = QUIET) -> DissectionResult:
    units = scenes.examples.load([0]).shape[1]
    return method(ActivationStore(progress=False), given_units(units), scenes)


def random_masks(n: int, fractions: list[float], size: int, seed: int = 0) -> Tensor:
    """Return [n, concepts, size, size] masks that cover exactly the shares asked for."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((len(fractions), n * size * size), dtype=bool)
    for mask, fraction in zip(masks, fractions, strict=True):
        mask[rng.permutation(masks.shape[1])[: round(fraction * masks.shape[1])]] = True
    return torch.from_numpy(masks).reshape(-1, n, size, size).transpose(0, 1)


def as_planes(masks: Tensor) -> Tensor:
    return masks.long() * torch.arange(1, masks.shape[1] + 1)[:, None, None]


def test_nd_1_a_unit_that_is_a_mask_has_the_iou_of_its_area() -> None:
    masks = random_masks(10, [0.005, 0.01, 0.05], 20)
    generator = torch.Generator().manual_seed(1)
    maps = masks * (1 + torch.rand(masks.shape, generator=generator))
    found = dissected(scenes_of(maps, as_planes(masks), named(3)))
    assert found.iou.diag().tolist() == pytest.approx([1, 0.5, 0.1], abs=1e-12)
    assert found.best.tolist() == [0, 1, 2]
    # The ceiling says so beforehand, from areas alone.
    assert found.ceiling.diag().tolist() == pytest.approx([1, 0.5, 0.1], abs=1e-12)


def test_nd_2_a_binary_unit_is_flagged_where_its_threshold_cuts_nothing_off() -> None:
    masks = random_masks(10, [0.01, 0.004], 20)
    found = dissected(scenes_of(masks.float(), as_planes(masks), named(2)))
    assert found.threshold.tolist() == [1, 0]
    assert found.iou.diag().tolist() == [0, 1]
    assert found.binary.tolist() == [True, True]
    assert found.degenerate.tolist() == [True, False]
    assert found.inactive.tolist() == [False, True]
    said = " ".join(found.sentences())
    assert "2 of 2 units have two values only" in said
    assert "1 of 2 units never exceed their threshold" in said


def test_nd_3_the_threshold_of_a_permutation_is_exact_for_every_chunking() -> None:
    values = torch.from_numpy(np.random.default_rng(0).permutation(1000)).float().reshape(10, 1, 100)
    for chunk in (1, 3, 10):
        quantile = UpperQuantile(0.005, 1000)
        for part in values.split(chunk):
            quantile.add(part)
        found = quantile.value()
        assert (found.threshold.item(), found.above.item()) == (994, 5)


def test_nd_4_iou_is_of_the_data_set_and_no_mean_over_images() -> None:
    maps, planes = torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3, dtype=torch.long)
    maps[0, 0, 0, 0], planes[0, 0, 0, 0] = 9, 1  # shared 1 of 1
    maps[1, 0, 0], planes[1, 0, 1:] = 1, 1  # shared 0 of 9
    quarter = Dissection(("units",), protocol=Protocol(0.23), draws=0)
    assert dissected(scenes_of(maps, planes, named(1)), quarter).iou.item() == pytest.approx(0.1)


def test_nd_5_images_without_the_category_change_nothing_in_the_paper_s_protocol() -> None:
    words = Vocabulary(("cat", "beach"), ("object", "scene"))
    maps = blobs(12, 4, 8, seed=0)
    planes = (blobs(12, 1, 8, seed=1) > 0.5).long()
    planes[6:] = 0
    limits = UpperQuantile(0.1, 12 * 64)
    limits.add(maps)
    thresholds = limits.value().threshold
    scenes = scenes_of(maps, planes, words, [()] * 6 + [(2,)] * 6)
    upsampling = Upsampling.of(layout_of(given_units(4), "units", maps), (8, 8), PAPER)
    found = {}
    for images in (6, 12):
        for union in ("category", "all"):
            tally = Tally(4, words, union)
            for i in range(images):
                tally.add(upsampling.active(maps[i], thresholds), scenes.labels(i))
            found[images, union] = tally.value().iou[:, 0]
    assert torch.equal(found[6, "category"], found[12, "category"])
    assert not torch.equal(found[6, "all"], found[12, "all"])


def layout_of(net: nn.Module, layer: str, inputs: Tensor) -> Layout:
    return Layout.of(net, inputs, layer)


@pytest.mark.parametrize(
    ("make", "layer", "stride", "start"),
    [
        (lambda: torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"]), "28", 16, 7.5),
        (lambda: torchvision.models.resnet18(weights=None), "layer4", 32, 0),
        (lambda: torchvision.models.alexnet(weights=None).features, "10", 16, 15),
    ],
    ids=["VGG-16 conv5_3", "ResNet-18 layer4", "AlexNet conv5"],
)
def test_nd_6_cells_lie_at_the_centres_of_their_receptive_fields(
    make: object, layer: str, stride: float, start: float
) -> None:
    assert callable(make)
    found = layout_of(make().eval(), layer, torch.zeros(1, 3, 224, 224)).geometry
    assert (found.stride, found.start) == ((stride, stride), (start, start))
    assert found.anchor == "receptive field"


def test_nd_6_a_ramp_through_a_strided_average_comes_back_in_the_interior() -> None:
    net = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2, padding=1)).eval()
    ramp = (torch.arange(16.0)[:, None] + 3 * torch.arange(16.0)).expand(1, 1, 16, 16)
    upsampling = Upsampling.of(layout_of(net, "0", ramp), (16, 16), PAPER)
    back = upsampling.full(net[0](ramp))
    assert torch.allclose(back[..., 1:-1, 1:-1], ramp[..., 1:-1, 1:-1].double(), atol=1e-12)


def test_nd_7_rotations_are_rotations_and_their_shares_add_up() -> None:
    for size in (2, 7, 16):
        whole = haar(size, seed=3)
        assert torch.linalg.det(whole) == pytest.approx(1, abs=1e-10)
        assert (whole @ whole.T - torch.eye(size)).abs().max() < 1e-12
        assert (power(whole, 0.0) - torch.eye(size)).abs().max() < 1e-12
        assert (power(whole, 0.3) @ power(whole, 0.7) - whole).abs().max() < 1e-12
    assert torch.equal(Rotation(1.0, 5).matrix(6), Rotation(1.0, 5).matrix(6))
    assert not torch.equal(Rotation(1.0, 5).matrix(6), Rotation(1.0, 6).matrix(6))
    # Haar: the mean of many is zero in every place.
    mean = torch.stack([haar(3, seed) for seed in range(600)]).mean(0)
    assert mean.abs().max() < 4 / (3 * 600) ** 0.5


def mixed_scenes(n: int = 9, size: int = 12) -> Scenes:
    """Return four units and five concepts of three categories, on two planes and on whole images."""
    words = Vocabulary(("a", "b", "c", "d", "e"), ("object", "object", "part", "scene", "scene"))
    first = (blobs(n, 1, size, seed=1) > 0.3).long() + (blobs(n, 1, size, seed=2) > 1.0).long()
    second = 3 * (blobs(n, 1, size, seed=3) > 0.2).long()
    first[0], second[1] = 0, 0
    whole = [(), (4,), (5,), (4, 5), (), (4,), (4,), (5,), ()][:n]
    return scenes_of(blobs(n, 4, 6, seed=4), torch.cat([first, second], 1), words, whole, (size, size))


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_counts_equal_the_slow_reference_in_every_cell(name: str) -> None:
    scenes, protocol = mixed_scenes(), PROTOCOLS[name]
    maps = scenes.examples.load(range(9))
    q = Protocol(0.1, protocol.threshold, protocol.anchors, protocol.border, protocol.union)
    found = dissected(scenes, Dissection(("units",), protocol=q, draws=0))
    geometry = Geometry((6, 6), (0.0, 0.0), (1.0, 1.0))
    if protocol.anchors == "tiles":
        geometry = Geometry.tiles((6, 6), (6, 6))
    if protocol.border == "zero":
        ringed = nn.functional.pad(maps, (1, 1, 1, 1))
        geometry = Geometry(geometry.size, (geometry.start[0] - 1, geometry.start[1] - 1), geometry.stride)
        full = np.stack([slow_upsampled(m, geometry, (12, 12)) for m in ringed])
    else:
        full = np.stack([slow_upsampled(m, geometry, (12, 12)) for m in maps])
    if protocol.threshold == "upsampled":
        limits = np.sort(full.transpose(1, 0, 2, 3).reshape(4, -1))[:, -(9 * 144 // 10) - 1]
        assert found.threshold.numpy() == pytest.approx(limits, rel=1e-12)
    masks = full > found.threshold.numpy()[:, None, None]
    shared, area, label_area = slow_counts(list(masks), scenes, protocol.union)
    assert shared.sum() > 100
    assert np.array_equal(found.shared.numpy(), shared)
    assert np.array_equal(found.unit_area.numpy(), area)
    assert np.array_equal(found.label_area.numpy(), label_area)


def shards(scenes: Scenes, size: int) -> list[Tally]:
    maps = scenes.examples.load(range(len(scenes)))
    upsampling = Upsampling.of(layout_of(given_units(4), "units", maps), (12, 12), PAPER)
    found = []
    for start in range(0, len(scenes), size):
        tally = Tally(4, scenes.vocabulary, "touched")
        for i in range(start, min(start + size, len(scenes))):
            tally.add(upsampling.active(maps[i], torch.full((4,), 0.8)), scenes.labels(i))
        found.append(tally)
    return found


def test_nd_8_shards_of_any_size_merged_in_any_order_are_equal_to_the_bit() -> None:
    scenes = mixed_scenes()
    [whole] = shards(scenes, 9)
    for size in (1, 2, 4):
        for order in (1, -1):
            first, *rest = shards(scenes, size)[::order]
            for other in rest:
                first.merge(other)
            for name in ("shared", "unit_area", "label_area", "cells"):
                assert torch.equal(getattr(first.value(), name), getattr(whole.value(), name))


def test_nd_9_a_unit_of_noise_has_the_chance_level() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(40, 200, 16, 16, generator=generator)
    masks = random_masks(40, [0.05, 0.02], 16)
    method = Dissection(("units",), protocol=Protocol(0.02), draws=0)
    found = dissected(scenes_of(maps, as_planes(masks), named(2)), method)
    for concept, share in enumerate((0.05, 0.02)):
        iou = found.iou[:, concept]
        expected = 0.02 * share / (0.02 + share - 0.02 * share)
        assert found.chance[0, concept] == pytest.approx(expected, rel=1e-2)
        assert abs(iou.mean() - expected) < 3 * iou.std() / len(iou) ** 0.5 + 2e-4


def test_nd_10_the_worked_example_under_the_three_protocols() -> None:
    maps = torch.tensor([[[9.0, 1], [2, 3]], [[4, 5], [6, 8]], [[0, 0], [0, 7]]])[:, None]
    planes = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]])[:, None]
    scenes = scenes_of(maps, planes, named(1))
    for protocol, iou in ((PAPER, 1 / 4), (LITE, 1 / 3), (PNAS, 1 / 5)):
        quarter = Protocol(0.25, protocol.threshold, protocol.anchors, protocol.border, protocol.union)
        found = dissected(scenes, Dissection(("units",), protocol=quarter, draws=0))
        assert found.threshold.item() == 6
        assert found.iou.item() == pytest.approx(iou)


def test_every_setting_of_a_protocol_changes_the_numbers() -> None:
    scenes, net = mixed_scenes(), given_units(4)
    net.units = nn.AvgPool2d(3, stride=2, padding=1).eval()  # its cells do not tile the input
    settings = [
        Protocol(0.1),
        Protocol(0.2),
        Protocol(0.1, threshold="upsampled"),
        Protocol(0.1, anchors="tiles"),
        Protocol(0.1, border="zero"),
        Protocol(0.1, union="touched"),
        Protocol(0.1, union="all"),
    ]
    store = ActivationStore(progress=False)
    found = [Dissection(("units",), protocol=p, draws=0)(store, net, scenes).iou for p in settings]
    for setting, iou in zip(settings[1:], found[1:], strict=True):
        assert not torch.equal(iou, found[0]), setting


def test_compiled_loops_do_what_their_python_says() -> None:
    scenes = mixed_scenes(3)
    maps = scenes.examples.load(range(3))
    upsampling = Upsampling.of(layout_of(given_units(4), "units", maps), (12, 12), PAPER)
    rows, columns = upsampling.rows, upsampling.columns
    limits = torch.tensor([0.5, -9.0, 99.0, float(maps[0, 3, 2, 2])], dtype=torch.float64)
    for one in maps:
        fast = upsampling.active(one, limits)
        starts, cells = np.empty(5, dtype=np.int64), np.empty(1000, dtype=np.int32)
        found = kernels.find_active(
            one.numpy(),
            limits.numpy(),
            rows.cell,
            rows.weight,
            columns.weight,
            columns.first,
            starts,
            cells,
        )
        assert np.array_equal(fast.starts, starts)
        assert np.array_equal(fast.cells, cells[:found])
        assert fast.area.tolist()[1:3] == [144, 0]
        elsewhere = upsampling._active_on_device(one, limits)  # what an accelerator runs
        assert np.array_equal(fast.starts, elsewhere.starts)
        assert np.array_equal(fast.cells, elsewhere.cells)
    labels = scenes.labels(2)
    place, at = (
        np.array([-1, 0, 1, -1, -1, -1]),
        (rows.cell, rows.weight, columns.cell, columns.weight),
    )
    projected = [np.zeros((2, 6, 6)) for _ in range(2)]
    kernels.project(labels.planes, place, *at, projected[0])
    compiled(kernels.project)(labels.planes, place, *at, projected[1])
    assert projected[0] == pytest.approx(projected[1], abs=1e-12)
    assert projected[0].sum() == pytest.approx(np.isin(labels.planes, [1, 2]).sum())


def test_a_plateau_at_the_threshold_never_rises_above_it() -> None:
    maps = torch.full((1, 5, 7), 0.1)
    maps[0, 0, 0] = 0.3
    layout = Layout("channels_first", (5, 7), Geometry((50, 70), (3.3, 4.7), (9.1, 8.3)))
    masks = Upsampling.of(layout, (33, 44), PAPER).active(maps, torch.tensor([0.1]))
    assert 0 < masks.area[0] < 33 * 44 / 8


@pytest.mark.parametrize("union", ["category", "touched", "all"])
def test_the_null_counts_units_with_the_labels_of_other_images(union: str) -> None:
    scenes = mixed_scenes()
    maps = scenes.examples.load(range(9))
    upsampling = Upsampling.of(layout_of(given_units(4), "units", maps), (12, 12), PAPER)
    masks = [upsampling.active(one, torch.full((4,), 0.8)) for one in maps]
    labels = [scenes.labels(i) for i in range(9)]
    orders = np.stack([np.roll(np.arange(9), k) for k in (0, 2, 5)])
    null = NullTally(4, scenes.vocabulary, union, 3)
    null.add(masks[:5], labels[:5], np.stack([np.arange(5), np.roll(np.arange(5), 2), np.arange(5)]))
    whole = NullTally(4, scenes.vocabulary, union, 3)
    whole.add(masks, labels, orders)
    for draw, order in enumerate(orders):
        tally = Tally(4, scenes.vocabulary, union)
        for i in range(9):
            tally.add(masks[i], labels[order[i]])
        values, concepts = whole.best(tally.value())
        assert torch.equal(values[draw], tally.value().iou.max(1).values)
        assert torch.equal(concepts[draw], tally.value().iou.max(1).indices)


def test_correlation_is_that_of_upsampled_maps_with_masks() -> None:
    scenes = mixed_scenes()
    maps = scenes.examples.load(range(9))
    found = dissected(scenes)
    geometry = Geometry((6, 6), (0.0, 0.0), (1.0, 1.0))
    full = np.stack([slow_upsampled(m, geometry, (12, 12)) for m in maps])
    labels = [scenes.labels(i) for i in range(9)]
    counted = {"object": [i for i in range(9) if i != 0], "part": [i for i in range(9) if i != 1]}
    counted["object"] = [i for i in range(9) if np.isin(labels[i].planes, [1, 2]).any()]
    counted["part"] = [i for i in range(9) if (labels[i].planes == 3).any()]
    counted["scene"] = [i for i in range(9) if labels[i].whole]
    for c, kind in enumerate(scenes.vocabulary.categories):
        rows = counted[kind]
        mask = [(labels[i].planes == c + 1).any(0) | (c + 1 in labels[i].whole) for i in rows]
        for u in range(4):
            expected = np.corrcoef(full[rows, u].ravel(), np.stack(mask).ravel())[0, 1]
            assert float(found.correlation[u, c]) == pytest.approx(expected, abs=1e-9)


def test_average_precision_is_scikit_learn_s_with_ties_too() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 4, generator=generator)
    scores[:, 2:] = (scores[:, 2:] * 2).round().clamp(min=0)
    shown = torch.rand(50, 3, generator=generator) < torch.tensor([0.5, 0.1, 0.0])
    found = average_precision(scores, shown)
    for u in range(4):
        for c in range(2):
            expected = average_precision_score(shown[:, c], scores[:, u])
            assert float(found[u, c]) == pytest.approx(expected, abs=1e-12)
    assert found[:, 2].isnan().all()


def test_streaming_equals_all_at_once_and_a_second_analysis_passes_nothing(tmp_path: Path) -> None:
    scenes, net = mixed_scenes(), given_units(4)
    method = Dissection(("units",), protocol=Protocol(0.1), draws=9)
    whole = ActivationStore(progress=False)
    found = method(whole, net, scenes)
    assert whole.stats.forward_rows == 9
    store = ActivationStore(tmp_path, batch_size=2, progress=False)
    streamed = method(store, net, scenes)
    assert store.stats.forward_rows == 9  # the second sweep read what the first had stored
    method(ActivationStore(tmp_path, progress=False), net, scenes)
    again = ActivationStore(tmp_path, progress=False)
    Dissection(("units",), protocol=PNAS, draws=0)(again, net, scenes)
    assert again.stats.forward_rows == 0
    for name in ("shared", "unit_area", "label_area", "threshold", "top_images", "p", "held_out"):
        assert torch.equal(getattr(found, name), getattr(streamed, name)), name
    assert torch.allclose(found.correlation, streamed.correlation, atol=1e-12, equal_nan=True)


def test_counts_left_by_shares_make_the_result_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_passes, "BLOCK", 3)
    scenes, net = mixed_scenes(), given_units(4)
    method = Dissection(("units",), protocol=Protocol(0.1), draws=9)
    single = method(ActivationStore(progress=False), net, scenes)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for run in range(2):  # thresholds, then counts
        for task in "10":
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
            assert method.in_shares(SlurmArray(), tmp_path, net, scenes) is None, run
    monkeypatch.setattr(two_passes.Passes, "second", lambda *_: pytest.fail("counted already"))
    found = method.in_shares(Local(), tmp_path, net, scenes)
    assert found is not None
    assert found.provenance.examples == single.provenance.examples
    for name in (
        "shared",
        "unit_area",
        "label_area",
        "threshold",
        "top_images",
        "p",
        "held_out",
        "auprc",
    ):
        assert torch.equal(getattr(found, name).nan_to_num(), getattr(single, name).nan_to_num()), name
    assert torch.allclose(found.correlation, single.correlation, atol=1e-12, equal_nan=True)

    monkeypatch.setattr(two_passes, "_labels_id", lambda _: "0" * 32)
    with pytest.raises(DissectionError, match="image 0 has other labels than when its share was"):
        method.in_shares(Local(), tmp_path, net, scenes)


def test_more_shares_than_blocks_leave_the_last_without_work(tmp_path: Path) -> None:
    scenes, net = mixed_scenes(), given_units(4)
    method = Dissection(("units",), protocol=Protocol(0.1), draws=0)
    single = method(ActivationStore(progress=False), net, scenes)
    found = method.in_shares(_Three(), tmp_path, net, scenes)
    assert found is not None
    assert torch.equal(found.shared, single.shared)
    assert torch.equal(found.threshold, single.threshold)


class _Three:
    """An engine of three shares, done one after the other."""

    def leads(self) -> bool:
        return True

    def run(self, work: Work) -> bool:
        for index in range(3):
            work(Share(index, 3))
        return True
