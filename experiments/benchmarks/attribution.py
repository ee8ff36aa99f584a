"""Local explanations of eight images against captum and against the least passes that each of them needs.

    python experiments/benchmarks/attribution.py --out attribution.json [--tiny]

`floor` is the model as given, in float32 and in batches of 32 or fewer: for gradients a forward and a backward pass
without weight gradients for every point that the method asks for, for class activation maps a forward pass. Ours
runs the prepared copy (channels_last, BatchNorm folded, micro-batches). `ours (bf16)` is labelled and says how far it
agrees with float32.
"""

import os
import warnings
from collections.abc import Callable, Iterator

import torch
import torchvision
from captum.attr import (
    GuidedBackprop as CaptumGuided,
)
from captum.attr import (
    IntegratedGradients as CaptumIntegrated,
)
from captum.attr import (
    LayerGradCam,
    NoiseTunnel,
)
from captum.attr import (
    Saliency as CaptumSaliency,
)
from harness import Row, arguments, race, report
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.cam import AblationCAM, GradCAM
from probing.attribution.gradient import GuidedBackprop, Saliency, SmoothGrad
from probing.attribution.path import IntegratedGradients
from probing.gradients import frozen_parameters, input_gradient
from probing.precision import Precision
from probing.scores import Score

TARGET = 3


def captum_quietly(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return captum's work without its warnings and its graph."""

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its hooks announce themselves
            return work().detach()

    return run


def cosine(mine: object, theirs: object) -> str:
    """Say how far two sets of maps agree."""
    a = mine.values if isinstance(mine, Attribution) else mine
    b = theirs.values if isinstance(theirs, Attribution) else theirs
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    pairs = zip(a.flatten(1).double(), b.flatten(1).double(), strict=True)
    worst = min(float(torch.nn.functional.cosine_similarity(x, y, dim=0)) for x, y in pairs)
    return f"smallest cosine {worst:.6f}"


def cases(
    net: nn.Module, images: Tensor, steps: int
) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield the name of each case and its contenders."""
    score, fast = Score(net, TARGET), Precision("fast")
    points = images.repeat_interleave(steps, 0)

    def passes(inputs: Tensor) -> None:
        for part in inputs.split(32):
            input_gradient(score, part)

    def forward() -> None:
        with torch.no_grad():
            net(images)

    def leaf() -> Tensor:
        return images.clone().requires_grad_()

    yield (
        "saliency",
        {
            "floor": lambda: passes(images),
            "ours": lambda: Saliency()(score, images),
            "ours (bf16)": lambda: Saliency(precision=fast)(score, images),
            "captum": captum_quietly(
                lambda: CaptumSaliency(net).attribute(leaf(), target=TARGET, abs=False)
            ),
        },
    )
    yield (
        "guided backprop",
        {
            "floor": lambda: passes(images),
            "ours": lambda: GuidedBackprop()(score, images),
            "captum": captum_quietly(lambda: CaptumGuided(net).attribute(leaf(), target=TARGET)),
        },
    )
    yield (
        f"integrated gradients, {steps} steps",
        {
            "floor": lambda: passes(points),
            "ours": lambda: IntegratedGradients(steps=steps)(score, images),
            "ours (bf16)": lambda: IntegratedGradients(steps=steps, precision=fast)(score, images),
            "captum": captum_quietly(
                lambda: CaptumIntegrated(net).attribute(
                    images, target=TARGET, n_steps=steps, method="riemann_middle"
                )
            ),
            "captum (chunks of 8)": captum_quietly(
                lambda: CaptumIntegrated(net).attribute(
                    images,
                    target=TARGET,
                    n_steps=steps,
                    method="riemann_middle",
                    internal_batch_size=8,
                )
            ),
        },
    )
    yield (
        f"SmoothGrad, {steps} samples",
        {
            "floor": lambda: passes(points),
            "ours": lambda: SmoothGrad(samples=steps)(score, images),
            "captum": captum_quietly(
                lambda: NoiseTunnel(CaptumSaliency(net)).attribute(
                    leaf(),
                    nt_samples=steps,
                    nt_samples_batch_size=1,
                    stdevs=0.15,
                    target=TARGET,
                    abs=False,
                )
            ),
        },
    )
    layer = net.get_submodule("layer4")
    yield (
        "Grad-CAM",
        {
            "floor": forward,
            "ours": lambda: GradCAM("layer4")(score, images),
            "ours, layer found": lambda: GradCAM()(score, images),
            "captum": captum_quietly(
                lambda: LayerGradCam(net, layer).attribute(
                    images, target=TARGET, relu_attributions=True
                )
            ),
        },
    )
    yield (
        "Ablation-CAM",
        {
            "floor": forward,
            "ours": lambda: AblationCAM("layer4")(score, images),
            "ours (bf16)": lambda: AblationCAM("layer4", precision=fast)(score, images),
        },
    )


def main() -> list[Row]:
    """Run all cases."""
    args = arguments("Local explanations with a ResNet-18.")
    count, size, steps = (2, 64, 4) if args.tiny else (8, 224, 50)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    net = torchvision.models.resnet18(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # captum's guided backprop needs that
    rows: list[Row] = []
    with frozen_parameters(net):
        for case, contenders in cases(net, images, steps):
            stochastic = case.startswith("SmoothGrad")  # the noise is drawn by each library itself
            agrees = (
                {} if stochastic else dict.fromkeys(set(contenders) - {"floor", "ours"}, cosine)
            )
            rows += race(case, contenders, args.rounds, agrees)
    report(rows, args.out)
    floors = {row.case: row.cpu_seconds for row in rows if row.who == "floor"}
    for row in rows:
        if row.who == "ours":
            print(
                f"{row.case}: {row.cpu_seconds / floors[row.case]:.2f} x the floor in CPU seconds"
            )
    print(f"load average {os.getloadavg()[0]:.1f}")
    return rows


if __name__ == "__main__":
    main()
