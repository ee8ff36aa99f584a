"""Every kind of score by every method that follows gradients: what plain autograd gives in float64, or a refusal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution import METHODS, GradCAM
from probing.attribution.lrp.composites import Uniform
from probing.attribution.lrp.rules import Epsilon
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.superpixels import Grid
from probing.models.geometry import RefusedError
from probing.models.readings import (
    Box,
    Custom,
    Label,
    NextToken,
    OutputError,
    Pixel,
    Reading,
    Region,
    Regression,
    Similarity,
    Span,
)
from probing.models.scores import Score

MASK = torch.tensor([[True, False], [True, True]])
BOXES = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 5.0], [0.0, 0.0, 4.0, 5.0]], dtype=torch.float64)
OTHERS = torch.randn(3, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
TOKENS = [[0, 2], [1, 1], [2, 0]]


class Ended(nn.Module):
    """Two convolutions, a mean, a dense layer of 12 outputs, and then what gives these another form."""

    def __init__(self, end: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net = nets.ConvNet(inplace=False, classes=12)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self.net(x))


def detected(y: Tensor) -> list[dict[str, Tensor]]:
    labels = torch.tensor([1, 1, 2], device=y.device)
    return [{"boxes": BOXES.to(row), "labels": labels, "scores": row[:3].sigmoid()} for row in y]


def largest_pair(y: Tensor) -> Tensor:
    return y.square().sum(1)


@dataclass(frozen=True)
class Kind:
    """A score, the form of the output that it reads, and the same in plain PyTorch, of the 12 outputs."""

    target: int | Reading
    end: Callable[[Tensor], object]
    oracle: Callable[[Tensor], Tensor]
    unit: str | None = None
    output: str | int | None = None
    linear: bool = True
    column: int | None = None


def grid(y: Tensor) -> Tensor:
    return y.view(-1, 3, 2, 2)


def texts(y: Tensor) -> Tensor:
    return y.view(-1, 4, 3)


KINDS: dict[str, Kind] = {
    "logit": Kind(3, lambda y: y, lambda y: y[:, 3], column=3),
    "probability": Kind(3, lambda y: y, lambda y: y.softmax(1)[:, 3], "probability"),
    "margin": Kind(3, lambda y: y[:, :4], lambda y: y[:, 3] - y[:, :3].amax(1), "margin"),
    "label": Kind(Label(2), lambda y: y, lambda y: 1 / (1 + (-y[:, 2]).exp()), linear=False),
    "label's logit": Kind(Label(2, unit="logit"), lambda y: y, lambda y: y[:, 2], column=2),
    "column": Kind(Regression(4, unit="kg"), lambda y: y, lambda y: y[:, 4], column=4),
    "number": Kind(Regression(), lambda y: y[:, 0], lambda y: y[:, 0]),
    "token": Kind(NextToken(1), texts, lambda y: y[:, 10]),
    "tokens": Kind(NextToken(1, instead_of=2, after=1), lambda y: (None, texts(y)), lambda y: y[:, 4] - y[:, 5], output=1),
    "span": Kind(
        Span(TOKENS[0], 1),
        texts,
        lambda y: texts(y).log_softmax(2)[:, 0, 0] + texts(y).log_softmax(2)[:, 1, 2],
        linear=False,
    ),
    "pixel": Kind(Pixel(1, (1, 0)), lambda y: {"out": grid(y)}, lambda y: y[:, 6], output="out"),
    "region": Kind(Region(2, MASK), grid, lambda y: (y[:, 8] + y[:, 10] + y[:, 11]) / 3),
    "box": Kind(Box(1, (1.0, 1.0, 5.0, 6.0)), detected, lambda y: 1 / (1 + (-y[:, 1]).exp()), linear=False),
    "similarity": Kind(
        Similarity(OTHERS[0]),
        lambda y: y,
        lambda y: functional.normalize(y) @ functional.normalize(OTHERS[0], dim=0),
        linear=False,
    ),
    "function": Kind(Custom(largest_pair), lambda y: y, lambda y: (y * y).sum(1), linear=False),
    "linear function": Kind(Custom(lambda y: y[:, 0] - y[:, 5]), lambda y: y, lambda y: y[:, 0] - y[:, 5]),
}


@cache
def model_of(kind: str) -> Ended:
    return nets.seeded(Ended(KINDS[kind].end)).double()  # type: ignore[return-value]


X = nets.images(3, size=5).double()
BACKGROUND = nets.images(2, size=5, seed=9).double()
STEPS = 3
LAYER_MAPS = (
    "gradcam",
    "gradcam++",
    "hirescam",
    "layercam",
    "xgradcam",
    "ablationcam",
    "scorecam",
    "eigencam",
    "finercam",
)
SETTINGS: Mapping[str, dict[str, Any]] = {
    "ig": {"steps": STEPS},
    "guided_ig": {"steps": STEPS, "fraction": 1.0},  # the straight path
    "blur_ig": {"steps": STEPS, "max_sigma": 2.0},
    "xrai": {"path": IntegratedGradients(steps=STEPS), "cuts": (Grid(1, 5),)},
    "layer_conductance": {"layer": "net.features", "steps": STEPS},
    "internal_influence": {"layer": "net.features", "steps": STEPS},
    "layer_ig": {"layer": "net.features", "path": IntegratedGradients(steps=STEPS)},
    "smoothgrad": {"samples": STEPS},
    "expected_gradients": {"background": BACKGROUND, "samples": STEPS},
    "lrp": {"composite": Uniform(Epsilon(0.0))},
    "guided_gradcam": {"cam": GradCAM("net.features")},
    **{name: {"layer": "net.features"} for name in LAYER_MAPS},
}


class _Gate(torch.autograd.Function):
    """A ReLU whose gradient is cut to its positive part, and by what was negative forward, if asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, guided: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.guided = guided
        return x.relu()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return slope.relu() * ((ctx.saved_tensors[0] > 0) if ctx.guided else 1), None


