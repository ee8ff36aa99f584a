"""How often the tests of TCAV reject where there is nothing to find, by mode, sizes of clusters and of sets.

    python experiments/calibration.py --out docs [--tiny]

Rows and gradients are drawn from one population for all sets, in which members of a cluster resemble each other. A test at
5 % should reject in 5 % of the data sets or fewer; what is more than 5 % + 3 standard errors is marked. All of it takes
about 25 minutes of one quiet core; each line is printed as it is found.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from concepts.tcav.sampling import Mode, Relabelled, Sets
from concepts.tcav.tcav import Tcav
from probing.results.result import Provenance
from probing.statistics.hypothesis_tests import TooFewError

LEVEL = 0.05
MODES: tuple[Mode, ...] = ("random", "ovr", "pairwise")
Size = int | Literal["mixed"]
CLUSTERS: tuple[tuple[Size, Size], ...] = ((1, 1), (3, 1), (1, 3), (3, 3), ("mixed", "mixed"))
SIZES = (10, 30, 100)
TESTS = ("score", "effect", "score, family-wise", "effect, family-wise")
_FEATURES, _TARGETS, _INPUTS = 16, 3, 30


@dataclass(frozen=True)
class Row:
    """A line of the table: which share of the draws each test rejected in."""

    mode: Mode
    clusters: tuple[Size, Size]
    size: int
    rates: tuple[float, ...]
    """Of `TESTS`; NaN where nothing can be fitted."""
    floor: float
    """Smallest p of the score that this many clusters and pseudo-concepts allow."""


def bound(draws: int) -> float:
    """Return the level and three standard errors of a share among so many draws."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)


def members(size: Size, count: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the cluster of each of `count` examples."""
    sizes = rng.integers(1, 5, count) if size == "mixed" else np.full(count, size)
    return np.repeat(np.arange(count), sizes)[:count]


def null_data(
    mode: Mode, clusters: tuple[Size, Size], size: int, seed: int
) -> tuple[torch.Tensor, list[torch.Tensor], Sets]:
    """Return rows, gradients and sets of which no concept differs from its counterparts but in the clusters' sizes."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(4, _FEATURES))
    sides = [("c", clusters[0], size)]
    sides += [("p", clusters[1], 3 * size)] if mode == "random" else [(name, clusters[1], size) for name in ("d", "e")]
    rows, names, places, start = [], [], {}, 0
    for name, cluster, count in sides:
        own = members(cluster, count, rng)
        centre = rng.normal(size=(own.max() + 1, 4)) @ mix + rng.normal(size=(own.max() + 1, _FEATURES))
        rows.append(np.maximum(centre[own] + 0.5 * rng.normal(size=(count, _FEATURES)), -0.3))
        names += [f"{name}{i}" for i in own]
        places[name] = range(start, start + count)
        start += count
    slopes = [torch.from_numpy(rng.normal(size=(_INPUTS, _FEATURES)) + rng.normal(size=_FEATURES)) for _ in range(_TARGETS)]
    pool = places.pop("p", range(0))
    inputs = {f"t{k}": [f"x{i}" for i in range(_INPUTS)] for k in range(_TARGETS)}
    return torch.from_numpy(np.concatenate(rows)), slopes, Sets(places, inputs, names, pool)


def rejections(mode: Mode, clusters: tuple[Size, Size], size: int, draws: int, *, sets: int = 39, runs: int = 4) -> Row:
    """Return how often each test of the first concept rejects at 5 %."""
    about = Provenance.collect()
    hits, floor = [], 1.0
    for seed in range(draws):
        rows, slopes, all_sets = null_data(mode, clusters, size, seed)
        try:
            # A test by draws keeps its level over its own draws too: one seed for all would share their luck.
            method = Tcav(null=Relabelled(sets), runs=runs, mode=mode, bootstraps=0, relabellings=sets, seed=seed)
            found = method.measure({"layer": rows}, {"layer": slopes}, all_sets, about)
        except TooFewError:
            continue
        floor = min(floor, 1 / (found.pseudo_concepts + 1))
        several = len(found.concepts)
        hits.append(
            [
                float((found.p[0, 0] <= LEVEL).double().mean()),
                float((found.effect_p[0, 0] <= LEVEL).double().mean()),
                # What is corrected over concepts too would need as many times the pseudo-concepts.
                float(found.p_max_t[0, 0].min() / several <= LEVEL),
                float(found.effect_p_max_t[0, 0].min() / several <= LEVEL),
            ]
        )
    rates = np.mean(hits, 0) if hits else np.full(len(TESTS), np.nan)
    return Row(mode, clusters, size, tuple(rates.tolist()), floor)


def page(rows: Sequence[Row], draws: int) -> str:
    """Return the table in Markdown."""
    most = bound(draws)
    text = [
        "# Calibration of the tests",
        "",
        "Made by `python experiments/calibration.py --out docs`.",
        "",
        (
            f"Share of {draws} data sets without any effect in which a test rejects at 5 %, in percent: of the sign score"
            " and of the effect in logits, of one target and of any of three (by the step-down maximum). A concept of"
            " `size` examples is compared with a pool of three times as many (`random`), or from two other concepts (`ovr`,"
            " `pairwise`). Clusters are given as examples in one of the concept's and in one of its counterparts'; `mixed`"
            f" has one to four. Up to {most:.2%} (5 % and three standard errors) is chance; more is marked `!`. `floor` is"
            " the smallest p that there are ways to relabel for: above 0.05 nothing can be significant. `none`: too few"
            " independent examples, which is refused."
        ),
        "",
        "| mode | clusters | size | " + " | ".join(TESTS) + " | floor |",
        "|---|---|---|" + "---|" * (len(TESTS) + 1),
    ]
    for row in rows:
        rates = ["none" if math.isnan(r) else f"{100 * r:.1f}{' !' if r > most else ''}" for r in row.rates]
        sizes = (
            ", ".join(dict.fromkeys(str(c) for c in row.clusters))
            if row.clusters[0] == "mixed"
            else ", ".join(str(c) for c in row.clusters)
        )
        text.append(f"| {row.mode} | {sizes} | {row.size} | " + " | ".join(rates) + f" | {row.floor:.3f} |")
    return "\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    draws = 4 if options.tiny else options.draws
    rows = []
    for size in SIZES[:1] if options.tiny else SIZES:
        for mode in MODES:
            for clusters in CLUSTERS:
                rows.append(rejections(mode, clusters, size, draws))
                print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "calibration.md").write_text(page(rows, draws), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
