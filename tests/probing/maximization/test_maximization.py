"""Activation maximisation against closed forms (AM-1 to AM-13), planted templates, and bad input."""

import copy
from collections import OrderedDict
from dataclasses import replace

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.data.examples import TensorExamples
from probing.maximization import (
    Caricature,
    Channel,
    Direction,
    Diversity,
    FeatureInversion,
    Fourier,
    Layer,
    Logit,
    Maco,
    Maximization,
    Maximize,
    Neuron,
    Pixels,
    Shared,
    Space,
    TensorDirection,
    Together,
    maximize,
    presets,
)
from probing.maximization.ascent_loop import ZeroGradientError
from probing.maximization.objective import Seen
from probing.maximization.objective_reader import ImageSizeError, Reader
from probing.maximization.objectives import UnitError
from probing.maximization.optimizers import Adam, Normalized, Plain, Progress
from probing.maximization.parameterisations import (
    Canvas,
    ImageOptionError,
    Plan,
    recoloured,
    spectrum_slope,
)
from probing.maximization.pixel_space import SpaceError
from probing.maximization.regularizers import (
    L1,
    L2,
    Ball,
    Blur,
    Box,
    ClipSmallContribution,
    ClipSmallNorm,
    Decay,
    TotalVariation,
    blurred,
)
from probing.maximization.run import NotFiniteError
from probing.maximization.transforms import (
    STANDARD,
    Crop,
    Jitter,
    Pad,
    Rotate,
    Scale,
    TransformError,
    draw,
    growth,
    standard,
    viewed,
)
from probing.models.precision import Precision
from probing.models.scores import ModelModeError
from probing.results.result import rebuild
from probing.store.store import ActivationStore

RAW = Space.plain("grey", maximum=255)
"""Model space in 8-bit levels: parameters of `Pixels` are the input itself."""
DOUBLE = Precision("float64")


