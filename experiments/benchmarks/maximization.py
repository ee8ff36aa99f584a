"""Activation maximisation of ResNet-18's layer3 against lucent and against the passes that it needs.

    python experiments/benchmarks/maximization.py --out maximization.json [--tiny] [--device cuda]

Both make images of 128 px by Fourier spectra, the same transforms and Adam, for as many steps. Lucent resizes views to
224 px and runs the whole network; ours ends the pass after the layer, at the views' own size. `floor` is forward and
backward, truncated after the layer, of the same batch of views, without weight gradients. The case of 16 channels
counts seconds per image; its floor runs in bfloat16 too. `ours, images alone` is all that ours does but for the network, in
its place one that costs nothing: rendering, views, Adam, and gradients through them. `floor, compiled` is the
floor by `torch.compile`, where there is a C++ compiler. Without lucent its rows are missing;
`pip install -e '.[lucent]'` brings it with the kornia of 2020 that it needs.
"""

import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from shutil import which

import torch
import torchvision
from harness import Row, arguments, has_bf16, race, report
from torch import nn

from probing.maximization import Channel, Maximization, Maximize, Space
from probing.maximization.transforms import STANDARD, growth
from probing.models.precision import Precision

SIZE, LAYER = 128, "layer3"


def ours(net: nn.Module, channels: int, steps: int, precision: Precision) -> Callable[[], object]:
    """Return the work of this suite."""
    settings = Maximize(size=SIZE, steps=steps, precision=precision)
    goals = [Channel(LAYER, k) for k in range(channels)]
    return lambda: settings(net, goals, space=Space(), progress=False)


def images_alone(net: nn.Module, channels: int, steps: int, precision: Precision) -> Callable[[], object]:
    """Return the work of this suite with a network that costs nothing, so that images are what is left."""
    free = nn.Sequential(OrderedDict({LAYER: nn.Identity()})).eval()
    settings = Maximize(size=SIZE, steps=steps, precision=precision)
    goals = [Channel(LAYER, k % 3) for k in range(channels)]
    free.register_buffer("place", torch.zeros(1, device=next(net.parameters()).device))
    return lambda: settings(free, goals, space=Space(), progress=False)


def lucent(net: nn.Module, steps: int) -> Callable[[], object]:
    """Return lucent's work: one image of one channel, by a copy, since its hooks stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its old kornia compiles by a deprecated way
        from lucent.optvis import param, render

    def run() -> object:
        with redirect_stderr(io.StringIO()):
            return render.render_vis(
                copy.deepcopy(net),
                f"{LAYER}:0",
                lambda: param.image(SIZE),
                thresholds=(steps,),
                show_image=False,
                progress=False,
            )

    return run


def floor(net: nn.Module, channels: int, steps: int, *, fast: bool, compiled: bool = False) -> Callable[[], object]:
    """Return the passes alone; compiled, they are made once before any is timed."""
    device = next(net.parameters()).device
    body = nn.Sequential(*list(copy.deepcopy(net).children())[:7]).requires_grad_(False)
    side = SIZE + growth(STANDARD)
    views = torch.randn(channels, 3, side, side, device=device)
    if fast:
        body = Precision("fast").prepare(body, ["6"], device, views).model
        views = views.to(memory_format=torch.channels_last)

    if compiled:
        body.compile()

    def run() -> object:
        for _ in range(steps):
            leaf = views.detach().requires_grad_()
            with torch.autocast(device.type, torch.bfloat16) if fast else nullcontext():
                output = body(leaf)
            torch.autograd.grad(output[:, 0].float().mean(), leaf)
        return None

    if compiled:
        run()
    return run


def compiled(net: nn.Module, channels: int, steps: int, *, fast: bool, tiny: bool) -> dict[str, Callable[[], object]]:
    """Return the compiled floor by its name, where it can be made; it takes up to half a minute to compile."""
    if tiny or which("g++") is None:
        return {}
    return {"floor, compiled": floor(net, channels, steps, fast=fast, compiled=True)}


def climbs(mine: object, theirs: object) -> str:
    """Say what ours reached; lucent reports no activation."""
    assert isinstance(mine, Maximization)
    return f"ours climbs from {float(mine.trace[0, 0]):.2g} to {float(mine.activation[0]):.2g}"


def per_image(row: Row, images: int, peer: float | None) -> Row:
    """Return a row with times divided among the images of a batch."""
    batch = "lucent" not in row.who
    share = images if batch else 1
    ratio = None if batch or peer is None else peer / images / row.seconds
    return replace(
        row,
        seconds=row.seconds / share,
        cpu_seconds=row.cpu_seconds / share,
        peer_ratio=ratio,
        floor_ratio=row.floor_ratio if batch else None,
        floor_cpu_ratio=row.floor_cpu_ratio if batch else None,
    )


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__.splitlines()[0])
    steps, many = (2, 2) if options.tiny else (24, 16)
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None).eval().to(options.device)
    peers = {}
    if find_spec("lucent") is not None:
        peers = {"lucent 0.1.8": lucent(net, steps)}
    plain, fast = Precision(), Precision("fast")
    rows = race(
        f"1 channel, {steps} steps",
        {
            "floor": floor(net, 1, steps, fast=False),
            "ours": ours(net, 1, steps, plain),
            "ours, images alone": images_alone(net, 1, steps, plain),
            **compiled(net, 1, steps, fast=False, tiny=options.tiny),
            **peers,
        },
        options.rounds,
        dict.fromkeys(peers, climbs),
    )
    name = "bf16" if has_bf16() or options.device.type == "cuda" else "bf16, emulated"
    batch = race(
        f"{many} channels at once ({name}), per image",
        {
            "floor": floor(net, many, steps, fast=True),
            "ours": ours(net, many, steps, fast),
            "ours, images alone": images_alone(net, many, steps, fast),
            **compiled(net, many, steps, fast=True, tiny=options.tiny),
            **peers,
        },
        options.rounds,
    )
    mine = next(row.seconds for row in batch if row.who == "ours")
    report([*rows, *(per_image(row, many, mine) for row in batch)], options.out)


if __name__ == "__main__":
    main()
