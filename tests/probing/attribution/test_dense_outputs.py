"""Segmentation and detection: maps of what is read at a place are what the network's own weights say."""

import nets
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from probing.attribution import LRP, AblationCAM, GradCAM, GradientTimesInput, HiResCAM, IntegratedGradients, Saliency
from probing.attribution.base import AttributionMethod
from probing.attribution.cam_layer import cam_layer
from probing.attribution.lrp.composites import Uniform
from probing.attribution.lrp.rules import Epsilon
from probing.models.geometry import RefusedError
from probing.models.loading import load
from probing.models.readings import Box, OutputError, Pixel, Region
from probing.models.scores import Score


class Linear(nn.Module):
    """A fully convolutional network without non-linearities, as `[n, classes, h, w]` in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.second(self.first(x))}


X = torch.randn(2, 2, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear() -> Linear:
    return nets.seeded(Linear()).double()  # type: ignore[return-value]


def receptive_field(model: Linear, target: int, row: int, column: int) -> Tensor:
    """The weight of every input value in one output value, path by path."""
    found = torch.zeros(X.shape[1:], dtype=torch.float64)
    first, second = model.first.weight.detach(), model.second.weight.detach()
    for a, b, c, d in [(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)]:
        i, j = row - 2 + 2 * a, column - 2 + 2 * b  # where the second layer looks
        y, x = 2 * i - 1 + c, 2 * j - 1 + d  # and from there the first
        if 0 <= i < 6 and 0 <= j < 5 and 0 <= y < X.shape[2] and 0 <= x < X.shape[3]:
            found[:, y, x] += second[target, :, a, b] @ first[:, :, c, d]
    return found


LRP_0 = LRP(Uniform(Epsilon(0.0)))


@pytest.mark.parametrize("place", [(3, 2), (0, 0), (5, 4)])
def test_a_linear_network_s_map_of_a_pixel_is_its_receptive_field_s_weights(place: tuple[int, int]) -> None:
    model = linear()
    score, field = Score(model, Pixel(2, place), output="out"), receptive_field(model, 2, *place)
    assert bool((field == 0).any())
    torch.testing.assert_close(Saliency()(score, X).values, field.expand(2, -1, -1, -1), rtol=1e-12, atol=1e-14)
    for method in (GradientTimesInput(), IntegratedGradients(steps=1), LRP_0):
        found = method(score, X)
        torch.testing.assert_close(found.values, field * X, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.values.flatten(1).sum(1), found.score, rtol=1e-10, atol=1e-12)


def test_a_region_s_map_is_the_mean_of_its_pixels_and_each_example_may_have_its_own() -> None:
    model, masks = linear(), torch.zeros(2, 6, 5, dtype=torch.bool)
    masks[0, 1, 2] = masks[0, 4, 4] = masks[1, 0, 3] = True
    found = Saliency()(Score(model, Region([1, 3], masks), output="out"), X).values
    pair = [receptive_field(model, 1, *place) for place in ((1, 2), (4, 4))]
    torch.testing.assert_close(found[0], (pair[0] + pair[1]) / 2, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], receptive_field(model, 3, 0, 3), rtol=1e-12, atol=1e-14)


def test_a_class_activation_map_of_a_pixel_needs_a_layer_and_shows_where_it_looks_there() -> None:
    model = linear()
    score = Score(model, Pixel(2, (3, 2)), output="out")
    with pytest.raises(
        RefusedError, match="a Pixel is read from a map, whose own layer would show but that: name the layer"
    ):
        GradCAM()(score, X)
    found = HiResCAM("first")(score, X).values[:, 0]
    maps = model.first(X).detach()
    wanted = torch.zeros_like(found)
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        i, j = 1 + 2 * a, 2 * b
        wanted[:, i, j] = maps[:, :, i, j] @ model.second.weight.detach()[2, :, a, b]
    torch.testing.assert_close(found, wanted)


def detector() -> FasterRCNN:
    """Return a Faster R-CNN of eight channels that keeps whatever it detects."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _detector().eval()


