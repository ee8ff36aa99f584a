"""What a call costs beside its passes: every method and the store on tiny networks, and one image to many on a ResNet-18.

    python experiments/benchmarks/overhead.py --out overhead.json [--tiny] [--device cuda] [--only saliency]

Small calls are repeated and seconds are those of one call. `floor` is one plain forward and backward pass for each point
that the method asks for (of the store and of class activation maps: a forward pass), of the model as given and without any
check; captum does no more than that either. `floor, named` reads the weights once besides, whose checksum proves that the
model a result names is still the one that it was. A first call, which looks at the model, is not measured.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torchvision
from attribution import TARGET, captum_quietly, cosine, frozen
from captum.attr import (
    Deconvolution as CaptumDeconvolution,
    GuidedBackprop as CaptumGuided,
    InputXGradient,
    IntegratedGradients as CaptumIntegrated,
    LayerActivation,
    LayerGradCam,
    NoiseTunnel,
    Saliency as CaptumSaliency,
)
from harness import Row, arguments, race, report
from torch import Tensor, nn

from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import Deconvolution, GradientTimesInput, GuidedBackprop, Saliency, SmoothGrad
from probing.attribution.path import IntegratedGradients
from probing.core.checksums import checksum
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

Work = Callable[[], object]
STEPS = 10
_SECONDS = 0.25  # that one turn of a contender should take


def small_networks() -> dict[str, tuple[nn.Module, str | None, tuple[int, ...]]]:
    """Return networks that cost next to nothing, with a layer of maps and the shape of an input."""
    conv: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(1, 4, 3, padding=1),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(4, 8, 3, padding=1),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(8, 10),
    )
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    norms = [layer for _ in range(4) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    deep = nn.Sequential(*norms, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return {
        "two convolutions": (nn.Sequential(conv), "relu2", (1, 8, 8)),
        "two dense layers": (dense, None, (1, 8, 8)),
        "four convolutions with BatchNorm": (deep, "11", (4, 8, 8)),
    }


def passes(net: nn.Module, points: Tensor, *, back: bool = True) -> Work:
    """Return plain passes of some points, in chunks of at most 32."""

    def run() -> None:
        for part in points.split(32):
            with torch.set_grad_enabled(back):
                at = part.clone().requires_grad_(back)
                scores = net(at)[:, TARGET].sum()
                if back:
                    torch.autograd.grad(scores, at)

    return run


def single_passes(net: nn.Module, layer: str | None, images: Tensor) -> Iterator[tuple[str, dict[str, Work]]]:
    """Yield methods whose whole work is one pass."""
    score = Score(net, TARGET)

    def leaf() -> Tensor:
        return images.clone().requires_grad_()

    floor, reading = passes(net, images), [*net.parameters(), *net.buffers()]

    def named(work: Work) -> Work:
        return lambda: (work(), checksum(reading))

    yield (
        "saliency",
        {
            "floor": floor,
            "floor, named": named(floor),
            "ours": lambda: Saliency()(score, images),
            "captum": captum_quietly(lambda: CaptumSaliency(net).attribute(leaf(), target=TARGET, abs=False)),
        },
    )
    yield (
        "guided backprop",
        {
            "floor": floor,
            "floor, named": named(floor),
            "ours": lambda: GuidedBackprop()(score, images),
            "captum": captum_quietly(lambda: CaptumGuided(net).attribute(leaf(), target=TARGET)),
        },
    )
    if layer is not None:
        module, forward = net.get_submodule(layer), passes(net, images, back=False)
        yield (
            "Grad-CAM",
            {
                "floor": forward,
                "floor, named": named(forward),
                "ours": lambda: GradCAM(layer)(score, images),
                "captum": captum_quietly(
                    lambda: LayerGradCam(net, module).attribute(images, target=TARGET, relu_attributions=True)
                ),
            },
        )


def others(net: nn.Module, layer: str | None, images: Tensor) -> Iterator[tuple[str, dict[str, Work]]]:
    """Yield the other methods that both libraries have, and the store."""
    score = Score(net, TARGET)
    points = images.repeat_interleave(STEPS, 0)

    def leaf() -> Tensor:
        return images.clone().requires_grad_()

    yield (
        "gradient x input",
        {
            "floor": passes(net, images),
            "ours": lambda: GradientTimesInput()(score, images),
            "captum": captum_quietly(lambda: InputXGradient(net).attribute(leaf(), target=TARGET)),
        },
    )
    yield (
        "deconvolution",
        {
            "floor": passes(net, images),
            "ours": lambda: Deconvolution()(score, images),
            "captum": captum_quietly(lambda: CaptumDeconvolution(net).attribute(leaf(), target=TARGET)),
        },
    )
    yield (
        f"integrated gradients, {STEPS} steps",
        {
            "floor": passes(net, points),
            "ours": lambda: IntegratedGradients(steps=STEPS)(score, images),
            "captum": captum_quietly(
                lambda: CaptumIntegrated(net).attribute(images, target=TARGET, n_steps=STEPS, method="riemann_middle")
            ),
        },
    )
    yield (
        f"SmoothGrad, {STEPS} samples",
        {
            "floor": passes(net, points),
            "ours": lambda: SmoothGrad(samples=STEPS)(score, images),
            "captum": captum_quietly(
                lambda: NoiseTunnel(CaptumSaliency(net)).attribute(
                    leaf(), nt_samples=STEPS, stdevs=0.15, target=TARGET, abs=False
                )
            ),
        },
    )
    if layer is not None:
        module, examples = net.get_submodule(layer), TensorExamples(images)

        def computed() -> Tensor:
            store = ActivationStore(device=images.device, progress=False)
            return store.activations(net, [layer], examples)[layer]

        kept = ActivationStore(device=images.device, progress=False)
        read = captum_quietly(lambda: LayerActivation(net, module).attribute(images))
        floor = passes(net, images, back=False)
        yield "a store's rows, computed", {"floor": floor, "ours": computed, "captum": read}
        yield (
            "a store's rows, read again",
            {"floor": floor, "ours": lambda: kept.activations(net, [layer], examples)[layer], "captum": read},
        )


def each(row: Row, calls: int) -> Row:
    """Return a row's seconds as those of one call."""
    return replace(row, seconds=row.seconds / calls, cpu_seconds=row.cpu_seconds / calls)