class Oracle:
    """Gradients of a kind's score by plain autograd."""

    def __init__(self, kind: str) -> None:
        self.net, self.score = model_of(kind).net, KINDS[kind].oracle
        self.features = self.net.features

    def head(self, maps: Tensor) -> Tensor:
        return self.score(self.net.head(maps.mean((2, 3))))

    def slope(self, function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(function(at).sum(), at)[0]

    def of_input(self, x: Tensor) -> Tensor:
        return self.slope(lambda v: self.head(self.features(v)), x)

    def gated(self, *, guided: bool) -> Tensor:
        def run(x: Tensor) -> Tensor:
            for layer in self.features:
                x = _Gate.apply(x, guided) if isinstance(layer, nn.ReLU) else layer(x)
            return self.head(x)

        return self.slope(run, X)

    def maps(self) -> tuple[Tensor, Tensor]:
        maps = self.features(X).detach()
        return maps, self.slope(self.head, maps)

    def path(self, function: Callable[[Tensor], Tensor], ends: Tensor) -> Tensor:
        points = [(k + 0.5) / STEPS for k in range(STEPS)]
        return ends * torch.stack([self.slope(function, p * ends) for p in points]).mean(0)

    def pieces(self, points: list[Tensor]) -> Tensor:
        """Mean gradients of neighbouring points times the way between them."""
        slopes = [self.of_input(at) for at in points]
        ways = zip(points, points[1:], slopes, slopes[1:], strict=False)
        return torch.stack([(b - a) * (left + right) / 2 for a, b, left, right in ways]).sum(0)

    def sharpened(self) -> list[Tensor]:
        """The input out of a blur: heat that spreads between neighbours for a time of half the width squared."""
        beside = torch.diag(torch.ones(4), 1) + torch.diag(torch.ones(4), -1)
        spread = beside - torch.diag(beside.sum(1))
        widths = [2 - 2 * k / STEPS for k in range(STEPS + 1)]
        blurs = [torch.matrix_exp(spread.double() * width**2 / 2) for width in widths]
        return [blur @ X @ blur for blur in blurs]

    def cam(self, name: str) -> Tensor:
        maps, slopes = self.maps()
        if name == "hirescam":
            return (maps * slopes).sum(1)
        if name in {"xgradcam", "eigencam", "scorecam"}:
            return {"xgradcam": self.conserved, "eigencam": self.component, "scorecam": self.seen_through}[name](maps)
        if name == "layercam":
            return (maps * slopes.relu()).sum(1).relu()
        if name == "gradcam":
            return torch.einsum("nc,nchw->nhw", slopes.mean((2, 3)), maps).relu()
        if name == "gradcam++":
            scale = 2 * slopes**2 + maps.sum((2, 3), keepdim=True) * slopes**3
            shares = torch.where(scale == 0, torch.zeros_like(scale), slopes**2 / scale)
            return torch.einsum("nc,nchw->nhw", (shares * slopes.relu()).sum((2, 3)), maps).relu()
        falls = []
        for c in range(maps.shape[1]):
            less = maps.clone()
            less[:, c] = 0
            falls.append(self.head(maps) - self.head(less))
        return torch.einsum("cn,nchw->nhw", torch.stack(falls), maps).detach().relu()

    def conserved(self, maps: Tensor) -> Tensor:
        weights = (self.slope(self.head, maps) * maps).sum((2, 3)) / maps.sum((2, 3))
        return torch.einsum("nc,nchw->nhw", weights, maps).relu()

    def component(self, maps: Tensor) -> Tensor:
        rows = maps.flatten(2)
        first = torch.linalg.eigh(rows @ rows.mT)[1][:, :, -1]
        total = torch.einsum("nc,nchw->nhw", first, maps)
        return total * total.sum((1, 2), keepdim=True).sign()

    def seen_through(self, maps: Tensor) -> Tensor:
        total = torch.zeros_like(maps[:, 0])
        for i in range(len(maps)):
            moving = [m for m in maps[i] if m.max() > m.min()]
            seen = torch.stack([X[i] * ((m - m.min()) / (m.max() - m.min())) for m in moving])
            scores = torch.stack([self.head(self.features(s.expand(len(X), 1, 5, 5)))[i].detach() for s in seen])
            total[i] = sum(w * m for w, m in zip(scores.softmax(0), moving, strict=True))
        return total.relu()

    def finer(self, target: int) -> Tensor:
        maps = self.features(X).detach().requires_grad_()
        logits = self.net.head(maps.mean((2, 3)))
        total = torch.zeros_like(maps[:, 0])
        for i, row in enumerate(logits):
            near = (row - row[target]).abs().tolist()
            others = sorted({*range(len(row))} - {target}, key=near.__getitem__)[:3]
            (slope,) = torch.autograd.grad(row[target] - row[others].mean(), maps, retain_graph=True)
            total[i] = (slope[i].mean((1, 2), keepdim=True) * maps[i]).sum(0)
        return total.detach().relu()

    def conducted(self) -> Tensor:
        """Mean gradients of neighbouring points on the way of the input, times the change of the maps between them."""
        points = [self.features(k / STEPS * X).detach() for k in range(STEPS + 1)]
        slopes = [self.slope(self.head, at) for at in points]
        return sum(  # type: ignore[return-value]
            (slopes[k] + slopes[k + 1]) / 2 * (points[k + 1] - points[k]) for k in range(STEPS)
        )

    def influence(self) -> Tensor:
        return torch.stack([self.slope(self.head, self.features((k + 0.5) / STEPS * X)) for k in range(STEPS)]).mean(0)

    def rescaled(self) -> Tensor:
        """The gradient of the network whose rectifiers are the slopes of their secants from the zero input."""
        x, ours, theirs = X.detach().requires_grad_(), X, torch.zeros_like(X)
        chain = x
        for layer in self.features:
            before = ours - theirs
            ours, theirs = layer(ours).detach(), layer(theirs).detach()
            chain = chain * ((ours - theirs) / before) if isinstance(layer, nn.ReLU) else layer(chain)
        return X * torch.autograd.grad(self.head(chain).sum(), x)[0]

    def smooth(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        width = 0.15 * (X.flatten(1).amax(1) - X.flatten(1).amin(1)).view(-1, 1, 1, 1)
        draws = [torch.randn(1, *X.shape[1:], generator=generator, dtype=torch.float64) for _ in range(STEPS)]
        return torch.stack([self.of_input(X + width * noise) for noise in draws]).mean(0)

    def expected(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        alphas = torch.rand(STEPS, generator=generator, dtype=torch.float64)
        rows = torch.randint(len(BACKGROUND), (STEPS,), generator=generator)
        parts = [(X - b) * self.of_input(b + a * (X - b)) for a, b in zip(alphas, BACKGROUND[rows], strict=True)]
        return torch.stack(parts).mean(0)


def expected_map(kind: str, method: str) -> Tensor | None:
    """Return the map; None where the method must refuse the score."""
    oracle = Oracle(kind)
    if method in {"saliency", "gradient_times_input", "lrp"}:
        if method == "lrp" and (not KINDS[kind].linear or KINDS[kind].unit == "probability"):
            return None
        return oracle.of_input(X) * (1 if method == "saliency" else X)
    if method == "cam":
        column = KINDS[kind].column
        return (
            None
            if column is None
            else torch.einsum("c,nchw->nhw", oracle.net.head.weight[column], oracle.features(X))[:, None]
        )
    if method == "deeplift":
        return oracle.rescaled() if KINDS[kind].linear and KINDS[kind].unit != "probability" else None
    if method == "finercam":
        of = KINDS[kind]
        whole = of.unit in {None, "logit"} and isinstance(of.target, int)
        return oracle.finer(of.target)[:, None] if whole else None  # type: ignore[arg-type]

    def straight() -> Tensor:
        return oracle.path(lambda v: oracle.head(oracle.features(v)), X)

    simple: dict[str, Callable[[], Tensor]] = {
        "guided_backprop": lambda: oracle.gated(guided=True),
        "deconvolution": lambda: oracle.gated(guided=False),
        "smoothgrad": oracle.smooth,
        "expected_gradients": oracle.expected,
        "ig": straight,
        "guided_ig": lambda: oracle.pieces([k / STEPS * X for k in range(STEPS + 1)]),
        "blur_ig": lambda: oracle.pieces(oracle.sharpened()),
        "xrai": lambda: straight().mean(2, keepdim=True).expand(X.shape),  # columns as regions
        "layer_conductance": oracle.conducted,
        "internal_influence": oracle.influence,
        "layer_ig": lambda: oracle.path(oracle.head, oracle.features(X).detach()),
        "guided_gradcam": lambda: oracle.gated(guided=True) * oracle.cam("gradcam")[:, None],
    }
    return simple[method]() if method in simple else oracle.cam(method)[:, None]


@pytest.mark.parametrize("method", sorted(name for name, kind in METHODS.items() if kind.family != "local"))
@pytest.mark.parametrize("kind", KINDS)
def test_every_score_by_every_gradient_method_is_what_plain_autograd_gives_or_is_refused(kind: str, method: str) -> None:
    of = KINDS[kind]
    score = Score(model_of(kind), of.target, of.unit, of.output)
    made = METHODS[method](**SETTINGS.get(method, {}))
    wanted = expected_map(kind, method)
    if wanted is None and (method, kind) != ("lrp", "probability"):  # the logit's map, on the probability's scale
        with pytest.raises(
            (RefusedError, OutputError),
            match=r"logits apart, not|must be one tensor here|a sum of the model's|use GradCAM",
        ):
            made(score, X)
        return
    found = made(score, X)
    values = KINDS[kind].oracle(model_of(kind).net(X))
    torch.testing.assert_close(found.score, values.detach())
    assert found.unit == (of.target.unit if isinstance(of.target, Reading) else of.unit or "logit")
    assert found.target == (of.target.name if isinstance(of.target, Reading) else of.target,) * 3
    if isinstance(of.target, Reading):
        assert of.target.name in found.explained
        assert of.target.key in found.explained
    if wanted is not None:
        wanted = wanted.detach()
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(found.values, wanted, rtol=1e-7, atol=1e-10)
