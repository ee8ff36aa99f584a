"""Pixel flipping and parameter randomisation against Quantus and against the least passes that they need.

    python experiments/benchmarks/evaluation.py --out evaluation.json [--tiny] [--device cuda]

Without Quantus (the extra `peers`, and OpenCV, which it imports) its rows are missing. Inputs have one channel, of which
the network sees three copies: Quantus flips single channels, and only so do both flip the same pixels. `floor` is the model
as given, in float32: for pixel flipping a forward pass of every perturbed input, in batches of 32; for randomisation a
forward and a backward pass without weight gradients for every network and input, in one batch, the trained network
included.
`agrees`: the largest difference of the two curves; for randomisation, whose draws differ, that of similarities of the
same maps, of Quantus's own random networks.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torchvision
from harness import Row, arguments, race, report
from torch import Tensor, nn

from probing.attribution.baselines import ZERO
from probing.attribution.gradient import Saliency
from probing.evaluation.curves import Curves, Deletion
from probing.evaluation.randomisation import CascadingRandomisation
from probing.evaluation.similarity import SignedSpearman
from probing.models.gradients import input_gradient
from probing.models.precision import Precision
from probing.models.scores import Score

FAST = Precision("fast")
quantus: Any = import_module("quantus") if find_spec("quantus") else None
PEER = f"quantus {quantus.__version__}" if quantus else "quantus"
Cases = Iterator[tuple[str, dict[str, Callable[[], object]], dict[str, Callable[..., str]]]]


class Grey(nn.Module):
    """A network that sees three copies of an input of one channel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(-1, 3, -1, -1))


def small() -> nn.Module:
    """Return four convolutions for 32 pixels a side."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def drawn(net: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with random weights, the same in every run, and statistics of a batch of noise."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        model = Grey(net())
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
        if norms:
            with torch.no_grad():
                model.train()(torch.randn(8, 1, 64, 64))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def inputs(count: int, side: int) -> Tensor:
    """Return smooth noise of one channel."""
    coarse = torch.randn(count, 1, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=side, mode="bilinear").contiguous()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep Quantus's warnings and prints to itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def flipping(name: str, model: nn.Module, x: Tensor, per_step: int) -> Cases:
    """Yield pixel flipping of some pixels a step until none is left."""
    score = Score(model, unit="probability").named(x)
    places = x[0].numel()
    steps = places // per_step
    maps = Saliency()(score, x).values
    grey, classes, arrays = x.cpu().numpy(), score.target.cpu().numpy(), maps.cpu().numpy()

    def floor() -> None:
        with torch.no_grad():
            for _ in range((steps + 1) * len(x) // 32):
                model(x[:1].expand(32, -1, -1, -1))

    def theirs() -> object:
        metric = quantus.PixelFlipping(
            features_in_step=per_step, perturb_baseline=0.0, normalise=False, abs=False, disable_warnings=True
        )
        with quietly(), torch.no_grad():
            return metric(model, grey, classes, a_batch=arrays, device=str(x.device), batch_size=64)

    def ours(precision: Precision = Precision()) -> Curves:  # noqa: B008
        return Deletion((ZERO,), steps=steps, precision=precision)(maps, score, x)

    def agrees(mine: object, other: object) -> str:
        assert isinstance(mine, Curves)
        curve = mine.values[0, 0].cpu()
        found = other.values[0, 0].cpu() if isinstance(other, Curves) else torch.tensor(np.array(other)).double()
        return f"curves within {float((curve[:, -found.shape[1] :] - found).abs().max()):.1e}"

    contenders: dict[str, Callable[[], object]] = {
        "floor": floor,
        "ours": ours,
        "ours (bf16)": lambda: ours(FAST),
    }
    contenders |= {PEER: theirs} if quantus else {}
    check = {who: agrees for who in contenders if who not in {"floor", "ours"}}
    yield f"pixel flipping, {name}, {steps} steps", contenders, check


def randomisation(name: str, model: nn.Module, x: Tensor) -> Cases:
    """Yield cascading randomisation of every layer, with gradients as maps."""
    score = Score(model).named(x)
    grey, classes = x.cpu().numpy(), score.target.cpu().numpy()
    device = str(x.device)
    layers = sum(hasattr(m, "reset_parameters") for m in model.modules())

    def gradient(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        target = torch.from_numpy(np.asarray(targets)).long().to(device)
        found = input_gradient(Score(model, target), torch.from_numpy(inputs).to(device))[1]
        return found.detach().cpu().numpy()

    def floor() -> None:
        for _ in range(layers + 2):
            input_gradient(score, x)

    def theirs() -> dict[str, list[float]]:
        metric = quantus.MPRT(layer_order="top_down", abs=False, normalise=False, disable_warnings=True)
        with quietly():
            found = metric(model, grey, classes, explain_func=gradient, device=device, batch_size=64)
        return dict(found)

    def agrees(_: object, other: object) -> str:
        assert isinstance(other, dict)
        trained, worst = torch.from_numpy(gradient(model, grey, classes)), 0.0
        networks = quantus.helpers.model.pytorch_model.PyTorchModel(model)
        with torch.random.fork_rng(devices=()):
            for layer, network in networks.get_random_layer_generator("top_down", 42):
                maps = torch.from_numpy(gradient(network, grey, classes))
                own = SignedSpearman()(trained, maps)
                worst = max(worst, float((own - torch.tensor(other[layer])).abs().max()))
        return f"similarities within {worst:.1e}"

    metric = CascadingRandomisation(seeds=1, measures=("spearman",))
    contenders: dict[str, Callable[[], object]] = {
        "floor": floor,
        "ours": lambda: metric(Saliency(), score, x),
        "ours (bf16)": lambda: metric(Saliency(precision=FAST), score, x),
    }
    contenders |= {PEER: theirs} if quantus else {}
    yield f"randomisation, {name}, {layers} layers", contenders, {PEER: agrees}


def cases(device: torch.device, *, tiny: bool) -> Cases:
    """Yield the name of each case, its contenders, and how their results compare."""
    count = 2 if tiny else 8

    def on(net: Callable[[], nn.Module], count: int, side: int) -> tuple[nn.Module, Tensor]:
        return drawn(net).to(device), inputs(count, side).to(device)

    yield from flipping("32 px", *on(small, 2 * count, 32), 128 if tiny else 4)
    yield from randomisation("32 px", *on(small, count, 32))
    if not tiny:
        yield from flipping("224 px", *on(torchvision.models.resnet18, count, 224), 1792)
        yield from randomisation("224 px", *on(torchvision.models.squeezenet1_1, count, 224))


def main() -> None:
    """Run all cases and print them."""
    options = arguments("Pixel flipping and parameter randomisation against Quantus")
    rows: list[Row] = []
    for name, contenders, agrees in cases(options.device, tiny=options.tiny):
        if options.only in name:
            rows += race(name, contenders, 1 if options.tiny else options.rounds, agrees)
    report(rows, options.out)


if __name__ == "__main__":
    main()
