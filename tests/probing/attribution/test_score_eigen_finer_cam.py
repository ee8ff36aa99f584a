"""Score-CAM against a plain loop, Eigen-CAM by hand, Finer-CAM as Grad-CAM of a difference, and the laws of XGrad-CAM."""

import nets
import pytest
import torch
from attribution_nets import TWO_MAPS, TwoMaps
from torch import Tensor, nn

from probing.attribution.cam.eigen_cam import EigenCAM
from probing.attribution.cam.finer_cam import FinerCAM
from probing.attribution.cam.grad_cam import GradCAM, HiResCAM, XGradCAM
from probing.attribution.cam.score_cam import ScoreCAM
from probing.core.errors import ArgumentError
from probing.models.geometry import RefusedError
from probing.models.readings import Regression
from probing.models.scores import Score


def conv_net() -> nets.ConvNet:
    return nets.seeded(nets.ConvNet()).double()  # type: ignore[return-value]


def maps_of(net: nets.ConvNet, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.features(x)  # type: ignore[no-any-return]


class Halved(nets.ConvNet):
    """Its maps have half the input's resolution, so that masks must be spread."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 1))


def by_loop(net: nets.ConvNet, x: Tensor, target: int, unit: str = "logit") -> Tensor:
    """Wang et al. 2020, algorithm 1, an image and a channel at a time, with the score of the empty input taken off."""
    found = []
    for image in x:
        maps = maps_of(net, image[None])[0]
        scale = image.shape[-1] // maps.shape[-1]
        gains, kept = [], []
        for one in maps:
            if float(one.max()) == float(one.min()):
                continue
            mask = (one - one.min()) / (one.max() - one.min())
            if scale > 1:  # between centres linear, outside of them constant: what align_corners=False does
                mask = nn.functional.interpolate(mask[None, None], scale_factor=scale, mode="bilinear")[0, 0]
            with torch.no_grad():
                whole, empty = net((image * mask)[None])[0], net(torch.zeros_like(image)[None])[0]
            if unit == "probability":
                whole, empty = whole.softmax(0), empty.softmax(0)
            gains.append(float(whole[target] - empty[target]))
            kept.append(one)
        weights = torch.tensor(gains, dtype=torch.float64).softmax(0)
        found.append(sum(w * m for w, m in zip(weights, kept, strict=True)).relu())  # type: ignore[union-attr]
    return torch.stack(found)


@pytest.mark.parametrize("kind", [nets.ConvNet, Halved])
@pytest.mark.parametrize("unit", ["logit", "probability"])
@pytest.mark.parametrize("size", ["auto", 3])
def test_score_cam_is_a_plain_loop(kind: type[nets.ConvNet], unit: str, size: int) -> None:
    net, x = nets.seeded(kind()).double(), nets.images().double()
    found = ScoreCAM("features", batch_size=size)(Score(net, 1, unit), x)
    torch.testing.assert_close(found.values[:, 0], by_loop(net, x, 1, unit))  # type: ignore[arg-type]
    assert float(found.values.max()) > 0


def test_score_cam_costs_a_pass_for_the_map_and_one_for_each_channel_that_is_not_constant() -> None:
    net, x = conv_net(), nets.images().double()
    with torch.no_grad():
        net.features[2].bias[0] = -100  # type: ignore[index, union-attr, operator]
    maps = maps_of(net, x).flatten(2)
    moving = (maps.amax(2) > maps.amin(2)).sum(1)
    assert int(moving.sum()) < maps.shape[0] * maps.shape[1]  # one is silent
    found = ScoreCAM("features")(Score(net, 1), x)
    assert found.n_forward == 4 + int(moving.sum())
    assert found.n_backward == 0
    assert bool((found.diagnostics["channels"] <= moving + 1e-9).all())


def test_score_cam_of_one_channel_is_that_channel() -> None:
    """Of two channels that show all or nothing of the input, the one the score gains from takes all weight."""
    net = TwoMaps()
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[1000.0, 0.0]]))
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = 1, 1
    found = ScoreCAM("maps")(Score(net, 0), x)  # the first shows the first, of which the score rises by 250
    torch.testing.assert_close(found.values[0, 0], x[0, 0])
    torch.testing.assert_close(found.diagnostics["channels"], torch.ones(1, dtype=torch.float64))


def test_score_cam_of_constant_maps_is_empty_and_says_so() -> None:
    net = TwoMaps()
    found = ScoreCAM("maps")(Score(net, 0), torch.ones(1, 2, 2, 2, dtype=torch.float64))
    assert not found.values.any()
    assert found.diagnostics["nothing_positive"].tolist() == [True]
    assert found.n_forward == 1


def test_eigen_cam_by_hand() -> None:
    """Of orthogonal maps the longer one is the component; of (1, 2) times one map, √5 times that."""
    x = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = 1, 3
    found = EigenCAM("maps")(Score(TwoMaps(), 0), x)
    torch.testing.assert_close(found.values[0, 0], torch.tensor([[0.0, 0.0], [0.0, 3.0]], dtype=torch.float64))
    torch.testing.assert_close(float(found.diagnostics["first_share"]), 0.9)
    torch.testing.assert_close(float(found.diagnostics["lead"]), 2 / 3)
    one = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    found = EigenCAM("maps")(Score(TwoMaps(), 0), torch.stack([one, 2 * one])[None])
    torch.testing.assert_close(found.values[0, 0], 5**0.5 * one)
    torch.testing.assert_close(float(found.diagnostics["first_share"]), 1.0)


def test_eigen_cam_s_sign_is_that_of_its_sum_and_said_to_be_arbitrary_where_there_is_none() -> None:
    net = TwoMaps()
    mixed = torch.tensor([[1.0, -1.0], [2.0, -2.0]], dtype=torch.float64)
    pairs = torch.stack(
        [torch.stack([mixed, 0 * mixed]), torch.stack([mixed + 1, 0 * mixed]), -torch.stack([mixed + 1, 0 * mixed])]
    )
    found = EigenCAM("maps")(Score(net, 0), pairs)
    torch.testing.assert_close(found.diagnostics["one_sided"], torch.tensor([0.0, 2 / 3, 2 / 3], dtype=torch.float64))
    torch.testing.assert_close(found.values[1], found.values[2])  # minus the maps give the same map
    assert bool((found.values[1:].sum((1, 2, 3)) > 0).all())
    assert not found.signed


def test_eigen_cam_of_rectified_maps_has_no_negative_value_and_of_none_is_empty() -> None:
    net, x = conv_net(), nets.images().double()
    found = EigenCAM("features")(Score(net, 1), x)
    assert float(found.values.min()) >= -1e-12
    torch.testing.assert_close(found.values, EigenCAM("features")(Score(net, 0), x).values)  # of every class the same
    empty = EigenCAM("maps")(Score(TwoMaps(), 0), torch.zeros(1, 2, 2, 2, dtype=torch.float64))
    assert not empty.values.any()
    assert bool(empty.diagnostics["first_share"].isnan().all())


def test_finer_cam_is_grad_cam_of_the_difference() -> None:
    net, x = nets.seeded(nets.ConvNet(classes=6)).double(), nets.images().double()
    logits = net(x).detach()
    found = FinerCAM("features", similar=2, strength=0.6, relu=False)(Score(net, 1), x)
    for i, row in enumerate(logits):
        near = sorted({*range(6)} - {1}, key=lambda c: abs(float(row[c] - row[1])))[:2]
        assert found.diagnostics["similar"][i].tolist() == near
        parts = [GradCAM("features", relu=False)(Score(net, c), x[i : i + 1]).values for c in (1, *near)]
        torch.testing.assert_close(found.values[i : i + 1], parts[0] - 0.6 * (parts[1] + parts[2]) / 2)
        torch.testing.assert_close(found.diagnostics["contrast"][i], row[1] - 0.6 * row[near].mean())
    torch.testing.assert_close(found.score, logits[:, 1])
    assert (found.n_forward, found.n_backward) == (4, 4)
    assert "minus 0.6 x the mean of the 2 nearest logits" in found.explained


def test_finer_cam_with_no_strength_is_grad_cam_and_takes_no_more_classes_than_there_are() -> None:
    net, x = conv_net(), nets.images().double()
    score = Score(net, torch.tensor([0, 1, 2, 0]))
    plain = GradCAM("features")(score, x).values
    torch.testing.assert_close(FinerCAM("features", strength=0.0)(score, x).values, plain)
    assert FinerCAM("features", similar=9, batch_size=3)(score, x).diagnostics["similar"].shape == (4, 2)
    assert not torch.allclose(FinerCAM("features")(score, x).values, plain)


def test_finer_cam_tells_what_two_classes_do_not_share() -> None:
    """Both classes read the first map, one of them the second too: only that sets it apart."""
    net = TwoMaps()
    net.head = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[5.0, 1.0], [5.0, 0.0]]))
    net.eval()
    found = FinerCAM("maps")(Score(net, 0), TWO_MAPS)
    torch.testing.assert_close(found.values[0, 0], TWO_MAPS[0, 1] / 4)


@pytest.mark.parametrize("score", [Score(conv_net(), 0, "probability"), Score(conv_net(), Regression(0))])
def test_finer_cam_is_refused_for_what_is_no_logit_of_a_class(score: Score) -> None:
    with pytest.raises(RefusedError, match="sets a class's logit apart from others', not"):
        FinerCAM()(score, nets.images().double())


def test_finer_cam_is_refused_without_another_class() -> None:
    with pytest.raises(RefusedError, match="the model has one: use GradCAM"):
        FinerCAM("maps")(Score(TwoMaps(), 0), TWO_MAPS)
    with pytest.raises(ArgumentError, match="at least one class, got similar=0"):
        FinerCAM(similar=0)


def test_x_grad_cam_conserves_the_score_and_is_sensitive_to_each_channel() -> None:
    """Fu et al. 2020: the sum is the logit without its bias, and a channel's part is what the logit loses without it."""
    net, x = conv_net(), nets.images().double()
    found = XGradCAM("features", relu=False)(Score(net, 1), x)
    bias = net.head.bias[1].detach()
    torch.testing.assert_close(found.values.sum((1, 2, 3)), found.score - bias)
    maps = maps_of(net, x)
    tail = nn.Sequential(nn.Identity(), net.pool, nn.Flatten(), net.head).eval()
    for k in range(5):
        channel = torch.zeros_like(maps)
        channel[:, k] = maps[:, k]
        with torch.no_grad():
            fall = (tail(maps) - tail(maps - channel))[:, 1]
        part = XGradCAM("0", relu=False)(Score(tail, 1), channel)
        torch.testing.assert_close(part.values.sum((1, 2, 3)), fall)


def test_x_grad_cam_names_what_channels_without_a_sum_would_have_added() -> None:
    class Tilted(TwoMaps):
        """Reads the first map by its left column only, so that gradients differ from place to place."""

        def forward(self, x: Tensor) -> Tensor:
            return self.maps(x)[:, :1, :, 0].sum((1, 2), keepdim=False)[:, None]

    x = torch.tensor([[[[1.0, -1.0], [2.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]]]], dtype=torch.float64)
    found = XGradCAM("maps", relu=False)(Score(Tilted(), 0), x)
    assert not found.values.any()
    torch.testing.assert_close(found.diagnostics["left_out"], found.score)
    whole = HiResCAM("maps")(Score(Tilted(), 0), x)
    torch.testing.assert_close(whole.values.sum((1, 2, 3)), found.diagnostics["left_out"])
