"""How often the tests of a discovery reject where there is nothing, and from what strength on they find what is there.

    python experiments/discovery_calibration.py [--tiny]

Nothing: rows without structure (stability), heads drawn at random (importance), matched images that differ by noise (swap),
names of noise (names); for whole discoveries in a small network. Something: an attribute that grows. A test at 5 %
should reject in 5 % of the data sets or fewer; what is more than 5 % + 3 standard errors is marked. And whether sparse
autoencoders end where nothing is missed, if they could. All of it takes about 20 minutes of one quiet core.
"""

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from concepts.discovery import Discovery, DiscoveryResult, KMeans, Nmf, Pca, SemiNmf, Strengths, TopKAutoencoder
from concepts.discovery.learners import Learner
from concepts.discovery.matching import agreement
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

LEVEL = 0.05


class Network(nn.Module):
    """Two convolutions and a linear head, all weights drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(12, 3)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def bound(draws: int) -> float:
    """Return the level and three standard errors of a share among so many draws."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)


def stability(learner: Learner, offset: float, seed: int) -> tuple[bool, bool]:
    """Return whether halves of rows without structure agree on average, and in any atom."""
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(seed)) + offset
    found = agreement(learner(rows[::2]), learner(rows[1::2]), rows, 99, seed)
    return found.p_mean <= LEVEL, bool((found.p <= LEVEL).any())


def discovered(strength: float, seed: int) -> DiscoveryResult:
    """Return a discovery in noise, whose matched sides differ by a patch of some strength besides noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 40, 3, 8, 8, generator=generator)
    positive, negative = noise[1].clone(), noise[2]
    positive[:, 0, 2:5, 2:5] += strength
    examples = torch.cat([noise[0], negative, positive])
    clusters = [f"lone {i}" for i in range(40)] + 2 * [f"pair {i}" for i in range(40)]
    names = tuple(clusters[40:80])
    net = Network(seed)
    method = Discovery(
        "body", Nmf(6, iterations=40), refits=0, draws=99, relabellings=999, explained=16, twin=False, seed=seed
    )
    return method(
        ActivationStore(),
        net,
        examples,
        {"class 0": Score(net, 0)},
        clusters=clusters,
        matched=[MatchedConcept("patch", TensorExamples(positive), TensorExamples(negative), names)],
        strengths=Strengths(("a", "b", "c", "d"), torch.randn(120, 4, generator=generator)),
    )


def misses_nothing(seed: int, *, tiny: bool) -> bool:
    """Return whether an autoencoder ends at error 0, where rows are sums of three of sixteen orthonormal directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    codes = torch.rand(1000, 16, generator=generator) + 0.5
    rows = codes * (torch.rand(1000, 16, generator=generator).argsort(1) < 3) @ directions
    return TopKAutoencoder(16, 3, steps=300 if tiny else 2400, batch=64, seed=seed)(rows).unexplained(rows) < 1e-5


def share(hits: Sequence[bool]) -> str:
    """Return how often, in percent, and a mark where it is too often."""
    found = float(np.mean(hits))
    return f"{100 * found:5.1f} %{' !' if found > bound(len(hits)) else ''}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", help="not used: lines are printed")
    tiny = parser.parse_args(argv).tiny
    draws = 3 if tiny else 200
    torch.set_num_threads(1)
    print(f"{draws} data sets each; up to {100 * bound(draws):.1f} % is chance.\n")
    learners: list[Learner] = [Pca(3), KMeans(4), SemiNmf(4, iterations=50)]
    for learner in learners:
        for offset in (0.0, 3.0):
            found = [stability(learner, offset, seed) for seed in range(draws)]
            said = ", ".join(
                f"{what} {share(one)}" for what, one in zip(("mean", "any atom"), zip(*found, strict=True), strict=True)
            )
            print(f"stability of {type(learner).__name__}, rows about {offset:g}: {said}")
    tests: dict[str, Callable[[DiscoveryResult], bool]] = {
        "swap moves any atom": lambda r: bool(r.moves.any()),
        "any atom is important": lambda r: r.importance is not None and bool((r.importance.p <= LEVEL).any()),
        "any atom has a name": lambda r: r.naming is not None and bool(r.naming.named.any()),
    }
    results = [discovered(0.0, seed) for seed in range(draws)]
    for what, test in tests.items():
        print(f"{what}, where there is nothing: {share([test(r) for r in results])}")
    ended = [misses_nothing(seed, tiny=tiny) for seed in range(2 if tiny else 20)]
    print(f"autoencoders that end at the optimum: {sum(ended)} of {len(ended)}")
    for strength in (0.25, 0.5, 1.0, 2.0, 4.0):
        hits = [bool(discovered(strength, seed).moves.any()) for seed in range(3 if tiny else 40)]
        print(f"an attribute of strength {strength:g} moves an atom: {100 * float(np.mean(hits)):5.1f} % of {len(hits)}")


if __name__ == "__main__":
    main()
