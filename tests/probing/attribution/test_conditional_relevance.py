"""Relevance of a part of a layer's output: sums over complete sets, closed forms, and what is refused."""

import pytest
import torch
from attribution_nets import TokenNet
from nets import BatchNormNet, ConvNet, SharedReluNet, TupleNet, images, seeded
from torch import Tensor, nn

from probing.attribution.lrp.composites import Composite, EpsilonAlpha2Beta1, EpsilonPlusFlat, Uniform
from probing.attribution.lrp.conditional import (
    ConditionalLRP,
    DirectionPart,
    Part,
    PartError,
    UnitPart,
    layer_relevance,
)
from probing.attribution.lrp.lrp import LRP
from probing.attribution.lrp.rules import Epsilon
from probing.models.geometry import RefusedError
from probing.models.hooks import LayerCallError
from probing.models.layers import LayerNotFoundError
from probing.models.scores import Score


class TwoBranches(nn.Module):
    """The left and the right half of an image, each by a convolution of its own; the head sees both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        halves = [self.left(x[..., :3]), self.right(x[..., 3:])]
        logits: Tensor = self.head(torch.cat([h.mean((2, 3)) for h in halves], 1))
        return logits


def turned(size: int) -> list[Part]:
    """Return parts along orthonormal directions, scaled otherwise than to unit length."""
    generator = torch.Generator().manual_seed(0)
    basis: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
    return [DirectionPart(3 * direction) for direction in basis]


def units(size: int) -> list[Part]:
    return [UnitPart(unit) for unit in range(size)]


@pytest.mark.parametrize("composite", [EpsilonPlusFlat(), EpsilonAlpha2Beta1(), Uniform(Epsilon(1e-3))], ids=repr)
@pytest.mark.parametrize("layer", ["features.0", "features.1", "features.2", "features.3", "pool"])
def test_maps_of_a_complete_set_of_parts_sum_to_the_plain_map(layer: str, composite: Composite) -> None:
    net, inputs = seeded(ConvNet()).double(), images(2).double()
    score, size = Score(net, 1), 4 if layer in {"features.0", "features.1"} else 5
    plain = LRP(composite)(score, inputs)
    for parts in (units(size), turned(size)):
        found = [ConditionalLRP(layer, LRP(composite))(score, inputs, part) for part in parts]
        assert float((sum(f.values for f in found) - plain.values).abs().max()) < 1e-6 * float(plain.values.abs().max())
        at_layer = sum(f.diagnostics["at_layer"] for f in found)
        assert torch.allclose(torch.as_tensor(at_layer), found[0].diagnostics["through_layer"])
        assert float(found[0].diagnostics["past_layer"].abs().max()) < 1e-12
        assert float(found[0].diagnostics["conservation_gap"].abs().max()) < 1e-12
        assert float((found[0].values - found[1].values).abs().max()) > 1e-3  # each is a map of its own


def test_parts_of_tokens_sum_to_the_plain_map() -> None:
    net, inputs = seeded(TokenNet()).double(), images(2).double()
    score = Score(net, 0)
    plain = LRP()(score, inputs)
    found = sum(ConditionalLRP("last")(score, inputs, part).values for part in units(8))
    assert torch.allclose(torch.as_tensor(found), plain.values, atol=1e-9)


@pytest.mark.parametrize("layer", ["conv1", "bn1", "relu"])
def test_a_unit_whose_normalisation_is_folded_keeps_its_relevance(layer: str) -> None:
    net, inputs = seeded(BatchNormNet()).double(), images(2).double()
    score = Score(net, 2)
    found = sum(ConditionalLRP(layer)(score, inputs, part).values for part in units(4))
    assert torch.allclose(torch.as_tensor(found), LRP()(score, inputs).values, atol=1e-12)


def test_other_parts_of_a_layer_with_a_folded_normalisation_are_refused() -> None:
    score, inputs = Score(seeded(BatchNormNet()), 2), images(2)
    with pytest.raises(RefusedError, match=r"normalisation after layer 'conv1' is folded .* name that layer"):
        ConditionalLRP("conv1")(score, inputs, DirectionPart(torch.ones(4)))
    with pytest.raises(RefusedError, match="normalisation after layer 'conv1' is folded"):
        layer_relevance(LRP(), score, inputs, "conv1")
    ConditionalLRP("bn1")(score, inputs, DirectionPart(torch.ones(4)))


def test_the_map_of_one_branch_is_0_where_only_the_other_looks() -> None:
    net, inputs = seeded(TwoBranches()).double(), images(3).double()
    score = Score(net, 1)
    plain = LRP()(score, inputs)
    left, right = (
        sum(ConditionalLRP(branch)(score, inputs, part).values for part in units(3)) for branch in ("left", "right")
    )
    assert isinstance(left, Tensor)
    assert isinstance(right, Tensor)
    assert bool((left[..., 3:] == 0).all())
    assert bool((right[..., :3] == 0).all())
    assert torch.allclose(left + right, plain.values, atol=1e-12)
    one = ConditionalLRP("left")(score, inputs, UnitPart(0)).diagnostics
    other = ConditionalLRP("right")(score, inputs, UnitPart(0)).diagnostics
    assert torch.allclose(one["past_layer"], other["through_layer"])
    assert float(one["past_layer"].abs().min()) > 1e-3


def test_under_the_zero_rule_without_biases_it_is_the_gradient_through_the_part_times_the_input() -> None:
    net = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    seeded(net)
    inputs = images(3, size=6).double()[:, 0, 0]
    x = inputs.clone().requires_grad_()
    hidden = net[1](net[0](x))
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]).double()
    for part in (UnitPart(3), DirectionPart(direction)):
        slope = net[2].weight[1] * torch.ones_like(hidden)  # of the logit by hidden units
        (gradient,) = torch.autograd.grad((part(hidden) * slope * (hidden > 0)).sum(), x, retain_graph=True)
        found = ConditionalLRP("1", LRP(Uniform(Epsilon(1e-9))))(Score(net, 1), inputs, part)
        own = part(hidden.detach()) * slope.detach() * (hidden > 0)
        assert torch.allclose(found.diagnostics["at_layer"], own.sum(1))
        if isinstance(part, UnitPart):
            assert torch.allclose(found.values, inputs * gradient, atol=1e-6)
        assert torch.allclose(found.values.sum(1), own.sum(1), atol=1e-6)


def test_each_input_may_have_a_part_of_its_own_and_batches_do_not_matter() -> None:
    net, inputs = seeded(ConvNet()).double(), images(3).double()
    score, parts = Score(net, torch.tensor([0, 1, 2])), [UnitPart(2), DirectionPart(torch.ones(5)), UnitPart(0)]
    found = ConditionalLRP("features.3", LRP(batch_size=2))(score, inputs, parts)
    for i, part in enumerate(parts):
        alone = ConditionalLRP("features.3")(Score(net, i), inputs[i : i + 1], part)
        assert torch.allclose(found.values[i], alone.values[0])
        for name in ("at_layer", "through_layer", "past_layer"):
            assert torch.allclose(found.diagnostics[name][i], alone.diagnostics[name][0])
    assert found.layer == "features.3"


def test_relevance_at_a_layer_gives_that_of_all_its_parts() -> None:
    net, inputs = seeded(ConvNet()).double(), images(3).double()
    score = Score(net, 1)
    arrived = layer_relevance(LRP(batch_size=2), score, inputs, "features.3")
    assert arrived.output.shape == (3, 5, 6, 6)
    for part in (UnitPart(2), DirectionPart(torch.arange(5.0))):
        own = (part(arrived.output) * arrived.slope).flatten(1).sum(1)
        found = ConditionalLRP("features.3")(score, inputs, part)
        assert torch.allclose(own, found.diagnostics["at_layer"])


def test_calls_of_a_layer_that_runs_twice_are_told_apart() -> None:
    net, inputs = seeded(SharedReluNet()).double(), images(2, size=4).double()[:, 0, 0]
    with pytest.raises(LayerCallError, match=r"layer 'relu' ran 2 times, expected once: name a call, as 'layer:0'"):
        ConditionalLRP("relu")(Score(net, 1), inputs, UnitPart(0))
    first, second = (ConditionalLRP(f"relu:{call}")(Score(net, 1), inputs, UnitPart(1)) for call in (0, 1))
    assert not torch.equal(first.values, second.values)
    assert torch.allclose(second.values, LRP()(Score(net, 1), inputs).values)  # the logit is this unit


def test_what_does_not_fit_is_refused_and_the_model_left_as_it_was() -> None:
    net, inputs = seeded(ConvNet()), images(2)
    score = Score(net, 1)
    with pytest.raises(PartError, match="there is no unit 5 among 5, which are counted from 0"):
        ConditionalLRP("features.3")(score, inputs, UnitPart(5))
    with pytest.raises(PartError, match=r"a direction of 4 values and length 2 does not fit 5 units"):
        ConditionalLRP("features.3")(score, inputs, DirectionPart(torch.ones(4)))
    with pytest.raises(PartError, match="there are 3 parts for 2 inputs: give one, or one for each"):
        ConditionalLRP("features.3")(score, inputs, [UnitPart(0)] * 3)
    with pytest.raises(LayerNotFoundError):
        ConditionalLRP("nothing")(score, inputs, UnitPart(0))
    with pytest.raises(LayerCallError, match=r"'split\[0\]' is a part of what a layer returns: name a layer after it"):
        ConditionalLRP("split[0]")(Score(seeded(TupleNet()), 0), torch.randn(2, 4), UnitPart(0))
    with pytest.raises(LayerCallError, match="layer 'split' returns no tensor"):
        ConditionalLRP("split")(Score(seeded(TupleNet()), 0), torch.randn(2, 4), UnitPart(0))
    assert all(not module._forward_hooks for module in net.modules())
    assert ConditionalLRP("pool")(net, inputs, UnitPart(0)).target == LRP()(net, inputs).target
