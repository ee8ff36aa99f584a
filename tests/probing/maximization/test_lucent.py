"""Lucent's own objectives and images through our loop, and what it does that ours must not (fault 16)."""

import warnings

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.maximization import Channel, Maximize, Space
from probing.maximization.parameterisations import Fourier, ImageOptionError, Plan
from probing.models.layers import LayerNotFoundError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its old kornia compiles by a deprecated way
    pytest.importorskip("lucent.optvis.render", reason="the extra 'lucent'", exc_type=ImportError)
    from lucent.optvis import objectives, param, render, transform

from probing.maximization.lucent import LucentImage, from_lucent
from probing.maximization.objective import Seen
from probing.results.result import rebuild

SPACE = Space()


class Net(nn.Module):
    """Two blocks whose names have dots."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(x))
        return y


@pytest.fixture
def net() -> nn.Module:
    return nets.seeded(Net())


INPUTS = torch.zeros(1, 3, 16, 16)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_lucents_own_objective_climbs_as_ours_does(net: nn.Module) -> None:
    settings = Maximize(steps=12, size=16)
    goal = from_lucent(objectives.channel("body_2", 5), net, INPUTS)
    assert goal.layers == ("body.2",)
    theirs = settings(net, goal, space=SPACE)
    assert float(theirs.activation[0]) > float(theirs.trace[0, 0])
    assert hooks(net) == 0
    ours = Channel("body.2", 5)
    rows = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    seen = Seen({"body.2": rows})
    assert torch.allclose(goal(seen), ours(seen))


def test_sums_of_lucents_objectives_and_the_output_are_read(net: nn.Module) -> None:
    both = objectives.channel("body_2", 1) - 0.5 * objectives.channel("labels", 2)
    goal = from_lucent(both, net, INPUTS)
    assert goal.layers == ("body.2", "")
    assert from_lucent("body_2:3", net, INPUTS).layers == ("body.2",)
    apart = objectives.channel("body_2", 1) - objectives.diversity("body_2")
    found = Maximize(steps=4, size=16)(net, from_lucent(apart, net, INPUTS, images=3), space=SPACE)
    assert len(found.images) == 3
    with pytest.raises(LayerNotFoundError, match="reads layer 'nowhere'"):
        from_lucent(objectives.channel("nowhere", 0), net, INPUTS)


def test_lucents_images_are_climbed_on_and_the_random_state_is_left(net: nn.Module) -> None:
    state = torch.get_rng_state()
    image = LucentImage.of(lambda: param.image(16, batch=2))
    goals = [Channel("body.2", 0), Channel("body.2", 1)]
    settings = Maximize(image=image, steps=10, size=16)
    found = settings(net, goals, space=SPACE)
    assert torch.equal(state, torch.get_rng_state())
    assert (found.trace[:, -1] > found.trace[:, 0]).all()
    with pytest.raises(ImageOptionError, match="read from a saved result"):
        rebuild(found.provenance.method)(net, goals, space=SPACE)  # type: ignore[operator]
    with pytest.raises(ImageOptionError, match=r"shape \(2, 3, 16, 16\), asked for are 1 of 16 x 16"):
        settings(net, goals[0], space=SPACE)


def test_our_spectra_become_images_as_lucents_do() -> None:
    plan = Plan((0,), (1,), (16, 16), Space.plain(), torch.device("cpu"))
    ours = Fourier().begin(plan)
    parameters, image_f = param.image(16)
    with torch.no_grad():
        parameters[0].copy_(ours.parameters[0] * 50)
        ours.parameters[0].mul_(50)
    assert torch.allclose(ours.render(), image_f(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_fault_16_lucent_leaves_hooks_and_goes_on_after_errors_where_ours_does_neither(
    net: nn.Module,
) -> None:
    render.render_vis(
        net,
        "body_2:3",
        lambda: param.image(16),
        thresholds=(1,),
        show_image=False,
        progress=False,
        transforms=[transform.jitter(2)],
    )
    assert hooks(net) > 0