def _detector() -> FasterRCNN:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    body.out_channels = 8
    return FasterRCNN(
        body,
        min_size=32,
        max_size=32,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=TwoMLPHead(72, 16),
        box_predictor=FastRCNNPredictor(16, 3),
        box_score_thresh=0.0,
        box_detections_per_img=8,
        rpn_pre_nms_top_n_test=12,
        rpn_post_nms_top_n_test=6,
    )


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def own_boxes(model: FasterRCNN, label: int) -> list[tuple[Tensor, float]]:
    with torch.no_grad():
        found = model(IMAGES)
    best = [
        max((s, i) for i, (s, k) in enumerate(zip(o["scores"], o["labels"], strict=True)) if k == label)[1] for o in found
    ]
    return [(o["boxes"][i], float(o["scores"][i])) for o, i in zip(found, best, strict=True)]


def test_the_map_of_a_detected_box_is_its_score_s_gradient() -> None:
    model = detector()
    found = Saliency()(model, IMAGES, Box(1))
    for i, (box, score) in enumerate(own_boxes(model, 1)):
        x = IMAGES[i : i + 1].clone().requires_grad_()
        [out] = model(x)
        same = ((out["boxes"] - box).abs().amax(1) < 1e-3) & (out["labels"] == 1)
        [slope] = torch.autograd.grad(out["scores"][same][0], x)
        torch.testing.assert_close(found.values[i], slope[0], rtol=1e-3, atol=1e-7)
        assert float(found.score[i]) == pytest.approx(score, rel=1e-5)
        assert found.target[i].startswith("label 1 in box (")
    assert float(found.values.abs().max()) > 0


@pytest.mark.parametrize("method", [GradCAM("backbone.2"), AblationCAM("backbone.3"), IntegratedGradients(steps=2)])
def test_boxes_are_matched_by_overlap_in_changed_images(method: AttributionMethod) -> None:
    model = detector()
    boxes = torch.stack([box for box, _ in own_boxes(model, 2)])
    found = method(model, IMAGES, Box(2, boxes))
    assert found.values.isfinite().all()
    assert found.score.tolist() == pytest.approx([score for _, score in own_boxes(model, 2)], rel=1e-4)


def test_what_a_detector_does_not_tell_is_refused() -> None:
    model = detector()
    with pytest.raises(OutputError, match=r"a list of \['dict', 'dict'\]: explain a detected object by target=Box"):
        Saliency()(model, IMAGES, 1)
    nothing = Saliency()(model, IMAGES, Box(1, (0.0, 0.0, 1.0, 1.0)))
    assert nothing.score.tolist() == [0, 0]
    assert not nothing.values.any()
    with pytest.raises(RefusedError, match="do it out of place"):
        LRP()(model, IMAGES, Box(1))
    assert cam_layer(Score(model, Box(1)).named(IMAGES), IMAGES).startswith("backbone")  # not the proposals' own layer


@pytest.mark.parametrize(
    ("name", "target"),
    [("lraspp_mobilenet_v3_large", Pixel(3, (20, 30))), ("ssdlite320_mobilenet_v3_large", Box(1))],
)
def test_torchvision_s_models_of_segmentation_and_detection_load_by_reference(name: str, target: Pixel | Box) -> None:
    loaded = load(f"torchvision:{name}", weights="random")
    model = loaded.model
    if isinstance(target, Box):
        model.score_thresh, model.detections_per_img, model.topk_candidates = 0.0, 8, 8  # random ones are sure of nothing
        assert loaded.class_index("person") == 1
        target = Box(int(model(IMAGES)[0]["labels"][0]))
        score = Score(loaded, target)
        images = IMAGES[:1]
    else:
        assert loaded.class_index("bird") == 3
        score, images = Score(loaded, target, output="out"), IMAGES
    found = Saliency()(score, images)
    assert found.values.shape == images.shape
    assert found.values.isfinite().all()


def test_torchvision_s_models_of_video_load_by_reference() -> None:
    loaded = load("torchvision:mc3_18", weights="random")
    assert len(loaded.classes) == 400
    assert loaded.transform is None
