"""Nets that lean on a photograph by a known amount, mended: does the worst group gain, and are clean nets left alone?

    python experiments/ground_truth/mending.py --out results/mending [--first 100] [--tiny]

The nets are those of `bias.py`: vehicles stand in front of one photograph at a rate from 0.5 (clean) to 0.95. Corrections
are fitted on pictures that are as biased as the training data, of drawings and parts of photographs that the nets have not
seen, and judged on balanced ones of others again. A swap changes the photograph alone; another adds a word, which no net
has seen.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bias import OTHER, PLANTED, VEHICLE, before, biased
from networks import Net, train
from pictures import NO_WORD, Pictures, draw
from verdicts import write_rows

from concepts.erasure import GroupDro, LastLayer, Mending, MendingResult, Projection
from concepts.erasure.corrections import Correction
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.data.examples import TensorExamples

CORRECTIONS: dict[str, Correction] = {
    "projection": Projection(),
    "mean projection": Projection("mean"),
    "last layer": LastLayer(),
    "group DRO": GroupDro(),
}


@dataclass(frozen=True)
class Sizes:
    """How much is drawn and trained."""

    rates: tuple[float, ...] = (0.5, 0.65, 0.8, 0.95)
    seeds: int = 4
    training: int = 1500
    epochs: int = 8
    fitted: int = 800
    judged: int = 800
    pairs: int = 120
    first: int = 0

    @classmethod
    def tiny(cls) -> "Sizes":
        """Return sizes for a test."""
        return cls((0.5, 0.95), 1, 200, 2, 120, 120, 12)


def swaps(n: int, seed: int) -> list[MatchedConcept]:
    """Return pictures of vehicles whose photograph is swapped, and others to which a word is added."""
    planted, other = (before("judge", n, VEHICLE, photo, seed) for photo in (PLANTED, OTHER))
    kinds, photos = [i % 3 for i in range(n)], [i % 2 for i in range(n)]
    worded, plain = (draw("judge", kinds, [word] * n, photos, seed + 1) for word in (0, NO_WORD))
    return [
        MatchedConcept(name, TensorExamples(a.images), TensorExamples(b.images), a.drawings)
        for name, a, b in (("photograph", planted, other), ("word", worded, plain))
    ]


def mended(net: Net, by: Correction, fit: Pictures, judge: Pictures, matched: Sequence[MatchedConcept]) -> MendingResult:
    """Return what a correction does to a net."""
    method = Mending(by, "head")
    return method(
        net,
        torch.cat([fit.images, judge.images]),
        ["planted" if photo == PLANTED else "other" for photo in torch.cat([fit.photos, judge.photos]).tolist()],
        torch.cat([fit.kinds, judge.kinds]),
        clusters=[*fit.drawings, *judge.drawings],
        matched=matched,
        targets={"vehicle": VEHICLE},
        name="photograph",
        fitted_on=set(fit.drawings),
    ).result


def experiment(sizes: Sizes) -> Iterator[dict[str, object]]:
    """Yield one row per net and correction."""
    matched = swaps(sizes.pairs, 7000)
    judge = biased("judge", sizes.judged, 0.5, 8000)
    for rate in sizes.rates:
        for seed in range(sizes.first, sizes.first + sizes.seeds):
            learnt = biased("train", sizes.training, rate, seed)
            net = train(learnt.images, learnt.kinds, seed, sizes.epochs)
            fit = biased("concept", sizes.fitted, rate, 6000 + seed)
            for name, by in CORRECTIONS.items():
                found = mended(net, by, fit, judge, matched)
                w = found.worst
                row: dict[str, object] = {"rate": rate, "seed": seed, "by": name, "verdict": found.verdict}
                row |= {
                    "worst group": found.groups[w],
                    "gap": found.gap,
                    "gap low": found.gap_low,
                    "gap high": found.gap_high,
                }
                ends = ("before", "after", "change", "low", "high")
                fields = ("before", "after", "change", "change_low", "change_high")
                row |= {f"worst {e}": float(getattr(found, f)[w]) for e, f in zip(ends, fields, strict=True)}
                row |= {f"all {end}": getattr(found, f"overall_{end}") for end in ends}
                for a, swap in enumerate(found.attributes):
                    row |= {f"{swap} {end}": float(getattr(found, f"swap_{end}")[a, 0]) for end in ends}
                    row |= {f"{swap} flips {n}": float(getattr(found, f"flips_{n}")[a]) for n in ("before", "after")}
                yield row


def main() -> None:
    """Run the experiment and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/mending"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="seed of the first net at each rate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in experiment(replace(Sizes.tiny() if options.tiny else Sizes(), first=options.first)):
        rows.append(row)
        print(
            f"rate {row['rate']}, seed {row['seed']}, {row['by']}: {row['verdict']}; gap "
            f"{row['gap']:+.2f} ({row['gap low']:+.2f} to {row['gap high']:+.2f}), worst {row['worst before']:.2f} to "
            f"{row['worst after']:.2f} ({row['worst low']:+.2f} to {row['worst high']:+.2f}), all "
            f"{row['all change']:+.3f} ({row['all low']:+.3f} to {row['all high']:+.3f}), swap of the photograph "
            f"{row['photograph before']:+.2f} to {row['photograph after']:+.2f}, of the word {row['word before']:+.2f} to "
            f"{row['word after']:+.2f}",
            flush=True,
        )
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "mending.csv", rows)
    for by in CORRECTIONS:
        for rate in dict.fromkeys(row["rate"] for row in rows):
            said = [row["verdict"] for row in rows if row["by"] == by and row["rate"] == rate]
            print(f"{by}, rate {rate}: " + ", ".join(f"{said.count(v)} {v}" for v in dict.fromkeys(said)))


if __name__ == "__main__":
    main()
