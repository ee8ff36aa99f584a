"""Dissection finds what is planted, calls little else, and says what can't be dissected."""

import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dissection_nets import blobs, given_units, named, scenes_of
from test_dissection import as_planes, dissected, mixed_scenes, random_masks
from torch import Tensor, nn

from concepts.data.segmentation import LabelError, Scenes, TensorLabels, Vocabulary
from concepts.dissection.ablation import Ablation, AblationError
from concepts.dissection.dissection import Dissection
from concepts.dissection.label_tests import Judged
from concepts.dissection.protocols import DissectionError, Protocol
from concepts.dissection.result import DissectionResult
from concepts.dissection.rotation import Rotation
from concepts.dissection.tally import Counts
from concepts.dissection.two_passes import halves
from probing.data.examples import TensorExamples
from probing.models.geometry import RefusedError
from probing.models.layers import LayerNotFoundError
from probing.results.result import rebuild
from probing.store.store import ActivationStore


def toy(noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return 64 units that each hold the mask of a concept of their own, of the area q, in 50 images; and the masks."""
    masks = random_masks(50, [0.005] * 64, 20, seed=3)
    generator = torch.Generator().manual_seed(4)
    return masks + noise * torch.randn(masks.shape, generator=generator), masks


def unique(result: DissectionResult, least: float) -> int:
    return sum(result.detectors_by_category("units", min_iou=least).values())


def explained(maps: Tensor, masks: Tensor) -> Tensor:
    """Return how much of each mask's variance a linear readout of the units explains."""
    x = maps.transpose(0, 1).flatten(1).double()
    y = masks.transpose(0, 1).flatten(1).double()
    x = torch.cat([x, torch.ones(1, x.shape[1])])
    residual = y - (y @ x.T) @ torch.linalg.inv(x @ x.T) @ x
    return 1 - residual.var(1) / y.var(1)


def test_rotation_destroys_detectors_and_not_what_can_be_read() -> None:
    maps, masks = toy()
    scenes = scenes_of(maps, as_planes(masks), named(64))
    found = {
        alpha: dissected(scenes, Dissection(("units",), rotation=Rotation(alpha, seed=0), draws=0)) for alpha in (0.0, 1.0)
    }
    assert unique(found[0.0], 0.5) == 64
    assert unique(found[1.0], 0.5) <= 16  # 8 in the specification's run
    assert 0.2 < found[1.0].best_iou.mean() < 0.4
    assert found[0.0].best_iou.mean() > 0.9
    turned = (Rotation(1.0, seed=0).matrix(64).float() @ maps.flatten(2)).reshape(maps.shape)
    assert torch.allclose(explained(maps, masks), explained(turned, masks), atol=1e-6)


def test_a_planted_unit_is_significant_and_units_of_noise_are_not() -> None:
    n = 40
    labels = (blobs(n, 1, 16, seed=0) > 1.5).long()
    maps = blobs(n, 12, 16, seed=1)
    maps[:, 3] = labels[:, 0] + 0.1 * maps[:, 3]
    share = float(labels.float().mean())
    method = Dissection(("units",), protocol=Protocol(share), draws=299, seed=1)
    found = dissected(scenes_of(maps, labels, named(1)), method)
    assert found.best_iou[3] > 0.9
    assert found.significant.tolist() == [u == 3 for u in range(12)]
    assert (found.p_max_t <= 0.05).tolist() == [u == 3 for u in range(12)]
    assert found.z[3] > 5
    assert found.held_out[3] > 0.9


def test_with_shuffled_images_few_units_are_called_and_the_plain_rule_calls_many() -> None:
    p_values, plain = [], []
    for seed in range(24):
        planes = (blobs(16, 3, 8, seed=1000 + seed) > 1.2).long() * torch.arange(1, 4)[:, None, None]
        scenes = scenes_of(blobs(16, 12, 8, seed=seed), planes, named(3))
        method = Dissection(("units",), protocol=Protocol(0.05), draws=39, seed=seed)
        found = dissected(scenes, method)
        p_values.append(found.p)
        plain.append(found.detector.double())
        assert found.null_share == pytest.approx(float((found.null.iou > 0.04).double().mean()))
    p, rule = torch.cat(p_values), torch.cat(plain).mean()
    share = (p <= 0.05).double().mean()
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(p))
    assert 0.3 < p.mean() < 0.7  # not conservative either
    assert rule > 0.5  # nothing is there to be detected


