"""A planted bias: does a method see how much a net leans on the photograph behind the things it names?

    python experiments/ground_truth/bias.py --out results/bias [--tiny]

Nets learn to tell animals, food and vehicles. In training, vehicles stand in front of one photograph at a rate from 0.5
(balanced) to 0.95, other things in front of the other at that rate. What the photograph really does is measured on other
drawings and other parts of the photographs: the logit of a vehicle when only what is behind it is swapped, and the
accuracy lost. Every method reads the same nets; balanced ones are the control.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chart import BIAS, growth_figure, samples_figure
from networks import Net, logits, train
from pictures import KINDS, NO_WORD, Pictures, draw
from readings import CUE, Effort, divided, local_readings, network_readings, probe_accuracy, tcav
from verdicts import column, ordered, paired_difference, write_document, write_rows

from probing.attribution import METHODS
from probing.results.figures import save_figure

VEHICLE = KINDS.index("vehicle")
PLANTED, OTHER = 0, 1
"""The photograph that vehicles stand in front of, and the one that other things do."""
NETWORK = (
    "probes",
    "dissection (units)",
    "dissection (ablation)",
    "tcav (score)",
    "tcav (smooth)",
    "tcav (effect)",
    "concept attribution",
)


@dataclass(frozen=True)
class Sizes:
    """How much is drawn, trained and read."""

    rates: tuple[float, ...] = (0.5, 0.65, 0.8, 0.95)
    seeds: int = 4
    training: int = 1500
    epochs: int = 8
    judged: int = 400
    explained: int = 24
    concept: int = 60
    pool: int = 160
    effort: Effort = field(default_factory=Effort)

    @classmethod
    def tiny(cls) -> "Sizes":
        """Return sizes for a test."""
        return cls((0.5, 0.95), 2, 200, 2, 30, 6, 12, 36, Effort.tiny())


def biased(part: str, n: int, rate: float, seed: int) -> Pictures:
    """Return pictures without words in which what is behind a thing goes with what it is, at a rate."""
    rng = np.random.default_rng([seed, n])
    kinds = rng.integers(0, len(KINDS), n)
    as_planted = rng.uniform(size=n) < rate
    photos = np.where((kinds == VEHICLE) == as_planted, PLANTED, OTHER)
    return draw(part, kinds.tolist(), [NO_WORD] * n, photos.tolist(), seed)


def before(part: str, n: int, kind: int | None, photo: int, seed: int) -> Pictures:
    """Return pictures in front of one photograph, of one kind or of any; those of one seed differ in nothing else."""
    rng = np.random.default_rng([seed, n])
    kinds = rng.integers(0, len(KINDS), n).tolist() if kind is None else [kind] * n
    return draw(part, kinds, [NO_WORD] * n, [photo] * n, seed)


def truth(net: Net, n: int, seed: int) -> dict[str, float]:
    """Return what swapping the photograph does, on drawings and parts of photographs that the net has not seen."""
    sides = [before("judge", n, VEHICLE, photo, seed) for photo in (PLANTED, OTHER)]
    said = [logits(net, side.images) for side in sides]
    right = [float((s.argmax(1) == VEHICLE).double().mean()) for s in said]
    every = biased("judge", n, 0.5, seed + 1)
    return {
        "swap of the photograph": float((said[0] - said[1])[:, VEHICLE].double().mean()),
        "accuracy gap": right[0] - right[1],
        "accuracy": float((logits(net, every.images).argmax(1) == every.kinds).double().mean()),
    }


def readings(net: Net, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return what every method says of a net; larger: more of the photograph that was planted."""
    shown = before("judge", sizes.explained, VEHICLE, PLANTED, seed + 1)
    background = biased("concept", 16, 0.5, seed + 2).images
    local = local_readings(net, shown.images, ~shown.things, shown.things, background, sizes.effort)
    found = {name: float(values.nanmean()) for name, values in local.items()}
    many = biased("judge", max(sizes.explained * 4, 24), 0.5, seed + 3)
    planted = ~many.things & (many.photos == PLANTED)[:, None, None]
    found |= network_readings(net, many.images, planted, many.things)
    probed = biased("concept", sizes.pool * 2, 0.5, seed + 4)
    found["probes"] = probe_accuracy(net, probed.images, probed.photos, probed.drawings, seed)
    concept, pool = (
        before("concept", n, None, photo, seed + 5 + photo) for n, photo in ((sizes.concept, PLANTED), (sizes.pool, OTHER))
    )
    vehicles = draw(
        "judge",
        [VEHICLE] * sizes.concept,
        [NO_WORD] * sizes.concept,
        [i % 2 for i in range(sizes.concept)],
        seed + 8,
    )
    result = tcav(
        net,
        {"photograph": concept.images},
        pool.images,
        {VEHICLE: vehicles.images},
        sizes.effort,
        seed,
    )
    cells = {"score": result.mean, "smooth": result.smooth, "effect": result.effect}
    found |= {f"tcav ({name})": float(cell[0, 0, 0]) for name, cell in cells.items()}
    pair = [before("judge", sizes.concept, VEHICLE, photo, seed + 9).images for photo in (PLANTED, OTHER)]
    sides = {CUE: (concept.images, pool.images)}
    parts = divided(net, VEHICLE, sides, *pair)
    return found | {"tcav p": float(result.p[0, 0, 0]), "concept attribution": parts[CUE]}


