"""Small random CNNs from a grammar of layers, and what methods say of them by plain autograd, one example at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import combinations
from math import comb

import torch
from nets import seeded
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.base import Attribution

SIDE, WIDTH, CLASSES = 8, 4, 3


class _Rule(torch.autograd.Function):
    """A rectifier whose backward pass keeps the positive part of what arrives, and (guided) only where it is open."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, guided: bool) -> Tensor:
        ctx.save_for_backward(x > 0 if guided else torch.ones_like(x, dtype=torch.bool))
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> tuple[Tensor, None]:
        (open_,) = ctx.saved_tensors
        return slope.clamp(min=0) * open_, None


_RULE: ContextVar[str] = ContextVar("rule", default="")


@contextmanager
def rule(name: str) -> Iterator[None]:
    """Give rectifiers another backward pass: `guided` or `deconvolution`."""
    token = _RULE.set(name)
    try:
        yield
    finally:
        _RULE.reset(token)


class Rectifier(nn.Module):
    """ReLU in one of the ways that people write it."""

    def __init__(self, apply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.apply_ = apply

    def forward(self, x: Tensor) -> Tensor:
        return _Rule.apply(x, _RULE.get() == "guided") if _RULE.get() else self.apply_(x)


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Dense(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : WIDTH // 2], super().forward(x)], 1)


class SqueezeExcite(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x.mean((2, 3), keepdim=True)).sigmoid()


class ChannelsLastNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[2:])


class Recurrent(nn.Module):
    """Reads the rows of a map from top to bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x.mean(3).transpose(1, 2))
        return x + states.transpose(1, 2)[..., None]


def _conv(width: int = WIDTH, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, width, 3, padding=1, **settings)  # type: ignore[arg-type]


# InstanceNorm2d is left out: torch 2.14's own gradient for a batch of one is wrong on CPUs where it arrives with channels
# last (finite differences agree with a batch of two), so that there is nothing to compare with.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": _conv,
    "strided": lambda: _conv(stride=2),
    "dilated": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2),
    "depthwise": lambda: _conv(groups=WIDTH),
    "grouped": lambda: _conv(groups=2, bias=False),
    "pointwise": lambda: nn.Conv2d(WIDTH, WIDTH, 1),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1),
    "convolution and norm": lambda: nn.Sequential(_conv(bias=False), nn.BatchNorm2d(WIDTH)),
    "batch norm": lambda: nn.BatchNorm2d(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "layer norm over channels": lambda: ChannelsLastNorm(WIDTH),
    "local response norm": lambda: nn.LocalResponseNorm(3),
    "relu": lambda: Rectifier(functional.relu),
    "relu in place": lambda: Rectifier(torch.relu_),
    "relu method": lambda: Rectifier(lambda x: x.relu()),
    "clamp": lambda: Rectifier(lambda x: x.clamp(min=0)),
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "max pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "dropout": lambda: nn.Dropout2d(0.5),
    "reflection": lambda: nn.ReflectionPad2d((0, 1, 0, 1)),
    "upsampling": lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "residual": lambda: Residual(_conv(), nn.BatchNorm2d(WIDTH), Rectifier(functional.relu)),
    "dense": lambda: Dense(_conv(WIDTH // 2), nn.Tanh()),
    "squeeze and excite": lambda: SqueezeExcite(nn.Conv2d(WIDTH, WIDTH, 1)),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "attention": Attention,
    "recurrent": Recurrent,
}

HEADS: dict[str, Callable[[int], list[nn.Module]]] = {
    "view": lambda n: [Apply(lambda y: y.view(y.size(0), -1)), nn.Linear(n, CLASSES)],
    "flatten": lambda n: [nn.Flatten(), nn.Linear(n, CLASSES)],
    "hidden layer": lambda n: [nn.Flatten(), nn.Linear(n, 6), Rectifier(functional.relu), nn.Linear(6, CLASSES)],
    "global average": lambda n: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES)],
    "mean": lambda n: [Apply(lambda y: y.mean((2, 3))), nn.Linear(WIDTH, CLASSES)],
    "largest": lambda n: [Apply(lambda y: y.amax((2, 3))), nn.Linear(WIDTH, CLASSES)],
    "convolution": lambda n: [nn.Conv2d(WIDTH, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
}


class RandomNet(nn.Module):
    """A stem, layers of the grammar, and a head; `body` returns the last map."""

    def __init__(self, layers: list[str], head: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, WIDTH, 3, padding=1), *[LAYERS[n]() for n in layers])
        with torch.no_grad():
            size = self.body.eval()(torch.zeros(1, 2, SIDE, SIDE)).numel()
        self.head = nn.Sequential(*HEADS[head](size))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def random_net(layers: list[str], head: str, seed: int) -> RandomNet:
    """Return a net in double precision whose norms have statistics of their own."""
    torch.manual_seed(seed)
    net = seeded(RandomNet(layers, head), seed).double()
    generator = torch.Generator().manual_seed(seed)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return net.eval()  # type: ignore[return-value]


# What methods say, for one example


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the gradient of a number."""
    point = at.clone().requires_grad_()
    return torch.autograd.grad(function(point), point)[0]


def along(function: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, at: Tensor) -> Tensor:
    """Return the mean gradient at places of the path from start to end, times the way."""
    slopes = [gradient(function, start + a * (end - start)) for a in at]
    return (end - start) * torch.stack(slopes).mean(0)


def expected(net: RandomNet, x: Tensor, target: int, background: Tensor) -> dict[str, Tensor]:
    """Return the maps `[*shape]` of one example by the formulas of the papers."""

    def score(x: Tensor) -> Tensor:
        return net(x[None])[0, target]

    def tail(y: Tensor) -> Tensor:
        return net.head(y[None].clone())[0, target]

    maps = net.body(x[None])[0].detach()
    slope, a_slope = gradient(score, x), gradient(tail, maps)
    nodes = (torch.arange(4) + 0.5) / 4
    found = {
        "saliency": slope,
        "gradient_times_input": slope * x,
        "ig": along(score, torch.zeros_like(x), x, nodes.double()),
        "layer_ig": along(tail, torch.zeros_like(maps), maps, nodes.double()),
    }
    for name, kind in (("guided_backprop", "guided"), ("deconvolution", "deconvolution")):
        with rule(kind):
            found[name] = gradient(score, x)
    places = torch.rand(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found["expected_gradients"] = along(score, background, x, places)
    total, scale = maps.sum((1, 2), keepdim=True), 2 * a_slope.square()
    share = torch.nan_to_num(a_slope.square() / (scale + total * a_slope**3))
    falls = torch.stack([tail(maps) - tail(_without(maps, k)) for k in range(WIDTH)]).detach()
    found |= {
        "gradcam": (a_slope.mean((1, 2), keepdim=True) * maps).sum(0).relu(),
        "gradcam++": ((share * a_slope.relu()).sum((1, 2), keepdim=True) * maps).sum(0).relu(),
        "hirescam": (a_slope * maps).sum(0),
        "xgradcam": (_safe((a_slope * maps).sum((1, 2), keepdim=True), total) * maps).sum(0).relu(),
        "layercam": (a_slope.relu() * maps).sum(0).relu(),
        "ablationcam": (falls[:, None, None] * maps).sum(0).relu(),
        "lime": _shapley(score, x),
    }
    return found


def _safe(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, 0, part / torch.where(whole == 0, 1, whole))


def _without(maps: Tensor, channel: int) -> Tensor:
    rest = maps.clone()
    rest[channel] = 0
    return rest


def _shapley(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Shapley values of the four quarters of an image, hidden by zero, at the places of each."""
    half = SIDE // 2
    quarters = [(slice(r, r + half), slice(c, c + half)) for r in (0, half) for c in (0, half)]

    @cache
    def value(shown: tuple[int, ...]) -> Tensor:
        seen = torch.zeros_like(x)
        for i in shown:
            seen[:, quarters[i][0], quarters[i][1]] = x[:, quarters[i][0], quarters[i][1]]
        return score(seen).detach()

    found = torch.zeros_like(x)
    for i, (rows, columns) in enumerate(quarters):
        others = [j for j in range(4) if j != i]
        found[:, rows, columns] = sum(
            (value(tuple(sorted((*some, i)))) - value(some)) / (4 * comb(3, size))
            for size in range(4)
            for some in combinations(others, size)
        )
    return found


def laws(name: str, found: Attribution, score: Tensor) -> Tensor:
    """Return what must be zero for each example, for methods whose maps add up to the score."""
    if name == "lrp":
        return found.diagnostics["conservation_gap"] / (1 + score.abs())
    return found.diagnostics["completeness_gap"]
