"""Everything on an accelerator without float64, beside the CPU.

`python slim_worker.py FILE` writes what went wrong with each case, as JSON; more arguments choose cases.
"""

import copy
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

import nets
import slim
import torch
from dissection_nets import named, scenes_of
from torch import Tensor, nn

from concepts.data.concept_sets import Concept
from concepts.dissection.ablation import Ablation
from concepts.dissection.dissection import Dissection
from concepts.effects.concept_attribution import ConceptGradients
from concepts.effects.logit_effect import LogitEffect
from concepts.local_vs_global.compare import Compare
from concepts.local_vs_global.matched_pairs import MatchedConcept
from concepts.tcav.sampling import Relabelled
from concepts.tcav.tcav import Tcav
from probing.atlas import Atlas, Pca
from probing.attribution import METHODS
from probing.attribution.base import AttributionMethod
from probing.attribution.baselines import Blurred, Samples
from probing.attribution.gradient import Saliency
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.owen import Owen, OwenSampling
from probing.attribution.perturbation.rise import RISE
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.surrogate import Local, ShapleySampling
from probing.core.errors import ArgumentError
from probing.data.examples import TensorExamples
from probing.evaluation import axioms, complexity, curves, localisation, randomisation, robustness
from probing.maximization import Channel, Fourier, Maximize, Space
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.probes import LayerProbes, RidgeProbe, SoftmaxProbe
from probing.store.store import ActivationStore

Read = Callable[[nn.Module, torch.device], Sequence[Tensor]]
X, TARGETS = nets.images(4, size=8), torch.tensor([0, 1, 2, 1])
MANY = nets.images(40, size=8, seed=1)
LABELS = torch.arange(40) % 2
MANY[LABELS == 1, :, :4] += 1
SLOW = {"expected_gradients", "lime", "ablationcam", "rise", "shapley", "owen", "sobol", "guided_ig", "blur_ig"}
METHODS_TRIED: dict[str, AttributionMethod] = {name: METHODS[name]() for name in METHODS if name not in SLOW} | {
    "expected_gradients": METHODS["expected_gradients"](background=Samples.of(nets.images(3, size=8, seed=9)), samples=5),  # type: ignore[call-arg]
    "lime": LIME(surrogate=Local(samples=100)),
    "rise": RISE(masks=40),
    "shapley": Shapley(by=ShapleySampling(4)),
    "owen": Owen(by=OwenSampling(4)),
    "sobol": METHODS["sobol"](masks=2),  # type: ignore[call-arg]
    "guided_ig": METHODS["guided_ig"](steps=4),  # type: ignore[call-arg]
    "blur_ig": METHODS["blur_ig"](steps=4),  # type: ignore[call-arg]
    "ablationcam": METHODS["ablationcam"](),
    "ig auto": IntegratedGradients(steps="auto"),
    "ig mc": IntegratedGradients(rule="mc", steps=8),
    "ig blurred": IntegratedGradients(Blurred(), steps=8),
    "variance": METHODS["smoothgrad"](samples=4, statistic="variance"),  # type: ignore[call-arg]
}
METRICS: dict[str, Callable[[Score, Tensor, Tensor], object]] = (
    {
        type(metric).__name__: lambda s, x, _, m=metric: m(IntegratedGradients(steps=4), s, x)
        for metric in (
            axioms.Completeness(),
            axioms.SensitivityA(),
            axioms.Dummy(),
            axioms.Linearity(),
            axioms.Symmetry(),
            axioms.ImplementationInvariance(),
            axioms.InputShift(),
            complexity.Gini(),
            complexity.EffectivePlaces(),
            complexity.ExplanationLength(),
            complexity.PictureBytes(),
            curves.Deletion(),
            curves.Insertion(),
            curves.PixelFlipping(),
            curves.Road(),
            robustness.MaxSensitivity(),
            robustness.Infidelity(),
            robustness.SensitivityN(),
            randomisation.CascadingRandomisation(seeds=1, steps=2),
            randomisation.IndependentRandomisation(seeds=1, steps=2),
        )
    }
    | {
        f"{type(metric).__name__} of maps": lambda s, x, maps, m=metric: m(maps, s, x)
        for metric in (complexity.Gini(), curves.Deletion(), robustness.SensitivityN())
    }
    | {
        type(metric).__name__: lambda s, x, maps, m=metric: m(
            maps, s, x, torch.arange(64).reshape(1, 8, 8).expand(4, 8, 8) < 20
        )
        for metric in (
            localisation.PointingGame(),
            localisation.EnergyShare(),
            localisation.RelevanceRank(),
            localisation.MaskIou(),
            localisation.InsideAuroc(),
        )
    }
)


def numbers(result: object) -> list[Tensor]:
    """Return all tensors of a result."""
    found: list[Tensor] = []
    for value in vars(result).values():
        parts = value.values() if isinstance(value, dict) else [value]
        found += [part.detach().cpu() for part in parts if isinstance(part, Tensor)]
    return found


def _method(method: AttributionMethod, there: bool) -> Read:
    return lambda net, device: numbers(method(Score(net, TARGETS.to(device)), X.to(device if there else "cpu")))