def many(work: Work, calls: int) -> Work:
    """Return that many calls, which return what the last returns."""

    def run() -> object:
        for _ in range(calls - 1):
            work()
        return work()

    return run


def measured(case: str, contenders: dict[str, Work], rounds: int, *, tiny: bool) -> list[Row]:
    """Run contenders in turns of so many calls that a turn can be timed."""
    first = race(case, contenders, 1)
    longest = max(row.seconds for row in first)
    calls = 1 if tiny else max(1, min(50, int(_SECONDS / longest)))
    agrees = {} if "SmoothGrad" in case else {"captum": _agreement}
    rows = race(case, {who: many(work, calls) for who, work in contenders.items()}, rounds, agrees)
    return [each(row, calls) for row in rows]


def _agreement(mine: object, theirs: object) -> str:
    return cosine(mine, theirs) if mine is not None else ""


def main() -> list[Row]:
    """Run all cases."""
    args = arguments("What calls cost beside their passes.")
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []

    def run(name: str, cases: Iterator[tuple[str, dict[str, Work]]]) -> None:
        for method, contenders in cases:
            case = f"{method}, {name}"
            if args.only in case:
                rows.extend(measured(case, contenders, args.rounds, tiny=args.tiny))

    def drawn(count: int, *shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).to(args.device)

    for name, (net, layer, shape) in small_networks().items():
        one, of = drawn(1, *shape), frozen(net.to(args.device))
        run(name, single_passes(of, layer, one))
        run(name, others(of, layer, one))
    resnet = frozen(torchvision.models.resnet18(weights=None).to(args.device))
    run("ResNet-18, 1 image of 32 px", others(resnet, "layer4", drawn(1, 3, 32, 32)))
    sizes = [(1, 32), (64, 32), (1, 224), (8, 224), (64, 224)]
    for count, side in sizes[:1] if args.tiny else sizes:
        name = f"ResNet-18, {count} image{'s' * (count > 1)} of {side} px"
        run(name, single_passes(resnet, "layer4", drawn(count, 3, side, side)))
    report(rows, args.out)
    print(f"load average {os.getloadavg()[0]:.1f}")
    return rows


if __name__ == "__main__":
    main()
