"""Interpretable CNNs: the paper's formulas, and the metrics that judge filters."""

import copy
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from where import ROOT

from probing.interpretable_cnn import (
    FilterLoss,
    FilterMapError,
    FilterMask,
    Templates,
    balancing_weight,
    centroid,
    filter_categories,
    highest,
    information_gradient,
    location_instability,
    part_interpretability,
    template_information,
)
from probing.models.geometry import Geometry
from probing.models.hooks import capture


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores_of(maps: Tensor, templates: Templates) -> Tensor:
    """tr(x · T) of one filter's maps [x, n, n]."""
    return templates.tau * maps.flatten(1).double() @ templates.shapes().mT


def test_ic_1_a_template_falls_with_the_distance_from_its_peak() -> None:
    corner = Templates(3).shapes()[0].reshape(3, 3)
    third = -1 / 3
    expected = torch.tensor([[1, third, -1], [third, -1, -1], [-1, -1, -1]]).double()
    torch.testing.assert_close(corner, expected)
    large = Templates(14).shapes()[7 * 14 + 7].reshape(14, 14)
    assert float(large[7, 8]) == pytest.approx(0.714, abs=5e-4)
    assert bool((Templates(3).shapes()[-1] == -1).all())
    assert Templates(14).tau == 0.5 / 196
    assert float(Templates(3).log_prior().exp().sum()) == pytest.approx(1)


def test_ic_2_silent_maps_tell_nothing() -> None:
    templates = Templates(3)
    found = template_information(scores_of(torch.zeros(5, 3, 3), templates), templates.log_prior())
    assert float(found) == pytest.approx(0, abs=1e-12)
    loss = FilterLoss(2, 3)(torch.zeros(4, 2, 3, 3, requires_grad=True))
    assert loss.tolist() == [0, 0]


def test_ic_3_two_maps_and_templates_tell_log_two_less_the_entropy_of_a_mistake() -> None:
    delta = 2.0
    scores = torch.tensor([[delta, 0.0], [0.0, delta]]).double()
    share = 1 / (1 + math.exp(-delta))
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    found = template_information(scores, torch.full((2,), math.log(0.5)).double())
    assert float(found) == pytest.approx(math.log(2) - entropy)
    assert float(found) == pytest.approx(0.32781, abs=1e-5)


def test_ic_4_peaks_and_silence_tell_more_the_higher_the_peaks_up_to_log_of_their_number() -> None:
    templates = Templates(3)
    peaks = torch.cat([torch.eye(9).reshape(9, 3, 3), torch.zeros(1, 3, 3)])
    found = [
        float(template_information(scores_of(a * peaks, templates), templates.log_prior())) for a in (36, 90, 180, 2000)
    ]
    assert found[:3] == pytest.approx([1.0614, 2.2065, 2.3016], abs=1e-4)
    assert found[3] == pytest.approx(math.log(10))
    assert found == sorted(found)


def test_ic_5_information_is_at_most_the_entropy_of_templates_and_at_least_zero() -> None:
    templates = Templates(3)
    for seed in range(5):
        maps = 300 * normal(40, 3, 3, seed=seed).relu()
        found = float(template_information(scores_of(maps, templates), templates.log_prior()))
        assert 0 <= found <= math.log(10) + 1e-12


def test_ic_6_the_closed_form_gradient_is_that_of_autograd() -> None:
    templates = Templates(3)
    maps = (20 * normal(6, 9)).requires_grad_()
    shapes, prior = templates.tau * templates.shapes(), templates.log_prior()
    (expected,) = torch.autograd.grad(template_information(maps @ shapes.mT, prior), maps)
    found = information_gradient((maps @ shapes.mT).detach(), prior, shapes)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x: template_information(x @ shapes.mT, prior), maps)