class Linear(nn.Module):
    """One output, `⟨w, x⟩`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


def climbed(weight: Tensor, *regularizers: object, steps: int, rate: float = 1.0, noise: float = 0.0) -> Maximization:
    """Maximise a linear unit in raw levels, without random views."""
    settings = Maximize(
        image=Pixels(noise=noise),
        regularizers=regularizers,  # type: ignore[arg-type]  # checked as it runs
        transforms=(),
        ascent=Plain(rate),
        steps=steps,
        size=tuple(weight.shape[-2:]),  # type: ignore[arg-type]
    )
    return settings(Linear(weight).eval(), Logit(0), space=RAW)


def weights(size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(1, size, size, generator=torch.Generator().manual_seed(seed))


def test_am_1_l2_decay_ends_where_a_step_restores_what_it_takes() -> None:
    weight = torch.tensor([[[3.0, 4.0]]])
    found = climbed(weight, Decay(0.01), steps=201)
    reached = 1 - 0.99**200  # what a start at 0 still lacks shrinks by the decay in each step
    expected = [297 * reached, 396 * reached]
    assert found.images.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_am_2_on_a_ball_the_optimum_is_the_weights_direction_at_its_radius() -> None:
    weight = weights()
    found = climbed(weight, Ball(10.0), steps=200, noise=3.0)
    assert torch.allclose(found.images[0], 10 * weight / weight.norm(), atol=1e-3)


def test_am_3_an_l2_penalty_ends_at_the_weights_over_twice_its_weight() -> None:
    weight = weights()
    found = climbed(weight, L2(0.25), steps=60, rate=0.5)
    assert torch.allclose(found.images[0], weight / 0.5, atol=1e-4)


def test_am_4_decay_and_blur_end_at_the_filters_fixed_point() -> None:
    weight = weights(16)
    share, width, rate = 0.1, 0.8, 2.0
    found = climbed(weight, Decay(share), Blur(width, 1, "circular"), steps=400, rate=rate)
    impulse = torch.zeros(1, 1, 16, 16)
    impulse[..., 0, 0] = 1
    transfer = torch.fft.fft2(blurred(impulse, width, "circular"))[0]
    kept = (1 - share) * transfer
    expected = torch.fft.ifft2(rate * torch.fft.fft2(weight) * kept / (1 - kept)).real
    assert torch.allclose(found.images[0], expected, atol=1e-3)
    flat = torch.full((1, 1, 9, 9), 3.0)
    assert torch.allclose(blurred(flat, 1.3, "reflect"), flat)


def test_am_5_small_contributions_are_clipped_by_size_not_by_sign() -> None:
    x = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 1, 1, 4)
    g = torch.tensor([-0.1, 0.3, 2.0, 0.01]).view(1, 1, 1, 4)
    found = ClipSmallContribution(50.0).after(x, g, 0, RAW)
    assert found.flatten().tolist() == [0, -2, 0.5, 0]


def test_am_6_progress_raises_a_linear_unit_by_the_same_gain_each_step() -> None:
    weight = weights()
    settings = Maximize(Pixels(), (), (), Progress(7.0), steps=12, size=8)
    found = settings(Linear(weight).eval(), Logit(0), space=RAW)
    assert torch.allclose(found.trace.diff(dim=1), torch.tensor(7.0), atol=1e-3)
    slower = replace(settings, ascent=Progress(7.0, 1e-3))(Linear(weight).eval(), Logit(0), space=RAW)
    expected = 1e-3 * weight.square().sum()
    assert torch.allclose(slower.trace.diff(dim=1), expected, atol=1e-3)


def spectrum(canvas: Canvas) -> Tensor:
    return canvas.parameters[0]


def plan(size: int, *, seeds: tuple[int, ...] = (0,), order: str = "grey") -> Plan:
    space = Space.plain(order)  # type: ignore[arg-type]
    return Plan(seeds, [1] * len(seeds), (size, size), space, torch.device("cpu"))


def test_am_7_the_constant_coefficient_alone_gives_a_constant_image_of_a_quarter_of_it() -> None:
    canvas = Fourier().begin(plan(12))
    with torch.no_grad():
        spectrum(canvas).zero_()[..., 0, 0, 0] = 2.0
    assert torch.allclose(canvas.render(), torch.full((1, 1, 12, 12), 0.5).sigmoid())


@pytest.mark.parametrize(("size", "expected"), [(32, 1.59), (128, 1.90), (224, 1.99)])
def test_am_8_pixels_vary_as_stated_for_a_unit_spectrum(size: int, expected: float) -> None:
    f = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size)[None, :])
    power = f.double().clamp(min=1 / size) ** -2 * 2
    power[:, [0, size // 2]] /= 2  # what is odd there leaves no trace in a real image
    exact = float(power.mean().sqrt()) / 4
    assert exact == pytest.approx(expected, rel=0.02)
    canvas = Fourier(sd=1.0).begin(plan(size, seeds=tuple(range(20_000 // size))))
    deviation = canvas.render().detach().logit().square().mean().sqrt()
    assert float(deviation) == pytest.approx(exact, rel=0.01)


def test_am_9_the_first_decorrelated_colour_is_almost_grey() -> None:
    first = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert recoloured(first).flatten().tolist() == pytest.approx([0.5628, 0.5845, 0.5845], abs=1e-4)


def test_am_10_total_variation_of_a_step_is_its_height_times_its_length() -> None:
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 1
    assert TotalVariation(1.0).amount(step).tolist() == [4.0]


def test_am_11_small_steps_never_lower_a_smooth_unit() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 2))
    settings = Maximize(Pixels(1.0), (), (), Plain(0.01), steps=40, size=6, redirect=0)
    found = settings(nets.seeded(net), Logit(1), space=RAW)
    assert (found.trace.diff(dim=1) >= 0).all()
    assert found.trace[0, -1] > found.trace[0, 0] + 0.1


@pytest.mark.kernels
def test_am_12_views_that_change_nothing_change_no_bit() -> None:
    net = nets.seeded(nets.ConvNet())
    bare = Maximize(transforms=(), steps=5, size=8)
    idle = replace(bare, transforms=(Jitter(0), Scale((1.0,)), Rotate((0.0,)), Pad(0)))
    a, b = (s(net, Logit(0), space=Space.plain("grey")) for s in (bare, idle))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.trace, b.trace)


def test_am_13_a_planted_template_is_recovered_and_nothing_drawn_outside_its_field() -> None:
    template = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(3))
    conv = nn.Conv2d(1, 2, 5)
    with torch.no_grad():
        conv.weight.copy_(torch.stack([template, -template]))
        conv.bias.zero_()
    net = nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU())).eval()
    settings = Maximize(Pixels(0.0), (Decay(0.05),), (), Plain(1.0), steps=100, size=13)
    found = settings(net, Neuron("relu", 0), space=RAW)
    image = found.images[0, 0]
    inside = image[4:9, 4:9]
    cosine = torch.cosine_similarity(inside.flatten(), template.flatten(), dim=0)
    assert float(cosine) > 0.99
    image[4:9, 4:9] = 0
    assert not image.any()


@pytest.mark.kernels
def test_a_template_is_recovered_from_noise_in_fourier_space_too() -> None:
    template = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(3))
    conv = nn.Conv2d(1, 1, 5)
    with torch.no_grad():
        conv.weight.copy_(template[None] - template.mean())
    settings = Maximize(Fourier(), (L2(0.2),), (), Adam(0.05), steps=150, size=9)
    net = nn.Sequential(OrderedDict(conv=conv)).eval()
    found = settings(net, Neuron("conv", 0), space=Space((0.5,), (0.1,), "grey"))
    inside = found.images[0, 0, 2:7, 2:7].flatten()
    cosine = torch.cosine_similarity(inside, conv.weight.detach().flatten(), dim=0)
    assert float(cosine) > 0.99


def test_adam_equals_torchs_where_gradients_are_not_small(generator: torch.Generator) -> None:
    ours, theirs = torch.zeros(2, 6), nn.Parameter(torch.zeros(2, 6))
    move = Adam(0.1, epsilon=0.0).begin([ours])
    adam = torch.optim.Adam([theirs], lr=0.1, maximize=True, eps=1e-12)
    for _ in range(5):
        gradient = torch.randn(2, 6, generator=generator)
        move([gradient])
        theirs.grad = gradient
        adam.step()
    assert torch.allclose(ours, theirs.detach(), atol=1e-5)
    still = torch.zeros(1, 2)
    Adam(0.1).begin([still])([torch.tensor([[1.0, 1e-7]])])
    assert float(still[0, 1]) < 1e-4 * float(still[0, 0]) * 10


# Networks, sizes and views


def small(kind: str) -> tuple[nn.Module, Space, int, list[object]]:
    """Return a network with random weights, its space, a size for it, and objectives."""
    import timm
    import torchvision

    torch.manual_seed(0)
    if kind == "torchvision CNN":
        net = torchvision.models.resnet18()
        return net, Space(), 48, [Channel("layer2", 3), Neuron("layer3", 1), Logit(7)]
    if kind == "timm CNN":
        net = timm.create_model("tf_efficientnet_lite0")
        return net, Space(), 40, [Channel("blocks.2", 3), Logit(7)]
    if kind == "timm ViT":
        net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3)
        return net, Space(size=64), 52, [Channel("blocks.0", 3), Logit(7)]
    if kind == "torchvision ViT":
        net = torchvision.models.VisionTransformer(64, 16, 2, 3, 48, 96, num_classes=10)
        return net, Space(size=64), 52, [Channel("encoder.layers.encoder_layer_0", 3)]
    return nets.ConvNet(), Space.plain("grey"), 17, [Channel("features.2", 1), Logit(2)]


@pytest.mark.kernels
@pytest.mark.parametrize("kind", ["torchvision CNN", "timm CNN", "timm ViT", "torchvision ViT", "grey"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_networks_of_all_kinds_are_maximised_and_left_as_found(kind: str) -> None:
    net, space, size, goals = small(kind)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    asked = None if space.size else size  # a transformer's views must have its size
    found = maximize(net, goals, space=space, size=asked, steps=6)  # type: ignore[arg-type]
    assert found.images.shape == (len(goals), space.channels, size, size)
    assert found.activation.isfinite().all()
    assert (found.gradient_norms > 0).all()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def convs() -> nn.Module:
    layers = OrderedDict(
        first=nn.Conv2d(3, 8, 3, padding=1), act=nn.ReLU(inplace=True), second=nn.Conv2d(8, 40, 3), end=nn.ReLU()
    )
    return nets.seeded(nn.Sequential(layers))


@pytest.mark.kernels
def test_the_same_call_gives_the_same_bits_and_another_seed_another_image() -> None:
    a, b, c = (maximize(convs(), Channel("second", 3), space=Space(), size=16, steps=8, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.trace, b.trace)
    assert not torch.allclose(a.images, c.images, atol=0.1)


@pytest.mark.kernels
def test_one_unit_alone_equals_the_same_unit_in_a_batch_of_32() -> None:
    goals = [Channel("second", k) for k in range(32)]
    settings = Maximize(steps=12, size=16)
    together = settings(convs(), goals, space=Space())
    assert together.batch == 32
    for k in (0, 31):
        alone = settings(convs(), goals[k], space=Space())
        assert torch.allclose(alone.images[0], together.images[k], atol=1e-3)
        assert torch.allclose(alone.trace[0], together.trace[k], rtol=1e-4, atol=1e-4)


@pytest.mark.kernels
def test_batches_do_not_change_images() -> None:
    goals = [Channel("second", k) for k in range(5)]
    whole, parts = (Maximize(steps=8, size=16, batch=b)(convs(), goals, space=Space()) for b in (32, 2))
    assert (whole.batch, parts.batch) == (5, 2)
    assert torch.allclose(whole.images, parts.images, atol=1e-3)


@pytest.mark.kernels
def test_half_precision_weights_run_in_float32() -> None:
    half = convs().half()
    found = maximize(half, Channel("second", 3), space=Space(), size=16, steps=8)
    wide = maximize(convs().half().float(), Channel("second", 3), space=Space(), size=16, steps=8)
    assert torch.equal(found.images, wide.images)
    assert all(p.dtype == torch.float16 for p in half.parameters())


def test_bfloat16_passes_climb_as_well() -> None:
    plain, fast = (
        maximize(convs(), Channel("second", 3), space=Space(), size=16, steps=30, precision=p)
        for p in (Precision(), Precision("fast"))
    )
    assert fast.images.dtype == torch.float32
    assert float(fast.activation[0]) == pytest.approx(float(plain.activation[0]), rel=0.05)


def test_the_pass_ends_after_the_deepest_layer_asked_for() -> None:
    net = convs()
    reader = Reader.of(net, [Channel("first", 0)], Precision("reference"), torch.device("cpu"))
    reader.values(torch.randn(1, 3, 16, 16, requires_grad=True))
    calls: list[int] = []
    last = reader.prepared.model.get_submodule("second")
    handle = last.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(5):
        reader.values(torch.randn(1, 3, 18, 18, requires_grad=True))
    handle.remove()
    assert len(calls) == 1  # the first pass of a shape goes to its end


# Objectives


def seen(rows: Tensor, layer: str = "a") -> Seen:
    return Seen({layer: rows})


def test_objectives_are_what_their_formulas_say(generator: torch.Generator) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=generator)
    v = torch.randn(3, generator=generator)
    v_map = torch.randn(3, 4, 5, generator=generator)
    tokens = torch.randn(2, 7, 3, generator=generator)
    assert torch.allclose(Channel("a", 2)(seen(maps)), maps[:, 2].mean((1, 2)))
    assert torch.allclose(Channel("a", 2)(seen(tokens)), tokens[:, :, 2].mean(1))
    flat = maps[:, :, 0, 0]
    assert torch.equal(Channel("a", 2)(seen(flat)), flat[:, 2])
    assert torch.allclose(Direction("a", v)(seen(flat)), flat @ v, atol=1e-6)
    last = Direction("a", v, last=True)(seen(maps.movedim(1, -1)))
    assert torch.allclose(last, Direction("a", v)(seen(maps)), atol=1e-6)
    assert torch.allclose(Channel("a", 2, last=True)(seen(maps.movedim(1, -1))), maps[:, 2].mean((1, 2)))
    assert torch.allclose(Neuron("a", 1)(seen(maps)), maps[:, 1, 2, 2])
    assert torch.allclose(Neuron("a", 1, (0, 4))(seen(maps)), maps[:, 1, 0, 4])
    assert torch.allclose(Layer("a")(seen(maps)), maps.square().mean((1, 2, 3)))
    plain = torch.einsum("nchw,c->nhw", maps, v)
    assert torch.allclose(Direction("a", v)(seen(maps)), plain.mean((1, 2)), atol=1e-6)
    cosine = plain / (maps.norm(dim=1) * v.norm())
    expected = (plain * cosine.clamp(min=0.1) ** 2).mean((1, 2))
    assert torch.allclose(Direction("a", v, 2.0)(seen(maps)), expected, atol=1e-6)
    assert torch.allclose(TensorDirection("a", v_map)(seen(maps)), (maps * v_map).sum((1, 2, 3)), atol=1e-5)
    assert Logit(1)(Seen({"": maps[:, :, 0, 0]})).tolist() == maps[:, 1, 0, 0].tolist()


def test_sums_differences_and_multiples_are_those_of_values(generator: torch.Generator) -> None:
    maps = torch.randn(2, 3, 4, 4, generator=generator)
    a, b = Channel("a", 0), Channel("a", 1)
    both = 2 * a - b / 4 + (-b)
    expected = 2 * a(seen(maps)) - b(seen(maps)) / 4 - b(seen(maps))
    assert torch.allclose(both(seen(maps)), expected)
    assert both.name == "2 a:0 - 0.25 a:1 - a:1"
    assert both == 2 * Channel("a", 0) - Channel("a", 1) / 4 + (-Channel("a", 1))


def test_diversity_is_highest_for_images_without_a_common_gram_matrix() -> None:
    maps = torch.zeros(2, 2, 1, 3)
    maps[0, 0] = maps[1, 1] = 1
    assert Diversity("a", 2)(seen(maps)).tolist() == [0, 0]
    assert Diversity("a", 2)(seen(maps[:1].repeat(2, 1, 1, 1))).tolist() == pytest.approx([-1, -1])


def test_images_of_one_objective_differ_and_diversity_drives_them_apart() -> None:
    def unlike(weight: float) -> float:
        goal = Channel("second", 5) + weight * Diversity("end", 3)
        found = maximize(convs(), goal, space=Space(), size=16, steps=25, transforms=())
        assert found.names[2].endswith("(3)")
        assert not torch.allclose(found.images[0], found.images[1], atol=0.1)
        return float(Diversity("end", 3)(seen(convs()(found.images).detach(), "end")).mean())

    assert unlike(100.0) > unlike(0.0) + 0.1


@pytest.mark.kernels
def test_minus_an_objective_is_minimised() -> None:
    up, down = (
        maximize(convs(), goal, space=Space(), size=16, steps=20) for goal in (Channel("second", 5), -Channel("second", 5))
    )
    assert float(up.activation[0]) > 0.3 - float(down.activation[0])


@pytest.mark.kernels
def test_feature_inversion_finds_a_picture_with_the_same_activations(
    generator: torch.Generator,
) -> None:
    picture = Space().encode(torch.rand(1, 3, 16, 16, generator=generator))[0]
    goal = FeatureInversion("first", picture)
    settings = Maximize(Pixels(), (), (), Adam(4.0), steps=100, size=16)
    found = settings(convs(), goal, space=Space())
    assert float(found.activation[0]) > -0.05
    assert float(found.trace[0, 0]) < -0.3
    assert (found.images[0] - picture).abs().mean() < 0.5 * picture.abs().mean()


@pytest.mark.kernels
def test_a_caricature_exceeds_its_picture_in_its_own_direction(
    generator: torch.Generator,
) -> None:
    picture = Space().encode(torch.rand(1, 3, 16, 16, generator=generator))[0]
    goal = Caricature("first", picture, 1.0)
    settings = Maximize(Pixels(), (), STANDARD, Adam(8.0), steps=60, size=16)
    found = settings(convs(), goal, space=Space())
    margin = Pad(12).padded(picture[None], Space())
    own = convs().get_submodule("first")(margin).square().sum(1).mean()
    assert float(found.activation[0]) > float(own.detach())
    with pytest.raises(ImageOptionError, match=r"shape \(3, 16, 16\), the images have \(3, 20, 20\)"):
        maximize(convs(), goal, space=Space(), size=20, steps=2)


def test_dreams_start_from_the_picture_given(generator: torch.Generator) -> None:
    start = torch.rand(1, 3, 16, 16, generator=generator) * 0.9 + 0.05
    for image in (Pixels(), Fourier()):
        found = maximize(convs(), Layer("second"), image=image, space=Space(), size=16, steps=1, start=start)
        assert torch.allclose(found.pixels, start, atol=1e-4)


def test_maco_changes_phases_only() -> None:
    maco = Maco().begin(plan(16))
    with torch.no_grad():
        maco.parameters[0].add_(torch.randn(1, 1, 16, 9, generator=torch.Generator().manual_seed(1)))
    planes = maco.render().detach().logit()
    power = torch.fft.rfft2(planes, norm="ortho").abs()[0, 0]
    own = Maco().begin(plan(16)).render().detach().logit()
    start = torch.fft.rfft2(own, norm="ortho").abs()[0, 0]
    assert torch.allclose(power[:, 1:8], start[:, 1:8], rtol=1e-3)
    assert not torch.allclose(planes, own, atol=0.1)
    assert float(own.std()) == pytest.approx(1.0, rel=0.05)


def test_images_that_go_together_share_their_coarse_part() -> None:
    goal = Together((Channel("second", 1), Channel("second", 2)))

    def coarse(image: Fourier | Shared) -> float:
        found = maximize(convs(), goal, image=image, space=Space(), size=16, steps=2, transforms=())
        assert found.objective == (0, 0)
        rows = nn.functional.avg_pool2d(found.pixels, 8).flatten(1)
        rows = rows - rows.mean(1, keepdim=True)
        return float(torch.cosine_similarity(rows[0], rows[1], dim=0))

    assert coarse(Shared(sd=2.0)) > 0.97 > coarse(Fourier()) + 0.1


def test_objectives_that_go_together_see_channels_last_as_each_does_alone(generator: torch.Generator) -> None:
    maps = torch.randn(2, 4, 5, 3, generator=generator)
    parts = (Channel("a", 0), Channel("a", 2))
    found = Together(parts)(Seen({"a": maps}, last=("a",)))
    assert torch.allclose(found, torch.stack([maps[0, ..., 0].mean(), maps[1, ..., 2].mean()]))


# Regularisers, presets, views


def test_small_pixels_are_set_to_the_mean() -> None:
    x = torch.tensor([[3.0, 0.1], [0.0, 2.0]]).view(1, 2, 1, 2)
    assert ClipSmallNorm(50.0).after(x, x, 0, RAW).flatten().tolist() == [3.0, 0, 0.0, 0]


def test_boxes_hold_what_a_picture_can() -> None:
    space = Space((0.5, 0.25, 0.0), (0.1, 0.2, 0.3))
    wild = 500 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    boxed = Box().after(wild, wild, 0, space)
    pixels = space.decode(boxed * space.levels(boxed))
    assert float(pixels.min()) == pytest.approx(0, abs=1e-5)
    assert float(pixels.max()) == pytest.approx(1, abs=1e-5)


def test_blur_comes_every_so_many_steps_the_first_included() -> None:
    x = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    blur = Blur(1.0, 4)
    changed = [not torch.equal(blur.after(x, x, step, RAW), x) for step in range(9)]
    assert changed == [True, False, False, False, True, False, False, False, True]


def test_l1_penalises_absolute_values() -> None:
    assert L1(0.5).amount(torch.tensor([1.0, -3.0]).view(1, 1, 1, 2)).tolist() == [2.0]


def test_presets_hold_the_numbers_of_the_paper() -> None:
    assert presets.A.regularizers == (Blur(0.5, 4), ClipSmallNorm(50.0), Box())
    assert presets.B.regularizers == (Decay(0.3), ClipSmallNorm(20.0), Box())
    assert presets.C.regularizers == (Decay(0.0001), Blur(1.0, 4), Box())
    assert presets.D.regularizers == (Blur(0.5, 4), ClipSmallContribution(90.0), Box())
    assert presets.UNREGULARIZED.regularizers == (Box(),)
    assert set(presets.PRESETS) == {"fourier", "A", "B", "C", "D", "unregularized"}


def test_operators_rest_in_the_last_step_so_that_the_activation_is_the_images() -> None:
    found = climbed(weights(), Decay(0.5), steps=4)
    assert float(found.activation[0]) == pytest.approx(float(found.trace[0, -1]), rel=1e-6)
    assert torch.equal(found.images, found.best)


def test_unregularised_images_have_a_flatter_spectrum_than_fourier_images() -> None:
    flat, natural = (
        replace(p, steps=12, size=48)(convs(), Channel("second", 3), space=Space())
        for p in (presets.UNREGULARIZED, presets.FOURIER)
    )
    assert float(spectrum_slope(flat.pixels)) > float(spectrum_slope(natural.pixels)) + 0.5


def test_white_noise_has_slope_zero_and_a_constant_image_none() -> None:
    noise = torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert spectrum_slope(noise).abs().max() < 0.1
    assert spectrum_slope(torch.ones(1, 3, 16, 16)).isnan().all()


def test_views_have_no_black_corners_and_differ_between_images() -> None:
    white = Space().encode(torch.ones(6, 3, 32, 32))
    draws = draw(STANDARD[1:], range(6), 1)[0]
    views = viewed(white, STANDARD[1:], draws, Space())
    assert torch.allclose(views, white, atol=1e-4)
    ramp = torch.arange(32.0).expand(6, 3, 32, 32)
    views = viewed(ramp, STANDARD[1:], draws, Space())
    assert all(not torch.allclose(views[0], view, atol=0.1) for view in views[1:])


def test_margins_are_grey_in_model_space() -> None:
    space = Space()
    padded = Pad(2).padded(torch.zeros(1, 3, 4, 4), space)
    assert torch.allclose(space.decode(padded)[..., :2], torch.tensor(0.5))
    assert torch.allclose(padded[..., 2:6, 2:6], torch.zeros(()), atol=1e-6)
    mirrored = Pad(1, "reflect").padded(torch.arange(9.0).view(1, 1, 3, 3), RAW)
    assert mirrored[0, 0, 0].tolist() == [4, 3, 4, 5, 4]
    assert growth(STANDARD) == 24


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [(12,), (4, 4, 4)])
def test_what_is_no_picture_is_refused_with_its_reason(size: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(ImageOptionError, match=r"what is optimised is a picture, .* a series or a volume has no such range"):
        maximize(net, Channel("0", 1), space=Space.plain(), size=size, steps=1)


def test_standard_views_are_lucids_and_smaller_where_images_are_small() -> None:
    assert standard(224) == standard(128) == STANDARD
    assert standard(28)[:2] == (Pad(2), Jitter(2))
    assert standard(28)[2:4] == STANDARD[2:4]
    found = maximize(convs(), Channel("second", 0), space=replace(Space(), size=32), steps=2)
    assert found.images.shape[2:] == (26, 26)
    with pytest.raises(
        ImageOptionError,
        match="at least 1 pixel, got -2 x -2: draw them with smaller margins, or give a larger side by size=",
    ):
        maximize(
            convs(),
            Channel("second", 0),
            space=replace(Space(), size=22),
            steps=2,
            transforms=STANDARD,
        )


def test_jitter_shifts_by_whole_pixels_in_its_range() -> None:
    draws = torch.rand(400, 2, generator=torch.Generator().manual_seed(0))
    matrices = Jitter(4).matrices(draws, (9, 9))
    assert matrices is not None
    assert sorted(set(matrices[:, 0, 2].tolist())) == [-2, -1, 0, 1, 2]
    image = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    moved = viewed(image, [Jitter(2)], torch.tensor([[0.9, 0.5]]), RAW)
    assert torch.allclose(moved[..., :-1], image[..., 1:], atol=1e-5)


def test_a_quarter_turn_and_a_zoom_move_pixels_where_they_should() -> None:
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = viewed(image, [Rotate((90.0,))], torch.zeros(1, 1), RAW)
    assert torch.allclose(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5)
    zoomed = viewed(image, [Scale((2.0,))], torch.zeros(1, 1), RAW)
    small_part = nn.functional.interpolate(image[..., 1:7, 1:7], scale_factor=2, mode="bilinear")
    assert torch.allclose(zoomed, small_part[..., 2:10, 2:10], atol=1e-5)


def test_fault_19_crops_have_sizes_within_the_range_asked_for() -> None:
    draws = torch.rand(2000, 3, generator=torch.Generator().manual_seed(0))
    matrices = Crop(0.20, 0.25).matrices(draws, (100, 100))
    assert matrices is not None
    sizes = matrices[:, 0, 0]
    assert 0.20 <= float(sizes.min()) < 0.202
    assert 0.248 < float(sizes.max()) <= 0.25
    reach = matrices[:, :2, 2].abs().amax(1) + 50 * sizes
    assert float(reach.max()) <= 50.0001  # the window stays within the image
    with pytest.raises(TransformError, match="smallest <= largest"):
        Crop(0.3, 0.2)


# Dead units and other bad input


def dead(which: int | None = None) -> nn.Module:
    """A network whose unit `which` (all, by default) is negative for every picture."""
    net = convs()
    bias = net.get_submodule("second").bias
    with torch.no_grad():
        bias[slice(None) if which is None else which] = -1e4  # type: ignore[index]
    return net


def test_a_unit_without_gradient_is_reported_and_no_noise_is_returned() -> None:
    net = dead(1)
    found = maximize(net, [Channel("end", 0), Channel("end", 1)], space=Space(), size=16, steps=20)
    assert found.dead.tolist() == [False, True]
    assert not found.images[1].any()
    assert found.captions()[1].endswith("no gradient")
    with pytest.raises(ZeroGradientError, match=r"'end:1' is zero at every step"):
        maximize(net, Channel("end", 1), space=Space(), size=16, steps=20)


def test_redirected_gradients_wake_a_unit_that_starts_dead() -> None:
    conv = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        conv.bias.fill_(-0.4)
    net = nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU(inplace=True))).eval()
    space = Space((0.5,), (1.0,), "grey")  # noise around the mean stays below the threshold
    settings = Maximize(Fourier(), (), (), steps=40, size=9)
    awake = settings(net, Channel("relu", 0), space=space)
    assert not awake.dead.any()
    assert float(awake.trace[0, 0]) == 0 < float(awake.activation[0])
    with pytest.raises(ZeroGradientError):
        replace(settings, redirect=0)(net, Channel("relu", 0), space=space)


@pytest.mark.parametrize("call", ["module", "function", "in place", "clamp", "relu6"])
def test_redirection_reaches_rectifiers_however_they_are_called(call: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x - 3
            if call == "in place":
                torch.relu_(y)
                return y.flatten(1)
            calls = {
                "module": nn.ReLU(),
                "function": torch.relu,
                "clamp": lambda u: u.clamp(min=0),
                "relu6": nn.functional.relu6,
            }
            return calls[call](y).flatten(1)

    reader = Reader.of(Net().eval(), [Logit(0)], Precision("reference"), torch.device("cpu"))
    for redirect, expected in ((False, 0.0), (True, 1.0)):
        x = torch.zeros(1, 1, 1, 2, requires_grad=True)
        (slope,) = torch.autograd.grad(reader.values(x, redirect=redirect).sum(), x)
        assert slope.flatten().tolist() == [expected, 0.0]


def test_bad_units_positions_and_directions_are_named() -> None:
    def bad(goal: object) -> None:
        maximize(convs(), goal, space=Space(), size=16, steps=2)  # type: ignore[arg-type]

    with pytest.raises(UnitError, match=r"unit 40 is out of range: layer 'second' has 40 units, 0 to 39"):
        bad(Channel("second", 40))
    with pytest.raises(UnitError, match="unit -1 is out of range"):
        bad(Channel("second", -1))
    with pytest.raises(UnitError, match=r"position \(99, 0\) is outside the maps of layer 'second'"):
        bad(Neuron("second", 0, (99, 0)))
    with pytest.raises(UnitError, match="has 3 components, layer 'second' has 40 units"):
        bad(Direction("second", torch.ones(3)))
    with pytest.raises(UnitError, match=r"has shape \(3,\), layer 'second' returns"):
        bad(TensorDirection("second", torch.ones(3)))
    with pytest.raises(LookupError, match="has no layer 'secnd'"):
        bad(Channel("secnd", 0))


def test_a_neuron_needs_a_layer_with_positions() -> None:
    net = nets.seeded(nets.ConvNet())
    with pytest.raises(UnitError, match=r"a neuron needs maps .* use a channel"):
        maximize(net, Neuron("head", 0), space=Space.plain("grey"), size=8, steps=2)
    with pytest.raises(UnitError, match="unit 3 is out of range: the model's output has 3 units"):
        maximize(net, Logit(3), space=Space.plain("grey"), size=8, steps=2)


def test_images_too_small_for_the_network_are_refused() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 4, 7), b=nn.MaxPool2d(4))).eval()
    with pytest.raises(ImageSizeError, match=r"fails on images of 3 x 4 x 4 .*choose a size"):
        maximize(net, Channel("b", 0), space=Space(), size=4, steps=2, transforms=())


def test_other_bad_input_is_refused() -> None:
    goal = Channel("second", 0)
    with pytest.raises(SpaceError, match="does not tell how pixels become its input"):
        maximize(convs(), goal, size=16)
    with pytest.raises(SpaceError, match="in pixels by size="):
        maximize(convs(), goal, space=Space())
    with pytest.raises(ModelModeError, match="training mode"):
        maximize(convs().train(), goal, space=Space(), size=16)
    with pytest.raises(ImageOptionError, match="Decay works on pixels, and Fourier images"):
        maximize(convs(), goal, regularizers=[Decay(0.1)], space=Space(), size=16)
    with pytest.raises(ImageOptionError, match=r"pixels in \[0, 1\], got -1"):
        maximize(convs(), goal, space=Space(), size=16, start=-torch.ones(1, 3, 16, 16))
    with pytest.raises(ImageOptionError, match="one for each of 1 images, got 2"):
        maximize(convs(), goal, space=Space(), size=16, start=torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="at least one objective"):
        maximize(convs(), [], space=Space(), size=16)
    with pytest.raises(ValueError, match="steps and batch must be at least 1"):
        maximize(convs(), goal, space=Space(), size=16, steps=0)
    with pytest.raises(ValueError, match=r"objectives of \[2, 3\] images can't be added"):
        Diversity("second", 2) + Diversity("second", 3)


def test_a_rate_too_high_is_an_error_and_not_an_image_of_nan() -> None:
    class Explosive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().flatten(1).sum(1, keepdim=True)

    settings = Maximize(Pixels(), (), (), Plain(1e6), steps=9, size=4)
    with pytest.raises(NotFiniteError, match="became NaN or infinite at step 1: lower the rate"):
        settings(Explosive().eval(), Logit(0), space=RAW)


class Hungry(nn.Module):
    """A network with memory for two images in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convs()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("simulated: out of memory")
        y: Tensor = self.inner(x)
        return y