def bars(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images of one bar each on noise, in four directions and bright or dark, and its mask as one of 8 labels."""
    size, half = 20, 4
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    kinds = torch.randint(8, (n,), generator=generator)
    cy, cx = torch.randint(half + 1, size - half - 1, (2, n, 1, 1), generator=generator)
    dy, dx = y - cy, x - cx
    across = torch.stack([dx, dy, dx - dy, dx + dy])[kinds % 4, torch.arange(n)]
    inside = (across.abs() <= 1) & (torch.maximum(dy.abs(), dx.abs()) <= half)
    sign = 1 - 2 * (kinds // 4)[:, None, None]
    images = sign * inside + 0.2 * torch.randn(n, size, size, generator=generator)
    return images[:, None], inside * (kinds[:, None, None] + 1)


def trained_on_bars() -> nn.Module:
    """Return a small network that tells, at each pixel of images never seen, which bar lies there, if any."""
    net = nn.Sequential(
        OrderedDict(
            first=nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            second=nn.Sequential(nn.Conv2d(16, 24, 3, padding=2, dilation=2), nn.ReLU()),
            third=nn.Sequential(nn.Conv2d(24, 24, 3, padding=2, dilation=2), nn.ReLU()),
            fields=nn.Conv2d(24, 9, 1),
            out=nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            fan = weight[0].numel() if weight.ndim > 1 else 1e9
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / fan) ** 0.5)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    weight = torch.tensor([0.1] + [1.0] * 8)
    for _ in range(400):
        images, labels = bars(32, generator)
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net[:4](images), labels, weight)
        if float(loss.detach()) < 0.005:  # of images of this step: every kernel comes there by a path of its own
            return net.eval()
        loss.backward()
        optimiser.step()
    raise AssertionError("the network does not learn to tell bars")


@pytest.mark.kernels
@pytest.mark.slow
def test_me_8_detectors_grow_with_depth_and_full_rotation_destroys_most() -> None:
    net, (images, labels) = trained_on_bars(), bars(160, torch.Generator().manual_seed(9))
    scenes = Scenes(TensorExamples(images), TensorLabels(labels[:, None], named(8)), (20, 20), frame="input")
    store, names = ActivationStore(progress=False), ("first.1", "third.1", "fields")
    protocol = Protocol(float((labels > 0).float().mean()) / 8)
    plain = Dissection(names, protocol=protocol, draws=19)(store, net, scenes)
    by_depth = [sum(plain.detectors_by_category(n, min_iou=0.5).values()) for n in names]
    assert by_depth[0] <= by_depth[1] <= by_depth[2]
    assert by_depth[0] < by_depth[2] >= 7
    after = []
    turns = 8
    for seed in range(turns):
        method = Dissection(("fields",), protocol=protocol, rotation=Rotation(seed=seed), draws=0)
        turned = method(store, net, scenes)
        after.append(sum(turned.detectors_by_category("fields", min_iou=0.5).values()))
    assert sum(after) / turns < by_depth[2] / 2


def test_the_label_tests_tell_scores_apart_as_their_authors_do() -> None:
    # A unit that is the concept: half of the labels taken away, or as many again added elsewhere.
    area = torch.tensor([100])
    one = Counts(area[:, None], area[:, None], area, torch.tensor([10_000]))
    sums = {name: torch.tensor([[100.0]]) for name in ("product", "total", "squares")}
    judged = Judged.of(one, sums, one.cells, torch.tensor([0]), torch.tensor([0]))
    before, fewer, more = judged.scores(), judged.missing().scores(), judged.extra().scores()
    assert all(float(v) == pytest.approx(1) for v in before.values())
    change = {name: (float(fewer[name]), float(more[name])) for name in before}
    assert change["iou"] == pytest.approx((0.5, 0.5))
    assert change["label share of the unit"] == pytest.approx((0.5, 1))  # notices missing labels only
    assert change["unit share of the label"] == pytest.approx((1, 0.5))  # notices extra labels only
    assert change["correlation"] == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)), abs=0.01)


def test_labels_put_elsewhere_also_fall_on_the_unit() -> None:
    half, area = torch.tensor([[50]]), torch.tensor([100])
    counts = Counts(half, area[:, None], area, torch.tensor([1100]))
    sums = {name: torch.tensor([[50.0]]) for name in ("product", "total", "squares")}
    more = Judged.of(counts, sums, counts.cells, torch.tensor([0]), torch.tensor([0])).extra()
    # Each of the 1,000 free cells gets the label with probability 0.1, the unit's 50 among them.
    assert (float(more.shared), float(more.label_area)) == pytest.approx((55, 200))


def test_the_label_tests_run_on_every_score_of_a_result() -> None:
    maps, masks = toy()
    found = dissected(scenes_of(maps[:, :6], as_planes(masks[:, :6]), named(6)))
    by_name = {test.score: test for test in found.label_tests}
    assert [name for name, test in by_name.items() if not test.passed][-2:] == [
        "label share of the unit",
        "unit share of the label",
    ]
    assert by_name["iou"].passed
    assert by_name["correlation"].passed
    for fall in ("missing_falls", "extra_falls"):
        assert not replace(by_name["iou"], **{fall: torch.nan}).passed
    assert by_name["iou"].missing == pytest.approx(-0.5, abs=0.06)
    assert by_name["auprc"].units == 6


def test_the_concept_chosen_on_one_half_is_judged_on_the_other() -> None:
    maps = torch.zeros(4, 1, 4, 4)
    maps[:, 0, 0, 0] = torch.tensor([4.0, 3, 2, 1])
    ids = TensorExamples(maps).ids
    half = halves(ids, seed=0)
    planes = torch.zeros(4, 1, 4, 4, dtype=torch.long)
    for i in range(4):
        planes[i, 0, 0, 0] = 1 + half[i]  # in one half the unit lies on the first concept, in the other on the second
    found = dissected(scenes_of(maps, planes, named(2)), Dissection(("units",), protocol=Protocol(0.07), draws=0))
    assert found.best_iou.item() == pytest.approx(0.5)
    assert found.held_out.item() == 0
    assert not found.same_choice.item()


def test_images_of_equal_content_lie_in_one_half() -> None:
    found = halves(["a", "b", "a", "c", "b", "d"], seed=1)
    assert found[0] == found[2]
    assert found[1] == found[4]
    assert sorted(halves(list("abcdef"), seed=0)) == [0, 0, 0, 1, 1, 1]
    assert halves(list("abcdefghijklmnop"), 0) != halves(list("abcdefghijklmnop"), 1)


def test_tokens_are_read_as_grids() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 3, 4, stride=4, bias=False)
            self.block = nn.Identity()
            with torch.no_grad():
                self.patches.weight.zero_()
                for c in range(3):
                    self.patches.weight[c, c] = 1 / 16

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            first = torch.zeros(len(x), 1, 3) + 7
            return self.block(torch.cat([first, tokens], 1)).mean(1)

    maps = blobs(10, 3, 16, seed=0)
    planes = (blobs(10, 1, 16, seed=1) > 0.5).long()
    scenes = scenes_of(maps, planes, named(1), size=(8, 8))
    store, net = ActivationStore(progress=False), Tokens().eval()
    method = Dissection(("patches", "block"), protocol=Protocol(0.1), draws=0)
    found = method(store, net, scenes)
    first, second = (found.rows_of(name) for name in found.layers)
    assert torch.equal(found.shared[first], found.shared[second])
    assert torch.equal(found.unit_area[first], found.unit_area[second])


def test_a_result_is_saved_and_its_method_rebuilt(tmp_path: Path) -> None:
    method = Dissection(("units",), protocol=Protocol(0.1), rotation=Rotation(0.5, 2), draws=5, seed=3)
    found = dissected(mixed_scenes(), method)
    loaded = DissectionResult.load(found.save(tmp_path))
    assert torch.equal(loaded.iou, found.iou)
    assert loaded.label_tests == found.label_tests
    assert rebuild(loaded.provenance.method) == method
    table = loaded.to_pandas()
    assert list(table["unit"]) == [0, 1, 2, 3]
    assert table["iou"].tolist() == pytest.approx(found.best_iou.tolist())
    assert "<table" in found._repr_html_()
    other = dissected(scenes_of(mixed_scenes().examples.load(range(9)), torch.ones(9, 1, 12, 12).long(), named(1)))
    assert other.provenance.examples != found.provenance.examples  # labels are data too


def test_every_parameter_changes_the_result() -> None:
    scenes = mixed_scenes()
    one = Dissection(("units",), protocol=Protocol(0.1), draws=9)
    found = dissected(scenes, one)
    for change in (
        {"draws": 5},
        {"seed": 1},
        {"rotation": Rotation(1.0, 0)},
        {"protocol": Protocol(0.2)},
    ):
        other = dissected(
            scenes,
            Dissection(**({"layers": ("units",), "protocol": Protocol(0.1), "draws": 9} | change)),
        )  # type: ignore[arg-type]
        assert other.null.iou.shape != found.null.iou.shape or not torch.equal(other.null.iou, found.null.iou)
    assert dissected(scenes, Dissection(("units",), top=2)).top_images.shape == (4, 2)
    assert not torch.equal(
        dissected(scenes, Dissection(("units",), Protocol(0.1), min_iou=0.2)).detector,
        found.detector,
    )


def test_units_left_out_cost_what_they_carry() -> None:
    net = given_units(4)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[4.0, 0, 0, 0], [0, 0, 4.0, 0]]))
        net.head.bias.zero_()
    classes = torch.arange(20) % 2
    maps = 0.1 * torch.randn(20, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    maps[torch.arange(20), 2 * classes] += 1
    method = Ablation("units", counts=(1, 2, 3, 99), draws=4)
    found = method(net, TensorExamples(maps), classes, torch.tensor([0, 2, 1]))
    assert found.counts == (1, 2, 3)
    assert found.accuracy == 1
    assert found.without[0] < 1  # class 0 lost what speaks for it
    assert found.alone[1] == 1
    assert found.score_without[1] == pytest.approx(0, abs=1e-6)
    assert found.without_random.shape == (3, 4)
    assert not any(module._forward_hooks for module in net.modules())
    harmless = method(net, TensorExamples(maps), classes, torch.tensor([1, 3, 0]))
    assert harmless.without[1] == 1
    assert harmless.score_without[1] == pytest.approx(found.score)
    with pytest.raises(AblationError, match="from 0 to 3, each once"):
        method(net, TensorExamples(maps), classes, torch.tensor([0, 4]))
    with pytest.raises(AblationError, match="need as many classes, got 3"):
        method(net, TensorExamples(maps), classes[:3], torch.tensor([0]))
    with pytest.raises(AblationError, match="more than the 1 units"):
        Ablation("units", counts=(2,))(net, TensorExamples(maps), classes, torch.tensor([0]))


def test_a_concept_absent_from_the_data_is_named() -> None:
    maps, planes = blobs(6, 2, 8, seed=0), (blobs(6, 1, 8, seed=1) > 0).long()
    found = dissected(scenes_of(maps, planes, Vocabulary(("cat", "dodo"), ("object", "object"))))
    assert found.iou[:, 1].tolist() == [0, 0]
    assert found.auprc[:, 1].isnan().all()
    assert found.correlation[:, 1].isnan().all()
    assert "1 of 2 concepts are in none of the images: dodo." in found.sentences()


def test_images_without_labels_are_refused_and_some_are_not() -> None:
    maps, planes = blobs(6, 2, 8, seed=0), torch.zeros(6, 1, 8, 8, dtype=torch.long)
    with pytest.raises(DissectionError, match="none of the 6 images has a label"):
        dissected(scenes_of(maps, planes, named(2)))
    planes[:3, 0, :4] = 1
    assert dissected(scenes_of(maps, planes, named(2))).cells.tolist() == [3 * 64, 3 * 64]


def test_one_image_is_too_few() -> None:
    with pytest.raises(DissectionError, match=r"needs at least two images, .* got 1"):
        dissected(scenes_of(blobs(1, 2, 8, seed=0), torch.ones(1, 1, 8, 8).long(), named(1)))


def test_layers_without_places_are_refused() -> None:
    scenes = scenes_of(blobs(6, 2, 8, seed=0), torch.ones(6, 1, 8, 8).long(), named(1))
    for layer, error, message in (
        ("head", RefusedError, r"layer 'head' returns shape \(1, 2\), no map"),
        ("pool", DissectionError, "one value per unit and image"),
        ("unit", LayerNotFoundError, "no layer 'unit'"),
    ):
        with pytest.raises(error, match=message):
            dissected(scenes, Dissection((layer,)))
    with pytest.raises(DissectionError, match="at least one layer"):
        Dissection(())
    with pytest.raises(DissectionError, match="draws must be 0 or more"):
        Dissection(("units",), draws=-1)


def test_labels_that_do_not_fit_stop_the_dissection() -> None:
    maps = blobs(6, 2, 8, seed=0)
    for planes, message in (
        (torch.ones(6, 1, 8, 4).long(), "4 x 8 pixels for an image of 8 x 8"),
        (torch.full((6, 1, 8, 8), 5), "hold 5, which is not in the table of 1 concepts"),
    ):
        with pytest.raises(LabelError, match=message):
            dissected(scenes_of(maps, planes, named(1), size=(8, 8)))


def test_fault_17_rows_of_another_model_are_never_taken_up_again(tmp_path: Path) -> None:
    # NetDissect-Lite resumes from whatever file of the right name lies in the folder.
    scenes, protocol = mixed_scenes(), Protocol(0.1)
    found = []
    for scale in (1.0, -1.0):
        net = given_units(4)
        net.units = nn.Conv2d(4, 4, 1, bias=False).eval()
        with torch.no_grad():
            net.units.weight.copy_(scale * torch.eye(4)[:, :, None, None])
        method = Dissection(("units",), protocol=protocol, draws=0)
        kept = method(ActivationStore(tmp_path, progress=False), net, scenes)
        afresh = method(ActivationStore(progress=False), net, scenes)
        assert torch.equal(kept.shared, afresh.shared)
        found.append(kept.shared)
    assert not torch.equal(*found)


def test_fault_18_exactly_the_share_asked_for_lies_above_a_threshold() -> None:
    # A sketch lets 0.0046 to 0.0054 of the values through for 0.005.
    maps = torch.randn(50, 6, 20, 20, generator=torch.Generator().manual_seed(0))
    planes = (blobs(50, 1, 20, seed=1) > 0).long()
    found = dissected(scenes_of(maps, planes, named(1)))
    above = (maps > found.threshold.float()[:, None, None]).sum((0, 2, 3))
    assert above.tolist() == [100] * 6  # 0.005 of 20,000