@pytest.mark.parametrize("gradient", ["exact", "paper"])
def test_ic_7_a_step_raises_the_peak_and_lowers_the_rest_and_lowers_all_of_a_negative(
    gradient: str,
) -> None:
    maps = torch.zeros(10, 1, 3, 3).double()
    for i in range(9):
        maps[i, 0, i // 3, i % 3] = 1 + 0.1 * i
    maps[9] = 0.3
    maps.requires_grad_()
    labels = torch.tensor([1] * 9 + [0])
    loss = FilterLoss(1, 3, gradient=gradient, sharpness=3.0)
    (slope,) = torch.autograd.grad(loss(maps, labels, torch.tensor([1])).sum(), maps)
    step = -slope[:, 0].flatten(1)
    if gradient == "paper":
        for i in range(9):
            others = torch.arange(9) != i
            assert step[i, i] > 0
            assert bool((step[i, others] < 0).all())
        assert bool((step[9] < 0).all())
    else:  # what maps share cancels: the peak rises against the mean of the others
        assert all(step[i, i] > step[i].mean() for i in range(9))
        assert float(step[9].max()) < 0


def test_the_paper_s_gradient_is_one_template_s_share_and_its_value_is_the_exact_one() -> None:
    maps = normal(6, 2, 3, 3).relu().requires_grad_()
    exact, paper = FilterLoss(2, 3), FilterLoss(2, 3, gradient="paper")
    torch.testing.assert_close(paper(maps), exact(maps))
    (slope,) = torch.autograd.grad(FilterLoss(2, 3, gradient="paper")(maps)[0], maps)
    templates = Templates(3)
    scale = 10 / maps[:, 0].amax((1, 2)).mean()
    scores = (scale * maps[:, 0].flatten(1) @ templates.shapes().mT).detach()
    given = scores.log_softmax(0)
    ratio = given - (given + templates.log_prior()).logsumexp(1, keepdim=True)
    for i, peak in enumerate(highest(maps)[:, 0].tolist()):
        pull = 0.1 * given[i, peak].exp() * ratio[i, peak] * scale * templates.shapes()[peak]
        torch.testing.assert_close(-slope[i, 0].flatten(), pull.detach(), rtol=1e-5, atol=1e-7)


def test_ic_8_the_mask_keeps_the_peak_and_silences_cells_further_than_n_over_beta() -> None:
    maps = 0.1 + normal(4, 3, 8, 8).abs().float()
    found = FilterMask(8)(maps)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    for image, masked in zip(maps.flatten(0, 1), found.flatten(0, 1), strict=True):
        peak = int(image.argmax())
        distance = (rows - peak // 8).abs() + (columns - peak % 8).abs()
        assert bool((masked[distance >= 2] == 0).all())
        assert bool((masked[distance < 2] > 0).all())
        assert masked.flatten()[peak] == image.flatten()[peak]
    wide = FilterMask(8, beta=1.0)(maps)
    assert int((wide > 0).sum()) > int((found > 0).sum())


def test_the_mask_s_gradient_takes_it_as_constant() -> None:
    maps = normal(2, 1, 3, 3).abs().requires_grad_()
    mask = FilterMask(3)
    (slope,) = torch.autograd.grad(mask(maps).sum(), maps)
    torch.testing.assert_close(slope * maps, mask(maps))


def test_a_centroid_is_the_centre_of_mass_and_may_lie_where_nothing_is() -> None:
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 0, 0] = maps[0, 0, 4, 4] = 1
    assert centroid(maps).tolist() == [[12, 12]]  # the middle, also for the silent map
    assert highest(maps).tolist() == [[0, 0]]
    assert float(FilterMask(5, peak="centroid")(maps).sum()) == 0
    assert float(FilterMask(5)(maps).sum()) == 1


def ring(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Maps with one peak each at random places, and the peaks' cells."""
    cells = torch.randint(0, 16, (n, 2), generator=torch.Generator().manual_seed(seed))
    maps = torch.zeros(n, 1, 16, 16)
    maps[torch.arange(n), 0, cells[:, 0], cells[:, 1]] = 1 + torch.rand(n)
    return maps, cells


def test_ic_9_a_peak_bound_to_its_landmark_is_stable_and_one_at_random_is_not() -> None:
    maps, cells = ring(200)
    geometry = Geometry.tiles((16, 16), (32, 32))
    bound = (2.0 * cells + 0.5 + torch.tensor([3.0, 1.0])).unsqueeze(1)
    assert float(location_instability(maps, bound, geometry)) == pytest.approx(0, abs=1e-7)
    # A fine grid of all places stands for a peak that is uniform on the unit square.
    side = 60
    every = torch.eye(side * side).reshape(side * side, 1, side, side)
    unit = Geometry((1, 1), (0.5 / side, 0.5 / side), (1 / side, 1 / side))
    middle = torch.full((side * side, 1, 2), 0.5)
    found = location_instability(every, middle, unit, top=side * side) * math.sqrt(2)
    assert float(found) == pytest.approx(math.sqrt(1 / 6 - 0.38260**2), abs=1e-3)


def test_instability_looks_at_the_images_where_a_filter_is_highest_and_at_known_landmarks() -> None:
    maps, cells = ring(40)
    geometry = Geometry.tiles((16, 16), (32, 32))
    bound = (2.0 * cells + 0.5).unsqueeze(1)
    bound[:10] = 0
    maps[10:] *= 100
    assert float(location_instability(maps, bound, geometry, top=30)) == pytest.approx(0, abs=1e-7)
    assert float(location_instability(maps, bound, geometry, top=40)) > 0.05
    bound[:10] = torch.nan
    assert float(location_instability(maps, bound, geometry, top=40)) == pytest.approx(0, abs=1e-7)
    bound[1:] = torch.nan
    assert location_instability(maps, bound, geometry).isnan().all()


def test_a_filter_that_lies_on_a_part_hits_it_and_no_other() -> None:
    parts = torch.zeros(50, 2, 16, 16, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for i, (row, column) in enumerate(torch.randint(0, 6, (50, 2), generator=generator).tolist()):
        parts[i, 0, row : row + 2, column : column + 2] = True
        parts[i, 1, row + 8 : row + 10, column + 8 : column + 10] = i < 40
    maps = torch.stack([parts[:, 0].float(), torch.zeros(50, 16, 16)], 1)
    geometry = Geometry.tiles((16, 16), (16, 16))
    found = part_interpretability(maps, parts, geometry, q=0.05)
    assert found.tolist() == [[1, 0], [0, 0]]
    both = torch.maximum(parts[:, :1], parts[:, 1:]).float()
    shares = part_interpretability(both, parts, geometry, q=0.05)
    assert shares[0].tolist() == [1, 1]  # an intersection over union of one half is above 0.2
    assert part_interpretability(both, parts, geometry, q=0.05, hit=0.6)[0, 1] == 0
    assert part_interpretability(both, parts & False, geometry).isnan().all()


class Net(nn.Module):
    def __init__(self, mask: nn.Module) -> None:
        super().__init__()
        self.conv, self.relu, self.mask = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), mask
        self.head = nn.Linear(4 * 25, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mask(self.relu(self.conv(x))).flatten(1))


def step(net: Net, loss: FilterLoss | None, weight: float) -> None:
    images, labels = normal(12, 1, 5, 5).float(), torch.arange(12) % 2
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        with capture(net, ["relu"], graph=True) as kept:
            total = cross_entropy(net(images), labels)
        if loss is not None:
            total = total + weight * loss(kept["relu"]).sum()
        total.backward()
        optimizer.step()


def test_ic_10_without_weight_and_mask_training_is_that_of_a_plain_net_to_the_bit() -> None:
    torch.manual_seed(0)
    plain = Net(nn.Identity())
    with_loss, weighted = copy.deepcopy(plain), copy.deepcopy(plain)
    step(plain, None, 0.0)
    step(with_loss, FilterLoss(4, 5), 0.0)
    step(weighted, FilterLoss(4, 5), 0.5)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, with_loss.state_dict()[name])
    assert not torch.equal(plain.conv.weight, weighted.conv.weight)


def test_the_loss_remembers_maps_and_gradients_reach_only_the_new_ones() -> None:
    loss = FilterLoss(2, 3, memory=5)
    first, second = normal(4, 2, 3, 3).relu(), normal(4, 2, 3, 3, seed=1).relu()
    alone = FilterLoss(2, 3)(second)
    loss(first)
    second.requires_grad_()
    found = loss(second)
    assert not torch.allclose(found, alone)
    found.sum().backward()
    assert second.grad is not None
    assert len(loss.recent) == 5
    assert not loss.recent.requires_grad
    assert loss.state_dict() == {}  # what passes by is no part of a model


def test_the_loss_does_not_grow_with_the_scale_of_a_layer() -> None:
    maps = normal(6, 2, 3, 3).relu()
    torch.testing.assert_close(FilterLoss(2, 3)(maps), FilterLoss(2, 3)(1000 * maps))
    assert not torch.allclose(FilterLoss(2, 3)(maps), FilterLoss(2, 3, sharpness=1.0)(maps))
    assert not torch.allclose(FilterLoss(2, 3)(maps), FilterLoss(2, 3, beta=1.0)(maps))


def test_images_of_other_classes_have_a_part_in_the_negative_template_only() -> None:
    maps = normal(6, 2, 3, 3).relu().requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = FilterLoss(2, 3)(maps, labels, torch.tensor([0, 2]))  # no image shows class 2
    assert bool(found.isfinite().all())
    found.sum().backward()
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())
    with pytest.raises(FilterMapError, match="given together, or neither"):
        FilterLoss(2, 3)(maps, labels)