def test_fault_16_out_of_memory_halves_the_batch_and_says_so_instead_of_going_on_with_stale_features() -> None:
    goals = [Channel("inner.second", k) for k in range(5)]
    settings = Maximize(steps=6, size=16)
    found = settings(Hungry().eval(), goals, space=Space())
    assert found.batch == 2
    assert found.notes == ("Out of memory with 5 images in a pass: went on with at most 2.",)
    roomy = settings(convs(), [Channel("second", k) for k in range(5)], space=Space())
    assert roomy.notes == ()
    assert found.images.shape == roomy.images.shape
    with pytest.raises(torch.OutOfMemoryError, match="simulated"):
        settings(Hungry().eval(), Diversity("inner.second", 3), space=Space())


def test_fault_16_an_error_of_the_network_ends_the_run_and_leaves_no_hook() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            raise RuntimeError("a kernel failed")

    net = Failing().eval()
    with pytest.raises(ImageSizeError, match="a kernel failed"):
        maximize(net, Channel("conv", 0), space=Space(), size=16, steps=3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# Results and data


def test_results_are_saved_loaded_and_their_method_rebuilt(tmp_path: object) -> None:
    settings = Maximize(Pixels(3.0), (Decay(0.1), Box()), (Jitter(2),), Normalized(2.0), steps=3, size=12)
    found = settings(convs(), Channel("second", 3), space=Space())
    loaded = Maximization.load(found.save(tmp_path))  # type: ignore[arg-type]
    assert torch.equal(loaded.images, found.images)
    assert rebuild(found.provenance.method) == settings
    assert [p.size for p in loaded.pictures()] == [(12, 12)]
    assert loaded.to_pandas().shape == (1, 7)


def test_images_are_placed_among_data() -> None:
    net = convs()
    pixels = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = TensorExamples(Space().encode(pixels))
    goals = [Channel("second", 3), -Channel("second", 3), Together((Channel("second", 1),) * 2)]
    found = maximize(net, goals, space=Space(), size=16, steps=30, transforms=(), store=ActivationStore(), examples=data)
    assert found.beside is not None
    values = net.get_submodule("second")(net.get_submodule("act")(net.get_submodule("first")(data.load(range(20)))))
    channel = values[:, 3].mean((1, 2))
    percentile = 100 * float((channel < found.activation[0]).float().mean())
    assert float(found.beside.percentile[0]) == pytest.approx(percentile)
    assert found.beside.top[0].tolist() == channel.topk(5).indices.tolist()
    assert found.beside.top[1].tolist() == (-channel).topk(5).indices.tolist()
    assert found.beside.percentile[2:].isnan().all()
    assert (found.beside.nearest >= 0).all()
    assert (found.beside.cosine.diff(dim=1) <= 0).all()
    assert "(> 100 %)" in found.captions()[0]


def test_the_nearest_example_of_an_image_that_is_in_the_data_is_itself() -> None:
    from probing.maximization.dataset_examples import place

    net = convs()
    found = maximize(net, [Channel("second", k) for k in range(3)], space=Space(), size=16, steps=5)
    data = TensorExamples(found.images)
    goals = [Channel("second", k) for k in range(3)]
    beside = place(found, found.images, net, goals, ActivationStore(), data)
    assert beside.nearest[:, 0].tolist() == [0, 1, 2]
    assert torch.allclose(beside.cosine[:, 0], torch.ones(3), atol=1e-5)


def test_spaces_are_read_off_other_libraries_preprocessing() -> None:
    import torchvision
    from torchvision import transforms

    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    space = Space.of(preset)
    assert space.mean == pytest.approx((0.485, 0.456, 0.406), abs=1e-4)
    assert space.std == pytest.approx((0.229, 0.224, 0.225), abs=1e-4)
    assert (space.order, space.size) == ("rgb", 224)
    grey = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28)), transforms.ToTensor()])
    assert Space.of(grey) == Space((0.0,), (1.0,), "grey", 1, 28)
    flipped = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor(), lambda x: x.flip(0)])
    assert Space.of(flipped).order == "bgr"
    with pytest.raises(SpaceError, match="no scaling of each channel"):
        Space.of(transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor(), torch.square]))


