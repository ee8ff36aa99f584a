"""A few results of every kind of figure, made in seconds: a small network that tells drawn shapes apart."""

from pathlib import Path

import torch
from torch import nn

from concepts.data.concept_sets import Concept
from concepts.tcav.tcav import Tcav
from probing.atlas import Atlas, Pca
from probing.attribution import GradCAM, GradientTimesInput, Saliency
from probing.data.examples import Subset, TensorExamples
from probing.data.toy_images import SHAPES, shapes
from probing.evaluation.axioms import Completeness, Dummy, axiom_table
from probing.evaluation.curves import Deletion
from probing.evaluation.randomisation import PRIMARY, CascadingRandomisation
from probing.evaluation.scorecard.measure import Scoring
from probing.maximization import Logit, Maximize, Pixels, Space
from probing.models.scores import Score
from probing.probes import LayerProbes
from probing.store.store import ActivationStore

SIZE = 16


def make(folder: Path) -> Path:
    """Write results into a folder, one subfolder each, and return it."""
    drawn = shapes(120, seed=0, size=SIZE)
    net = _trained(drawn.images, drawn.labels)
    examples, store = TensorExamples(drawn.images), ActivationStore()
    names = [SHAPES[label] for label in drawn.labels]
    of = {name: [i for i, own in enumerate(names) if own == name] for name in SHAPES}
    score = Score(net).named(drawn.images[:6])
    few = drawn.images[:6]
    concepts = [Concept(name, Subset(examples, of[name][:20])) for name in SHAPES[:2]]
    inputs, pool = (Subset(examples, of[name]) for name in SHAPES[2:])
    methods = {
        "saliency": Saliency(),
        "gradient times input": GradientTimesInput(),
        "Grad-CAM": GradCAM(),
    }
    results = {
        "attribution": GradientTimesInput()(Score(net, 0), few[:2]),
        "curves": Deletion(steps=4, patch=4, orders=("most", "random"), random_orders=2)(Saliency(), score, few),
        "randomisation": CascadingRandomisation(seeds=2, measures=PRIMARY)(Saliency(), score, few),
        "axioms": axiom_table(methods, score, few, {"completeness": Completeness(), "dummy": Dummy()}),
        "scorecard": Scoring(steps=4, grid=4, draws=4, seeds=1, probed=2)(methods, score, few),
        "probes": LayerProbes(("1", "4"))(store, net, examples, names),
        "atlas": Atlas("4", Pca(), grid=4)(store, net, examples, names),
        "tcav": Tcav(runs=2, relabellings=99, bootstraps=20)(
            store, {"cross": Score(net, 3)}, ["1", "4"], concepts, inputs, pool
        ),
        "maximization": Maximize(Pixels(), steps=4, size=SIZE)(
            net,
            [Logit(k, name) for k, name in enumerate(SHAPES)],
            space=Space((0.0,), (1.0,), "grey"),
            progress=False,
        ),
    }
    for name, found in results.items():
        found.save(folder / name)
    return folder


def _trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, len(SHAPES)),
        )
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)
    return net.eval()