def test_a_filter_s_category_is_the_class_that_excites_it_most() -> None:
    maps = torch.ones(4, 2, 3, 3)
    maps[2:, 1] = 5
    maps[:2, 0] = 2
    assert filter_categories(maps, torch.tensor([0, 0, 1, 1]), 3).tolist() == [0, 1]


def test_the_balancing_weight_makes_the_filter_loss_s_gradient_a_share_of_the_task_s() -> None:
    maps = normal(4, 2, 3, 3).abs().requires_grad_()
    task, filters = (3 * maps).sum(), FilterLoss(2, 3)(maps).sum()
    weight = balancing_weight(task, filters, maps, share=0.1)
    slopes = [torch.autograd.grad(x, maps, retain_graph=True)[0].norm() for x in (task, filters)]
    assert weight * float(slopes[1]) == pytest.approx(0.1 * float(slopes[0]))
    assert balancing_weight(task, 0 * filters, maps) == 0


def test_maps_and_settings_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(FilterMapError, match=r"\[n, filters, 3, 3\], got \(1, 2, 3, 4\)"):
        FilterMask(3)(torch.zeros(1, 2, 3, 4))
    with pytest.raises(FilterMapError, match=r"\[n, filters, 3, 3\], got \(1, 2, 5, 5\)"):
        FilterLoss(2, 3)(torch.zeros(1, 2, 5, 5))
    with pytest.raises(FilterMapError, match="2 cells or more on a side and beta above 0, got 1"):
        Templates(1)
    with pytest.raises(FilterMapError, match="'max' or 'centroid', got 'mean'"):
        FilterMask(3, peak="mean")
    with pytest.raises(FilterMapError, match="'exact' or 'paper', got 'code'"):
        FilterLoss(2, 3, gradient="code")


def test_the_miniature_runs_and_draws(tmp_path: Path) -> None:
    path = ROOT / "experiments" / "interpretable_parts.py"
    spec = importlib.util.spec_from_file_location("interpretable_parts", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["interpretable_parts"] = script
    spec.loader.exec_module(script)
    found = script.main(["--tiny", "--out", str(tmp_path)])
    assert [o.variant for o in found] == ["plain", "mask", "loss", "both"]
    assert len({o.cross_entropy for o in found}) == 4  # mask and loss each change the training
    assert all(0 <= o.part_hits <= 1 and 0 < o.instability < 0.5 for o in found)
    assert {p.name for p in tmp_path.iterdir()} == {"outcomes.json", "interpretable.png", "interpretable.pdf"}