def test_a_preprocessing_that_gives_nan_is_no_scaling() -> None:
    from torchvision import transforms

    def whitened(x: Tensor) -> Tensor:  # a flat picture has no deviation
        return (x - x.mean()) / x.std()

    with pytest.raises(SpaceError, match="not flat or not square"):
        Space.of(transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor(), whitened]))


def test_model_space_and_pixels_are_each_others_inverse() -> None:
    for space in (
        Space(),
        Space((104.0, 117.0, 123.0), (1.0,) * 3, "bgr", 255),
        Space.plain("grey"),
    ):
        pixels = torch.rand(2, space.channels, 3, 3, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(space.decode(space.encode(pixels)), pixels, atol=1e-5)
    bgr = Space((104.0, 117.0, 123.0), (1.0,) * 3, "bgr", 255)
    red = bgr.encode(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)).flatten()
    assert red.tolist() == [-104, -117, 132]


def test_a_loaded_model_brings_its_own_space_and_size() -> None:
    loaded = nets.red_net()
    loaded.model.eval()
    found = maximize(loaded, Logit(0), ascent=Adam(0.5), steps=30, transforms=())
    assert found.images.shape == (1, 3, 8, 8)
    assert float(found.activation[0]) > 0.9
    assert float(found.pixels[0, 0].mean()) > 0.9
