"""How often the columns of "read, used, moved" claim something where there is nothing, and how often where there is.

    python experiments/erasure_calibration.py [--tiny]

Nothing: matched inputs whose sides differ by noise, in a network that bends. Readable and not used: the sides differ in an
input besides, which no score reads. Used: the score reads it. Each test is at 5 % over all layers, scores and attributes of
a column; a share above 5 % + 3 standard errors where nothing is to be found is marked. Intervals should hold the truth,
which a linear network tells, in 93 to 97 %: of what is carried and needed, that of the directions as they were fitted,
which pairs without noise give; they hold the truth of directions fitted to endless data less often, which is told beside.
About ten minutes of one quiet core.
"""

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from concepts.erasure import ReadUsedMoved, ReadUsedMovedResult
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

LEVEL = 0.05
FEATURES = 6
COLUMNS = ("read", "carried", "needed", "predicted", "moved")


class Network(nn.Module):
    """Two layers with a bend between them, or none, and two scores that leave input 0 out, or read it with a weight."""

    def __init__(self, seed: int, weight: float, *, linear: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, 2)
        self.bend = nn.Identity() if linear else nn.Tanh()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / FEATURES**0.5)
            for layer in (self.first, self.second):
                layer.weight[0] = layer.weight[:, 0] = 0
                layer.weight[0, 0] = 1
            self.head.weight[:, 0] = weight
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.bend(self.second(self.bend(self.first(x)))))
        return logits


def table(
    seed: int, shift: float, weight: float, *, clusters: int, linear: bool = False, exact: bool = False
) -> ReadUsedMovedResult:
    """Return the table of one data set: two pairs to a cluster, whose sides differ by noise and by a shift of input 0.

    Held-out pairs that are exact differ by the shift alone; what is fitted is the same.
    """
    generator = torch.Generator().manual_seed(seed)
    concepts = []
    for name in ("one", "other"):
        own = torch.randn(clusters, FEATURES, generator=generator).double().repeat_interleave(2, 0)
        sides = [own + torch.randn(2 * clusters, FEATURES, generator=generator).double() for _ in range(2)]
        if exact:
            sides[0][clusters:] = sides[1][clusters:]
        sides[0][:, 0] += shift
        names = tuple(f"{name} {i // 2}" for i in range(2 * clusters))
        concepts.append(MatchedConcept(name, *map(TensorExamples, sides), names))
    net = Network(seed, weight, linear=linear)
    scores = {str(i): Score(net, i) for i in range(2)}
    how = ReadUsedMoved(("first", "second"), controls=3, relabellings=499, bootstraps=100, seed=seed)
    fitted_on = {f"{name} {i}" for name in ("one", "other") for i in range(clusters // 2)}
    return how(ActivationStore(), scores, concepts, fitted_on=fitted_on)


def share(hits: Sequence[bool], *, null: bool) -> str:
    """Return how often, in percent, and a mark where it is too often for nothing."""
    found = sum(hits) / len(hits)
    most = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / len(hits))
    return f"{100 * found:.1f} %{' !' if null and found > most else ''}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", help="not used: lines are printed")
    tiny = parser.parse_args(argv).tiny
    draws = 3 if tiny else 200
    torch.set_num_threads(1)
    print(f"{draws} data sets each: how often any cell of a column is claimed.")
    for clusters in (16, 32):
        for what, shift, weight in (("nothing", 0.0, 0.0), ("readable, not used", 3.0, 0.0), ("used", 3.0, 1.5)):
            found = [table(seed, shift, weight, clusters=clusters) for seed in range(draws)]
            nothing = ("read",) * (not shift) + (COLUMNS[1:] if not weight else ())
            shares = (f"{c} {share([bool(f.shown(c).any()) for f in found], null=c in nothing)}" for c in COLUMNS)
            print(f"{what}, {clusters} clusters: {', '.join(shares)}", flush=True)
    shift, weight, held = 3.0, 0.7, {"moved": list[float](), "carried": list[float](), "needed": list[float]()}
    fixed: dict[str, list[float]] = {"carried": [], "needed": []}
    for seed in range(draws):
        found, truth = (table(seed, shift, weight, clusters=32, linear=True, exact=exact) for exact in (False, True))
        for name, shares in held.items():
            shares.append(_share_held(found, name, torch.tensor(shift * weight)))
        for name, shares in fixed.items():
            shares.append(_share_held(found, name, getattr(truth, name)))
    for name, shares in held.items():
        print(f"interval of {name} holds the truth of a linear network: {100 * sum(shares) / draws:.1f} %")
    for name, shares in fixed.items():
        print(f"interval of {name} holds what the directions as fitted give: {100 * sum(shares) / draws:.1f} %")


def _share_held(found: ReadUsedMovedResult, name: str, truth: Tensor) -> float:
    low, high = (getattr(found, f"{name}{end}") for end in ("_low", "_high"))
    return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).double().mean())


if __name__ == "__main__":
    main()
