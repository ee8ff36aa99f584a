"""Local explanations of eight images against captum and against the least passes that each of them needs.

    python experiments/benchmarks/attribution.py --out attribution.json [--tiny] [--device cuda]

`floor` is the model as given, in float32 and in batches of 32 or fewer: for gradients a forward and a backward pass
without weight gradients for every point that the method asks for, for class activation maps a forward pass. Ours
runs the prepared copy (channels_last, BatchNorm folded, micro-batches). `ours (bf16)` is labelled and says how far it
agrees with float32.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torchvision
from captum.attr import (
    LRP as CaptumLRP,  # noqa: N811 (a class, not a constant)
    DeepLift as CaptumDeepLift,
    DeepLiftShap as CaptumDeepShap,
    FeatureAblation as CaptumAblation,
    GuidedBackprop as CaptumGuided,
    IntegratedGradients as CaptumIntegrated,
    InternalInfluence as CaptumInfluence,
    LayerConductance as CaptumConductance,
    LayerGradCam,
    Lime as CaptumLime,
    NoiseTunnel,
    Occlusion as CaptumOcclusion,
    Saliency as CaptumSaliency,
    ShapleyValueSampling,
)
from captum.attr._utils.lrp_rules import EpsilonRule
from harness import Row, arguments, race, report
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.baselines import ZERO
from probing.attribution.cam.eigen_cam import EigenCAM
from probing.attribution.cam.grad_cam import AblationCAM, GradCAM
from probing.attribution.cam.score_cam import ScoreCAM
from probing.attribution.conductance import InternalInfluence, LayerConductance
from probing.attribution.deep_lift import DeepLIFT, DeepSHAP
from probing.attribution.gradient import GuidedBackprop, Saliency, SmoothGrad
from probing.attribution.lrp.composites import (
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    Uniform,
)
from probing.attribution.lrp.lrp import LRP
from probing.attribution.lrp.rules import Epsilon
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.occlusion import FeatureAblation, Occlusion
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.superpixels import Given, Grid
from probing.attribution.perturbation.surrogate import Local, ShapleySampling
from probing.models.gradients import input_gradient
from probing.models.precision import Precision
from probing.models.scores import Score

TARGET = 3
EPSILON = 1e-6


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
    pairs = list(zip(a.flatten(1).double(), b.flatten(1).double(), strict=True))
    shown = [(x, y) for x, y in pairs if x.any() or y.any()]  # both may be empty
    found = (float(torch.nn.functional.cosine_similarity(x, y, dim=0)) for x, y in shown)
    worst = min(found, default=1.0)
    return f"smallest cosine {worst:.6f}"


def gradient_cases(net: nn.Module, images: Tensor, steps: int) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield the name of each case and its contenders."""
    score, fast = Score(net, TARGET), Precision("fast")
    points = images.repeat_interleave(steps, 0)

    def passes(inputs: Tensor) -> None:
        for part in inputs.split(32):
            input_gradient(score, part)

    def leaf() -> Tensor:
        return images.clone().requires_grad_()

    yield (
        "saliency",
        {
            "floor": lambda: passes(images),
            "ours": lambda: Saliency()(score, images),
            "ours (bf16)": lambda: Saliency(precision=fast)(score, images),
            "captum": captum_quietly(lambda: CaptumSaliency(net).attribute(leaf(), target=TARGET, abs=False)),
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
                lambda: CaptumIntegrated(net).attribute(images, target=TARGET, n_steps=steps, method="riemann_middle")
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


def cam_cases(net: nn.Module, images: Tensor) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield class activation maps of a ResNet-18, a MobileNetV3 and a VGG-16."""
    score, fast = Score(net, TARGET), Precision("fast")

    def forward(model: nn.Module) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                model(images)

        return run

    layer = net.get_submodule("layer4")
    yield (
        "Grad-CAM",
        {
            "floor": forward(net),
            "ours": lambda: GradCAM("layer4")(score, images),
            "ours, layer found": lambda: GradCAM()(score, images),
            "captum": captum_quietly(
                lambda: LayerGradCam(net, layer).attribute(images, target=TARGET, relu_attributions=True)
            ),
        },
    )
    yield "Eigen-CAM", {"floor": forward(net), "ours": lambda: EigenCAM("layer4")(score, images)}
    one = images[:1]

    def seen() -> None:
        with torch.no_grad():
            for part in one.expand(513, -1, -1, -1).split(32):  # of 512 channels, and the whole image
                net(part)

    yield "Score-CAM of one image", {"floor": seen, "ours": lambda: ScoreCAM("layer4")(score, one)}
    for name in ("resnet18", "mobilenet_v3_small", "vgg16"):
        model = net if name == "resnet18" else frozen(calibrated(name, images))
        of = Score(model, TARGET)
        yield (
            f"Ablation-CAM, {name}",
            {
                "floor": forward(model),
                "ours": lambda of=of: AblationCAM()(of, images),
                "ours (bf16)": lambda of=of: AblationCAM(precision=fast)(of, images),
            },
        )


def lrp_cases(images: Tensor) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield composites of LRP on a VGG-16 against captum (ε) and zennit."""
    net = frozen(torchvision.models.vgg16().to(images.device))
    score = Score(net, TARGET)
    low, high = float(images.min()), float(images.max())

    def floor() -> None:
        for part in images.split(8):
            input_gradient(score, part)

    def captum() -> Tensor:
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.rule = EpsilonRule(EPSILON)
        return CaptumLRP(net).attribute(images.clone(), target=TARGET)

    peers: dict[str, Callable[[], Tensor]] = {"captum": captum}
    by_zennit = zennit_composites(low, high)

    def case(name: str, composite: Composite) -> tuple[str, dict[str, Callable[[], object]]]:
        contenders: dict[str, Callable[[], object]] = {
            "floor": floor,
            "ours": lambda: LRP(composite)(score, images),
        }
        if name == "epsilon":
            contenders |= {who: captum_quietly(work) for who, work in peers.items()}
        if name in by_zennit:
            contenders["zennit"] = zennit_map(net, images, by_zennit[name])
        return f"LRP {name}, vgg16", contenders

    yield case("epsilon", Uniform(Epsilon(EPSILON)))
    yield case("EpsilonPlus", EpsilonPlus())
    yield case("EpsilonPlusFlat", EpsilonPlusFlat())
    yield case("EpsilonGammaBox", EpsilonGammaBox(low, high))
    yield case("EpsilonAlpha2Beta1", EpsilonAlpha2Beta1())


def difference_cases(images: Tensor, references: int) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield DeepLIFT of a VGG-16 from black, and its mean over references; captum takes no network whose ReLU runs twice."""
    net = frozen(torchvision.models.vgg16().to(images.device))
    score, black = Score(net, TARGET), torch.zeros_like(images)
    background = images.flip(3)[:references]

    def passes(inputs: Tensor, starts: Tensor) -> None:
        for part in inputs.split(8):
            input_gradient(score, part)
        with torch.no_grad():
            for part in starts.split(8):
                net(part)

    yield (
        "DeepLIFT, vgg16",
        {
            "floor": lambda: passes(images, black[:1]),
            "ours": lambda: DeepLIFT()(score, images),
            "captum": captum_quietly(lambda: CaptumDeepLift(net).attribute(images.clone(), black, target=TARGET)),
        },
    )
    yield (
        f"DeepSHAP, {len(background)} references, vgg16",
        {
            "floor": lambda: passes(images.repeat(len(background), 1, 1, 1), background),
            "ours": lambda: DeepSHAP(background)(score, images),
            "captum": captum_quietly(lambda: CaptumDeepShap(net).attribute(images.clone(), background, target=TARGET)),
        },
    )


def layer_cases(net: nn.Module, images: Tensor, steps: int) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield what flows through a layer of a ResNet-18 along the path from black."""
    score, layer = Score(net, TARGET), net.get_submodule("layer3")
    points = images.repeat_interleave(steps, 0)

    def floor() -> None:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
            kept[:] = [output.detach().requires_grad_()]
            return kept[0]

        handle = layer.register_forward_hook(keep)
        for part in points.split(32):
            torch.autograd.grad(net(part)[:, TARGET].sum(), kept)
        handle.remove()

    together: dict[str, Any] = {"target": TARGET, "n_steps": steps, "internal_batch_size": 32}
    yield (
        f"conductance, {steps} steps",
        {
            "floor": floor,
            "ours": lambda: LayerConductance("layer3", steps=steps)(score, images),
            "captum": captum_quietly(lambda: CaptumConductance(net, layer).attribute(images, **together)),
        },
    )
    yield (
        f"internal influence, {steps} steps",
        {
            "floor": floor,
            "ours": lambda: InternalInfluence("layer3", steps=steps)(score, images),
            "captum": captum_quietly(lambda: CaptumInfluence(net, layer).attribute(images, **together)),
        },
    )


def zennit_composites(low: float, high: float) -> dict[str, object]:
    """Return zennit's composites by our names; none where it is not installed."""
    try:
        from zennit import composites
    except ImportError:
        return {}
    box = composites.EpsilonGammaBox(low=low, high=high)
    names = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1")
    return {n: getattr(composites, n)() for n in names} | {"EpsilonGammaBox": box}


def zennit_map(net: nn.Module, images: Tensor, composite: Any) -> Callable[[], Tensor]:
    """Return zennit's work: the relevance of the target's logit."""

    def run() -> Tensor:
        leaf = images.clone().requires_grad_()
        with composite.context(net) as modified:
            logit = modified(leaf)[:, TARGET]
            (relevance,) = torch.autograd.grad(logit, leaf, logit.detach())
        return relevance

    return run


def lime_cases(net: nn.Module, images: Tensor, samples: int) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield LIME on one image with a ResNet-18, and with a model that costs nothing: its own overhead."""
    one, side = images[:1], images.shape[-1]
    masks = Grid(7, 7)(one)
    cut = Given.of(masks[:, 0])
    surrogate = Local(samples=samples)

    def free() -> nn.Module:
        return Free().eval()

    for name, model in (("ResNet-18", net), ("a model that costs nothing", free())):
        score = Score(model, TARGET if name == "ResNet-18" else 0, "probability")

        def floor(model: nn.Module = model) -> None:
            with torch.no_grad():
                for start in range(0, samples, 32):
                    model(one.expand(min(32, samples - start), -1, -1, -1))

        def captum(model: nn.Module = model, target: int = score.target) -> Tensor:  # type: ignore[assignment]
            explain = CaptumLime(lambda x: model(x).softmax(1))
            return explain.attribute(
                one,
                target=target,
                feature_mask=masks,
                baselines=0,
                n_samples=samples,
                perturbations_per_eval=32,
            )

        lime = LIME(cut, surrogate=surrogate)
        contenders: dict[str, Callable[[], object]] = {
            "floor": floor,
            "ours": lambda score=score, lime=lime: lime(score, one),
            "captum": captum_quietly(captum),
        }
        if name == "ResNet-18":
            fast = replace(lime, precision=Precision("fast"))
            contenders["ours (bf16)"] = lambda score=score, fast=fast: fast(score, one)
        if peer := lime_package(model, one, masks[0, 0], samples):
            contenders["lime"] = peer
        yield f"LIME, {samples} samples, {name}, {side} px", contenders


def removal_cases(net: nn.Module, images: Tensor) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    """Yield what hides windows or parts of one image: the same maps by captum, but for orders that each draws itself."""
    one, score = images[:1], Score(net, TARGET)
    side = images.shape[-1] // 8
    masks = Grid(7, 7)(one)
    cut = Given.of(masks[:, 0])
    together: dict[str, Any] = {"target": TARGET, "perturbations_per_eval": 32}

    def floor(count: int) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                for start in range(0, count, 32):
                    net(one.expand(min(32, count - start), -1, -1, -1))

        return run

    yield (
        "occlusion, 225 windows",
        {
            "floor": floor(226),
            "ours": lambda: Occlusion()(score, one),
            "captum": captum_quietly(
                lambda: CaptumOcclusion(net).attribute(one, (3, side, side), (3, side // 2, side // 2), **together)
            ),
        },
    )
    yield (
        "feature ablation, 49 parts",
        {
            "floor": floor(50),
            "ours": lambda: FeatureAblation(cut)(score, one),
            "captum": captum_quietly(lambda: CaptumAblation(net).attribute(one, feature_mask=masks, **together)),
        },
    )
    yield (
        "Shapley values, 4 orders of 49 parts",
        {
            "floor": floor(4 * 48 + 2),
            "ours": lambda: Shapley(cut, ZERO, ShapleySampling(4))(score, one),
            "captum": captum_quietly(
                lambda: ShapleyValueSampling(net).attribute(one, feature_mask=masks, n_samples=4, **together)
            ),
        },
    )


class Free(nn.Module):
    """Scores two classes by a single pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2, 0, 0]


def lime_package(model: nn.Module, image: Tensor, labels: Tensor, samples: int) -> Callable[[], object] | None:
    """Return the reference implementation's work, without progress bars; None where it is not installed."""
    try:
        from lime.lime_image import LimeImageExplainer
    except ImportError:
        return None
    pixels = image[0].permute(1, 2, 0).double().cpu().numpy()

    def classify(batch: Any) -> Any:
        with torch.no_grad():
            inputs = torch.as_tensor(batch).float().permute(0, 3, 1, 2).to(image.device)
            return model(inputs).softmax(1).cpu().numpy()

    def run() -> object:
        with redirect_stderr(io.StringIO()):  # its progress bar
            return LimeImageExplainer(random_state=0).explain_instance(
                pixels,
                classify,
                labels=(0,),
                top_labels=None,
                num_samples=samples,
                batch_size=32,
                segmentation_fn=lambda _: labels.cpu().numpy(),
            )

    return run


def calibrated(name: str, images: Tensor) -> nn.Module:
    """Return a torchvision network with activations of ordinary size: BatchNorm's statistics are of these images."""
    net: nn.Module = getattr(torchvision.models, name)().to(images.device)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of the one batch
    with torch.no_grad():
        net.train()(images)
    return net


def frozen(net: nn.Module) -> nn.Module:
    """Return a network in evaluation mode, as captum needs it: no ReLU works in place."""
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return net.eval().requires_grad_(False)


def main() -> list[Row]:
    """Run all cases."""
    args = arguments("Local explanations of images.")
    count, size, steps, samples = (2, 64, 4, 40) if args.tiny else (8, 224, 50, 1000)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator).to(args.device)
    net = frozen(torchvision.models.resnet18().to(args.device))
    rows: list[Row] = []
    every = chain(
        gradient_cases(net, images, steps),
        cam_cases(net, images),
        lrp_cases(images),
        difference_cases(images, references=2 if args.tiny else 4),
        layer_cases(net, images, steps),
        lime_cases(net, images, samples),
        removal_cases(net, images),
    )
    for case, contenders in every:
        if args.only in case:
            # Noise and coalitions are drawn by each library itself.
            stochastic = case.startswith(("SmoothGrad", "LIME", "Shapley"))
            compared = {"ours (bf16)"} if stochastic else set(contenders) - {"floor", "ours"}
            agrees = dict.fromkeys(compared & set(contenders), cosine)
            rows += race(case, contenders, args.rounds, agrees)
    report(rows, args.out)
    floors = {row.case: row.cpu_seconds for row in rows if row.who == "floor"}
    for row in rows:
        if row.who == "ours":
            print(f"{row.case}: {row.cpu_seconds / floors[row.case]:.2f} x the floor in CPU seconds")
    print(f"load average {os.getloadavg()[0]:.1f}")
    return rows


if __name__ == "__main__":
    main()
