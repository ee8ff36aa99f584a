"""What channels change in the head of a network, against running the network without each of them."""

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.cam import ablation, grad_cam
from probing.attribution.cam.ablation import Head, head_of
from probing.attribution.cam.grad_cam import AblationCAM
from probing.attribution.score_passes import Passes
from probing.attribution.subnetwork import tail_of
from probing.models.hooks import edit
from probing.models.precision import Precision
from probing.models.scores import Score, Unit


class Net(nn.Module):
    """Five channels of 6 x 6, and what follows them."""

    def __init__(self, *head: nn.Module, then: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.features = nn.Conv2d(2, 5, 3, padding=1)
        self.then, self.head = then or nn.Identity(), nn.Sequential(*head)
        self.eval().double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.then(self.features(x)))


def pooled(x: Tensor) -> Tensor:
    return torch.flatten(functional.adaptive_avg_pool2d(functional.relu(x, inplace=True), (1, 1)), 1)


def norm() -> nn.Module:
    layer = nn.BatchNorm2d(5)
    layer.running_mean, layer.bias = torch.arange(5.0), nn.Parameter(torch.arange(5.0) + 1)
    return layer


HEADS: dict[str, Callable[[], nn.Module]] = {
    "as in VGG": lambda: Net(
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(45, 8),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(8, 7),
        nn.ReLU(),
        nn.Linear(7, 3),
    ),
    "as in MobileNet": lambda: Net(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 9), nn.Hardswish(inplace=True), nn.Linear(9, 3)
    ),
    "as in DenseNet": lambda: Net(nn.Linear(5, 3), then=pooled),
}


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = norm(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.norm(x)).mean([2, 3]))


HEADS["a mean, and a bias before it"] = lambda: Net(Mean())


def falls_by_hand(net: nn.Module, score: Score, x: Tensor) -> Tensor:
    found = []
    for k in range(5):

        def without(module: nn.Module, before: Tensor, out: Tensor, k: int = k) -> Tensor:
            return out * (torch.arange(5) != k)[:, None, None]

        with torch.no_grad(), edit(net, {"features": without}):
            ablated = score(x)
        with torch.no_grad():
            found.append(score(x) - ablated)
    return torch.stack(found, 1)


@pytest.mark.parametrize("unit", ["logit", "probability", "margin"])
@pytest.mark.parametrize("target", [1, torch.tensor([2, 0, 1, 1])], ids=["one", "each"])
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_gives_the_falls_of_the_whole_network(
    kind: str, target: int | Tensor, unit: Unit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "_ELEMENTS", 100)  # some channels at a time
    monkeypatch.setattr(grad_cam, "_falls", lambda *_: pytest.fail("a channel was run through the tail"))
    net, x = nets.seeded(HEADS[kind]()), nets.images(channels=2).double()
    score = Score(net, target, unit)
    assert head_of(tail_of(net, "features")) is not None  # type: ignore[arg-type]
    found = AblationCAM("features")(score, x)
    with torch.no_grad():
        expected = (falls_by_hand(net, score, x)[:, :, None, None] * net.features(x)).sum(1)  # type: ignore[operator]
    torch.testing.assert_close(found.values[:, 0], expected.relu())
    assert expected.abs().max() > 1e-4


def test_a_silent_channel_takes_nothing_and_is_not_counted() -> None:
    net, x = nets.seeded(HEADS["as in VGG"]()), nets.images(channels=2).double()
    with torch.no_grad():
        net.features.weight[[1, 3]] = 0.0  # type: ignore[union-attr, index]
        net.features.bias[[1, 3]] = -1.0  # type: ignore[union-attr, index]
    found = AblationCAM("features")(Score(net, 1), x)
    assert found.n_forward == 4 + 4 * 3
    with torch.no_grad():
        falls = falls_by_hand(net, Score(net, 1), x)
        expected = (falls[:, :, None, None] * net.features(x)).sum(1)  # type: ignore[operator]
    assert not falls[:, [1, 3]].any()
    torch.testing.assert_close(found.values[:, 0], expected.relu())


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    "head",
    [
        [
            nn.Flatten(),
            nn.LayerNorm(180),
            nn.Linear(180, 3),
        ],  # mixes channels before the dense layer
        [nn.Softmax2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)],
        [nn.Flatten(2), nn.Flatten(1), nn.Linear(180, 3)],
        [nn.Flatten(), Scaled(180, 3)],  # a subclass that computes something else
        [nn.Flatten(), nn.Linear(180, 3), nn.Softmax(1)],
        [nn.Linear(6, 4), nn.Flatten(), nn.Linear(120, 3)],  # dense along an axis of the map
        [nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 3)],
    ],
)
def test_other_tails_run_as_a_whole_and_agree_too(head: list[nn.Module]) -> None:
    net, x = nets.seeded(Net(*head)), nets.images(channels=2).double()
    score = Score(net, 1)
    found = AblationCAM("features")(score, x)
    with torch.no_grad():
        falls = falls_by_hand(net, score, x)
        expected = (falls[:, :, None, None] * net.features(x)).sum(1)  # type: ignore[operator]
    torch.testing.assert_close(found.values[:, 0], expected.relu())


def test_a_tail_that_reads_a_value_twice_is_no_head() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.out = nn.Conv2d(2, 5, 1), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.features(x).mean((2, 3))
            return self.out(maps) * maps.sum(1, keepdim=True)

    tail = tail_of(Twice().eval(), "features")
    assert tail is not None
    assert head_of(tail) is None


def test_a_head_that_gives_other_scores_than_the_model_is_not_used() -> None:
    net, x = nets.seeded(HEADS["as in VGG"]()), nets.images(channels=2).double()
    tail = tail_of(net, "features")
    assert tail is not None
    head, passes = head_of(tail), Passes.of(Score(net, 1), x)
    assert head is not None
    with torch.no_grad():
        output, classes = net.features(x), net(x)  # type: ignore[operator]
        assert head.falls(passes, output, torch.arange(4), classes) is not None
        assert head.falls(passes, output, torch.arange(4), classes + 0.01) is None


def test_bfloat16_rounds_changes_and_not_scores() -> None:
    """The fall of one channel is less than the rounding of a score of 1,000."""
    torch.manual_seed(0)
    head = Head(
        (nn.Flatten(),),
        nn.Linear(20, 16),
        (nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
        nn.Linear(16, 2),
    )
    assert head.last is not None
    head.last.bias.data += 1000
    output = torch.rand(2, 5, 2, 2)
    whole = nn.Sequential(nn.Flatten(), head.first, *head.inner, head.last).eval()  # type: ignore[arg-type]
    falls = [Passes.of(Score(whole, 1), output, precision=Precision(kind)) for kind in ("fast", "float32")]
    with torch.no_grad():
        fast, exact = (head.falls(p, output, torch.arange(2), whole(output)) for p in falls)
    assert fast is not None
    assert exact is not None
    assert exact.abs().max() < 2
    torch.testing.assert_close(fast, exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))
