"""What every local and network-level method of the suite says of a net: how much it leans on a cue, against the thing.

A reading is one number per method: the larger, the more the method makes of the cue. Methods differ in unit; between
nets they are compared by rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from networks import READ_AT
from pictures import SIDE
from torch import Tensor, nn
from torch.nn import functional

from concepts.data.concept_sets import Concept
from concepts.data.segmentation import Scenes, TensorLabels, Vocabulary
from concepts.dissection.ablation import Ablation
from concepts.dissection.dissection import Dissection
from concepts.dissection.result import DissectionResult
from concepts.effects.concept_attribution import ConceptGradients
from concepts.tcav.result import TcavResult
from concepts.tcav.tcav import Tcav
from probing.attribution import METHODS
from probing.attribution.base import AttributionMethod
from probing.attribution.baselines import Samples
from probing.attribution.perturbation.surrogate import Local
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.probes import LayerProbes, SoftmaxProbe
from probing.results.heatmaps import reduce_channels
from probing.store.store import ActivationStore

CUE, THING = "cue", "thing"
ABLATED = 8
"""Units left out for each of the two."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on methods that draw samples."""

    smoothgrad: int = 25
    expected_gradients: int = 50
    lime: int = 300
    rise: int = 1000
    runs: int = 10

    @classmethod
    def tiny(cls) -> "Effort":
        """Return what is enough to see that everything runs."""
        return cls(3, 4, 40, 10, 2)


def local_method(name: str, background: Tensor, effort: Effort) -> AttributionMethod:
    """Return a method with its defaults, but for what it draws."""
    arguments: dict[str, dict[str, object]] = {
        "smoothgrad": {"samples": effort.smoothgrad},
        "expected_gradients": {
            "background": Samples.of(background),
            "samples": effort.expected_gradients,
        },
        "lime": {"surrogate": Local(effort.lime)},
        "rise": {"masks": effort.rise},
    }
    return METHODS[name](**arguments.get(name, {}))


def local_readings(
    net: nn.Module,
    images: Float[Tensor, "n 3 h w"],
    cue: Bool[Tensor, "n h w"],
    thing: Bool[Tensor, "n h w"],
    background: Float[Tensor, "m 3 h w"],
    effort: Effort,
) -> dict[str, Float[Tensor, " n"]]:
    """Return each method's share of evidence for the class that the net names: on the cue, of that on cue and thing.

    Evidence is what is positive once channels are summed. NaN where a map has none on either.
    """
    with torch.no_grad():
        named = net(images).argmax(1)
    found = {}
    for name in METHODS:
        maps = pixels(local_method(name, background, effort)(Score(net, named), images))
        on_cue, on_thing = ((maps.clamp(min=0) * mask).sum((1, 2)) for mask in (cue, thing))
        found[name] = on_cue / (on_cue + on_thing)
    return found


def pixels(found: object) -> Float[Tensor, "n h w"]:
    """Return a map at the input's resolution, channels summed."""
    maps = reduce_channels(found.upsampled(), "sum")  # type: ignore[attr-defined]
    if maps.shape[1:] != (SIDE, SIDE):
        maps = functional.interpolate(maps[:, None], (SIDE, SIDE), mode="nearest-exact")[:, 0]
    return maps.double()


def tcav(
    net: nn.Module,
    concepts: Mapping[str, Tensor],
    pool: Tensor,
    inputs: Mapping[int, Tensor],
    effort: Effort,
    seed: int,
) -> TcavResult:
    """Return TCAV of concepts, each against a pool of other pictures, at the layer that was fixed beforehand."""
    return Tcav(runs=effort.runs, relabellings=999, seed=seed)(
        ActivationStore(progress=False),
        {str(k): Score(net, k) for k in inputs},
        [READ_AT],
        [Concept(name, TensorExamples(images)) for name, images in concepts.items()],
        {str(k): TensorExamples(images) for k, images in inputs.items()},
        TensorExamples(pool),
    )


def probe_accuracy(net: nn.Module, images: Tensor, labels: Int[Tensor, " n"], groups: Sequence[str], seed: int) -> float:
    """Return how often a linear probe at the same layer is right of pictures with drawings it was not fitted on."""
    probes = LayerProbes(
        READ_AT,
        SoftmaxProbe(tolerance=1e-3),
        inputs=False,
        controls=0,
        untrained=False,
        description_length=False,
        seed=seed,
    )
    store = ActivationStore(progress=False)
    return 1 - float(probes(store, net, TensorExamples(images), labels, groups=groups).error[0])


def dissected(net: nn.Module, images: Tensor, cue: Bool[Tensor, "n h w"], thing: Bool[Tensor, "n h w"]) -> DissectionResult:
    """Return which units of the layer are active where the cue is, and which where the thing is."""
    planes = torch.where(thing, 2, torch.where(cue, 1, 0))[:, None]
    vocabulary = Vocabulary((CUE, THING), ("part", "part"))
    scenes = Scenes(TensorExamples(images), TensorLabels(planes, vocabulary), (24, 24), "input")
    # No shuffled images: where a word stands at the same place in all of them, they tell nothing from chance.
    return Dissection((READ_AT,), draws=0)(ActivationStore(progress=False), net, scenes)


def fall_without(net: nn.Module, images: Tensor, found: DissectionResult, concept: int) -> float:
    """Return how far the logit of the class named falls without a concept's units, beyond the fall without any others."""
    with torch.no_grad():
        named = net(images).argmax(1)
    order = found.unit[found.iou[:, concept].argsort(descending=True)]
    result = Ablation(READ_AT, counts=(ABLATED,))(net, TensorExamples(images), named, order)
    return float(result.score_without_random.mean() - result.score_without[0])


def divided(
    net: nn.Module,
    target: int,
    sides: Mapping[str, tuple[Tensor, Tensor]],
    ends: Tensor,
    starts: Tensor,
) -> dict[str, float]:
    """Return how the change of a class's logit from some pictures to others divides among directions, and what is left.

    Args:
        net: the net.
        target: the class.
        sides: for each direction, pictures with and without; it is the difference of their means at the layer.
        ends: pictures after the change.
        starts: the same before it.
    """
    store = ActivationStore(progress=False)
    means = [
        [store.activations(net, [READ_AT], TensorExamples(side), pool="mean")[READ_AT].mean(0) for side in both]
        for both in sides.values()
    ]
    directions = torch.stack([present - absent for present, absent in means])
    found = ConceptGradients(READ_AT)(Score(net, target), ends, directions, tuple(sides), starts)
    parts = dict(zip(sides, found.values.mean(0).tolist(), strict=True))
    return parts | {
        "remainder": float(found.remainder.mean()),
        "change": float(found.change.mean()),
    }


def network_readings(
    net: nn.Module,
    images: Tensor,
    cue: Bool[Tensor, "n h w"],
    thing: Bool[Tensor, "n h w"],
) -> dict[str, float]:
    """Return what dissection says: units that lie on the cue less those on the thing, and what leaving them out costs.

    A unit lies where more than half of the cells are in which it is highly active. Its IoU with a cue of a quarter of the
    picture is below 0.04 by the areas alone, so that the published rule calls no unit.
    """
    found = dissected(net, images, cue, thing)
    called = [(found.shared[:, c] > found.unit_area[:, c] / 2).sum() for c in (0, 1)]
    falls = [fall_without(net, images, found, c) for c in (0, 1)]
    return {
        "dissection (units)": float(called[0] - called[1]) / len(found.unit),
        "dissection (ablation)": falls[0] - falls[1],
    }
