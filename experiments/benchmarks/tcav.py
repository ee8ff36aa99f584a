"""TCAV of 1 class, 2 layers and 4 concepts against R random sets: this suite, captum, and the passes nobody can avoid.

    python experiments/benchmarks/tcav.py --out tcav.json [--tiny] [--device cuda]

`floor` is one forward pass of all distinct images and one backward pass of the class's, in the model as prepared by this
suite (channels_last, BatchNorm folded, micro-batches); `eager floor` the same in the model as given. Every contender
starts from nothing stored. Both suites read the same images, layers and pairs of sets, but solve different problems:
captum fits an L2-penalised hinge loss by stochastic gradient descent (its default), here a ridge regression is solved
exactly, so scores are compared loosely. `ours, all statistics` adds the permutation null, the bootstrap and the effect in
logits with their defaults, which captum does not have.
"""

import tempfile
import warnings
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import torch
import torchvision
from captum.concept import TCAV, Concept as CaptumConcept
from harness import Row, arguments, race, report
from torch import Tensor
from torch.utils.data import DataLoader

from concepts.data.concept_sets import Concept, random_sets
from concepts.data.synthetic import SyntheticImages
from concepts.tcav.result import TcavResult
from concepts.tcav.tcav import Tcav
from probing.data.examples import TensorExamples
from probing.models.precision import Precision
from probing.models.runner import Runner
from probing.models.scores import Score
from probing.store.store import ActivationStore

LAYERS = ["layer3", "layer4"]


class Task:
    """The images, the model, and every contender's way through them."""

    def __init__(self, per_set: int, pool: int, size: int, device: torch.device) -> None:
        def drawn(pattern: str, count: int, seed: int = 0) -> Tensor:
            return SyntheticImages(pattern, count, size, seed).tensor().float() / 127.5 - 1

        self.device = device
        self.net = torchvision.models.resnet18(weights=None).to(device).eval()
        self.concepts = {name: drawn(name, per_set) for name in ("stripes", "dots", "zigzags", "checks")}
        self.pool, self.inputs = drawn("plain", pool), drawn("plain", per_set, seed=1)
        self.new = drawn("stripes", per_set, seed=2)
        self.pool_examples, self.input_examples = (
            TensorExamples(self.pool),
            TensorExamples(self.inputs),
        )
        self.sets = [Concept(name, TensorExamples(images)) for name, images in self.concepts.items()]
        self.score = Score(self.net, 7)
        rows = 8 if device.type == "cpu" else 128
        self.batch = max(1, min(128, rows * 224 * 224 // (size * size)))

    def floor(self, precision: Precision, batch: int) -> None:
        runner = Runner.of(self.net, ["layer3"], precision, self.device, self.pool)
        for images in (*self.concepts.values(), self.pool):
            with torch.no_grad():
                for part in images.split(batch):
                    runner.prepared.model(runner.prepared.inputs(part))
        for part in self.inputs.split(batch):
            runner.run(part, ["layer3"], "none", [self.score])

    def ours(self, runs: int, *, all_statistics: bool = False) -> TcavResult:
        method = Tcav(runs=runs, pool="none") if all_statistics else plain(runs)
        return self.tcav(method, ActivationStore(progress=False), self.sets)

    def tcav(self, method: Tcav, store: ActivationStore, concepts: Sequence[Concept]) -> TcavResult:
        return method(
            store,
            {"class 7": self.score},
            LAYERS,
            concepts,
            self.input_examples,
            self.pool_examples,
        )

    def captum(self, runs: int) -> dict[str, Tensor]:
        """Return the share of positive sensitivities by layer, [concepts, runs]."""

        def concept(number: int, name: str, images: Tensor) -> CaptumConcept:
            return CaptumConcept(number, name, DataLoader(images.to(self.device), batch_size=len(images)))  # type: ignore[arg-type]

        per_set = len(self.inputs)
        random = random_sets(self.pool_examples, per_set, runs, seed=0)
        named = [concept(i, name, images) for i, (name, images) in enumerate(self.concepts.items())]
        counterparts = [concept(100 + i, f"random {i}", self.pool[list(rows)]) for i, rows in enumerate(random)]
        pairs = [[c, r] for c in named for r in counterparts]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = TCAV(self.net, LAYERS, save_path=folder).interpret(self.inputs.to(self.device), pairs, target=7)
        by_layer = {layer: [float(found[f"{p[0].id}-{p[1].id}"][layer]["sign_count"][0]) for p in pairs] for layer in LAYERS}
        return {layer: torch.tensor(scores).reshape(len(named), runs) for layer, scores in by_layer.items()}

    def new_concept(self, runs: int, rounds: int) -> float:
        """Return milliseconds per CAV of a concept on stored activations, beyond its own forward passes."""
        spent = []
        for turn in range(rounds + 1):
            store = ActivationStore(progress=False)
            self.tcav(plain(runs), store, self.sets)
            added = Concept("new", TensorExamples(self.new + 1e-3 * turn))
            start = perf_counter()
            store.activations(self.net, LAYERS, added.examples)
            forward = perf_counter() - start
            start = perf_counter()
            self.tcav(plain(runs), store, [added])
            spent.append(perf_counter() - start)
            print(f"  new concept, {runs} runs: its forward passes {forward:.2f} s, then {spent[-1]:.2f} s")
        return 1000 * median(spent[1:]) / (runs * len(LAYERS))


def plain(runs: int) -> Tcav:
    """What captum computes: scores of R CAVs, without null, intervals or effects."""
    return Tcav(runs=runs, pool="none", null=None, bootstraps=0, relabellings=1)


def gap(mine: object, theirs: object) -> str:
    """Return how the mean scores compare."""
    assert isinstance(mine, TcavResult)
    assert isinstance(theirs, dict)
    other = torch.stack([theirs[layer].mean(1) for layer in LAYERS])
    return f"mean scores differ by {float((mine.mean[:, :, 0] - other).abs().mean()):.2f} on average"


def main() -> list[Row]:
    """Run the benchmark."""
    args = arguments("TCAV against captum and the floor.")
    task = Task(*(12, 36, 48) if args.tiny else (20, 200, 224), args.device)
    few, some, many = (2, 3, 4) if args.tiny else (10, 50, 500)
    exact = Precision()
    rows = race(
        f"1 class, 2 layers, 4 concepts, {4 * len(task.inputs) + len(task.pool) + len(task.inputs)} images",
        {
            "floor": lambda: task.floor(exact, task.batch),
            "eager floor": lambda: task.floor(Precision("reference"), 32),
            "ours": lambda: task.ours(few),
            f"ours, R = {some}": lambda: task.ours(some),
            f"ours, R = {many}": lambda: task.ours(many),
            "ours, all statistics": lambda: task.ours(few, all_statistics=True),
            "captum": lambda: task.captum(few),
        },
        args.rounds,
        {"captum": gap},
    )
    report(rows, args.out)
    print(
        f"'ours', 'ours, all statistics' and captum have R = {few}. A concept added to stored activations costs "
        f"{task.new_concept(some, args.rounds):.2f} ms a CAV beyond its own forward passes."
    )
    return rows


if __name__ == "__main__":
    main()