def experiment(sizes: Sizes) -> Iterator[dict[str, object]]:
    """Yield one row per net: how it was trained, the truth about it, and every method's reading."""
    for rate in sizes.rates:
        for seed in range(sizes.seeds):
            began = time.process_time()
            learnt = biased("train", sizes.training, rate, seed)
            net = train(learnt.images, learnt.kinds, seed, sizes.epochs)
            row = {"rate": rate, "seed": seed, "training seconds": time.process_time() - began}
            yield row | truth(net, sizes.judged, 3000) | readings(net, sizes, 4000)


def verdicts(rows: Sequence[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Return how each method orders the nets, against what swapping the photograph does."""
    known = column(rows, "swap of the photograph")
    return {name: ordered(known, column(rows, name)) for name in (*METHODS, *NETWORK)}


def growth(rows: Sequence[dict[str, object]], name: str) -> list[dict[str, float]]:
    """Return by how much a reading of biased nets exceeds that of balanced ones of the same seed, rate by rate."""
    rates = sorted({float(row["rate"]) for row in rows})  # type: ignore[arg-type]
    of_rate = {rate: column([r for r in rows if r["rate"] == rate], name) for rate in rates}
    return [{"rate": rate, **paired_difference(of_rate[rate], of_rate[rates[0]])} for rate in rates[1:]]


def main() -> None:
    """Run the experiment and write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/bias"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run(arguments.out, Sizes.tiny() if arguments.tiny else Sizes())


def run(out: Path, sizes: Sizes) -> dict[str, list[dict[str, float]]]:
    """Write tables and figures of one run into a folder, and return the growth of every reading with the rate."""
    rows = []
    for row in experiment(sizes):
        rows.append(row)
        print(
            f"rate {row['rate']}, seed {row['seed']}: swap {row['swap of the photograph']:+.2f}, "
            f"TCAV {row['tcav (score)']:.2f}, effect {row['tcav (effect)']:+.2f}, saliency {row['saliency']:.2f}",
            flush=True,
        )
    found, names = verdicts(rows), ("swap of the photograph", *METHODS, *NETWORK)
    grown = {name: growth(rows, name) for name in names}
    write_rows(out / "nets.csv", rows)
    write_rows(out / "verdicts.csv", [{"method": name, **v} for name, v in found.items()])
    write_rows(out / "growth.csv", [{"method": n, **step} for n in names for step in grown[n]])
    write_document(
        out / "results.json",
        {"by net": rows, "rank correlation": found, "biased less balanced": grown},
    )
    save_figure(growth_figure(rows, grown, BIAS), out / "bias_growth")
    samples = [(f"rate {r:g}", biased("train", 8, r, 0)) for r in sizes.rates]
    samples_figure(out / "bias_pictures", samples, lambda s, i: KINDS[s.kinds[i]])
    for name, steps in grown.items():
        told = ", ".join(f"{s['rate']:g}: {s['difference']:+.2f} ({s['low']:+.2f} to {s['high']:+.2f})" for s in steps)
        print(f"{name:24} {told}")
    return grown


if __name__ == "__main__":
    main()