def _metric(measure: Callable[[Score, Tensor, Tensor], object]) -> Read:
    def read(net: nn.Module, device: torch.device) -> Sequence[Tensor]:
        maps = X.abs().to(device)
        return numbers(measure(Score(net, TARGETS), X.to(device), maps))

    return read


def _stored(read: Callable[[ActivationStore, nn.Module], object], *, kept: bool = True) -> Read:
    return lambda net, device: numbers(read(ActivationStore(device=device if kept else None, progress=False), net))


def _rows(store: ActivationStore, net: nn.Module) -> object:
    return store.read([Score(net, 1)], ["features.2"], TensorExamples(MANY))


def _tcav(store: ActivationStore, net: nn.Module) -> object:
    method = Tcav(runs=3, null=Relabelled(19), bootstraps=5, relabellings=19)
    concept = Concept("c", TensorExamples(MANY[LABELS == 1]))
    pool, inputs = TensorExamples(nets.images(40, size=8, seed=4)), TensorExamples(X)
    return method(store, {"k": Score(net, 1)}, ["features.2"], [concept], inputs, pool)


def _effect(store: ActivationStore, net: nn.Module) -> object:
    method = LogitEffect(relabellings=19, bootstraps=5)
    return method(store, {"k": Score(net, 1)}, ["features.2"], MANY[LABELS == 1], MANY[LABELS == 0], X)


def _compare(store: ActivationStore, net: nn.Module) -> object:
    method = Compare("features.2", {"saliency": Saliency()}, steps=2, explained=4, relabellings=19, pseudo_concepts=19)
    concept = MatchedConcept("c", TensorExamples(MANY[:16] + 1), TensorExamples(MANY[:16]))
    return method(store, {"k": Score(net, 1)}, [concept])


def _projection(net: nn.Module, device: torch.device) -> Sequence[Tensor]:
    directions = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).to(device)
    found = ConceptGradients("features.2", steps=3)(Score(net, 1), X.to(device), directions, ("a", "b"), X.to(device) + 1)
    return numbers(found)


def _probes(probe: SoftmaxProbe | RidgeProbe) -> Callable[[ActivationStore, nn.Module], object]:
    method = LayerProbes(("features.0", "features.2"), probe, untrained=False)
    return lambda store, net: method(store, net, TensorExamples(MANY), LABELS)


def _maximized(store: ActivationStore, net: nn.Module) -> object:
    made = Maximize(Fourier(), steps=2, size=8, transforms=())(
        net, Channel("features.0", 1), space=Space((0.0,), (1.0,), "grey", size=8), store=store, examples=MANY
    )
    return made.beside


def _refused(net: nn.Module, device: torch.device) -> Sequence[Tensor]:
    """Return nothing where float64 is asked for in vain."""
    wide = Precision("float64")
    try:
        Saliency(precision=wide)(Score(net, 1), X)
        ActivationStore(precision=wide, progress=False).activations(net, [""], X)
    except ArgumentError as error:
        return [] if device == slim.SLIM and "has no float64" in str(error) else [X]
    return [] if device == slim.CPU else [X]


CASES: dict[str, Read] = {
    **{f"{name}, inputs here": _method(m, there=False) for name, m in METHODS_TRIED.items()},
    **{f"{name}, inputs there": _method(m, there=True) for name, m in METHODS_TRIED.items()},
    **{name: _metric(measure) for name, measure in METRICS.items()},
    "rows here": _stored(_rows, kept=False),
    "rows there": _stored(_rows),
    "tcav": _stored(_tcav),
    "effect": _stored(_effect),
    "compare": _stored(_compare),
    "projection": _projection,
    "softmax probes": _stored(_probes(SoftmaxProbe((1e-2,)))),
    "ridge probes": _stored(_probes(RidgeProbe())),
    "atlas": _stored(lambda store, net: Atlas("features.2", Pca())(store, net, TensorExamples(MANY))),
    "dissection": _stored(
        lambda store, net: Dissection(("features.0",), draws=9)(
            store, net, scenes_of(MANY, (MANY[:, :1] > 0.5).long(), named(1))
        )
    ),
    "ablation": lambda net, device: numbers(
        Ablation("features.2", counts=(1, 2), draws=1)(net, TensorExamples(MANY), LABELS, torch.arange(5))
    ),
    "maximization": _stored(_maximized),
    "float64": _refused,
}


def tried(read: Read, net: nn.Module, expected: Sequence[Tensor]) -> str:
    """Return what goes wrong on the device; nothing if it gives the CPU's numbers."""
    try:
        with slim.Computing():
            found = read(copy.deepcopy(net).to(slim.SLIM), slim.SLIM)
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, equal_nan=True)
    except Exception as error:  # whatever it is, the test tells
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" not in f.filename]
        ours = [f for f in frames if "/probing/" in f.filename or "/concepts/" in f.filename]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(ours[-4:]))
        return f"{type(error).__name__}: {str(error)[:300]} ({places})"
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    only = sys.argv[2:]
    found = {}
    for name, read in CASES.items():
        if not only or any(word in name for word in only):
            net = nets.seeded(nets.ConvNet())
            found[name] = tried(read, net, read(net, slim.CPU))
    Path(sys.argv[1]).write_text(json.dumps(found))
