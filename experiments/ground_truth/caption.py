"""The caption experiment of the TCAV paper in miniature: do methods tell how much a net leans on the word in its pictures?

    python experiments/ground_truth/caption.py --out results/caption [--tiny]

Nets learn to tell animals, food and vehicles (Kim et al. 2018, sec. 4.3, had zebras, cabs and cucumbers). Beneath each
thing stands a word: the class's name, but with probability p a word drawn from the classes' names and others, so that
at p = 1 it says nothing. How much a net really leans on the word is measured on other drawings, by how much accuracy is
lost where the word names another class; accuracy without a word, the paper's ground truth, is beside it. All methods
read the same nets; none of them, and nothing about the nets, was chosen by looking at what is judged here.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from chart import CAPTION, order_figure, samples_figure
from jaxtyping import Int
from networks import Net, logits, train
from pictures import KINDS, NO_WORD, PHOTOS, WORDS, Pictures, draw
from readings import (
    CUE,
    THING,
    Effort,
    divided,
    local_readings,
    network_readings,
    probe_accuracy,
    tcav,
)
from torch import Tensor
from verdicts import column, ordered, spearman, write_document, write_rows

from concepts.tcav.result import TcavResult
from probing.attribution import METHODS
from probing.results.figures import save_figure

LEVELS = (0.0, 0.1, 0.3, 0.6, 1.0)
"""How often the word is drawn anew; 0, 0.3 and 1 are the paper's."""


@dataclass(frozen=True)
class Sizes:
    """How much is drawn, trained and read."""

    levels: tuple[float, ...] = LEVELS
    seeds: int = 3
    training: int = 1500
    epochs: int = 8
    judged: int = 400
    explained: int = 24
    concept: int = 40
    pool: int = 160
    effort: Effort = field(default_factory=Effort)

    @classmethod
    def tiny(cls) -> "Sizes":
        """Return sizes for a test."""
        return cls((0.0, 1.0), 1, 200, 2, 30, 6, 12, 36, Effort.tiny())


def captioned(part: str, n: int, noise: float, seed: int) -> Pictures:
    """Return pictures whose word is the class's name, or with a probability any word."""
    rng = np.random.default_rng([seed, n])
    kinds, photos = rng.integers(0, len(KINDS), n), rng.integers(0, len(PHOTOS), n)
    drawn, words = rng.uniform(size=n) < noise, rng.integers(0, len(WORDS), n)
    return draw(part, kinds.tolist(), np.where(drawn, words, kinds).tolist(), photos.tolist(), seed)


def reworded(pictures: Pictures, part: str, words: Sequence[int], seed: int) -> Pictures:
    """Return pictures drawn by `captioned` with other words and nothing else changed."""
    return draw(part, pictures.kinds.tolist(), words, pictures.photos.tolist(), seed)


def truth(net: Net, n: int, seed: int) -> dict[str, float]:
    """Return how much a net leans on the word, on drawings and parts of photographs that it has not seen."""
    own = captioned("judge", n, 0.0, seed)
    others = (own.kinds + 1 + torch.arange(n) % 2) % len(KINDS)
    right = {
        name: accuracy(net, reworded(own, "judge", words, seed), own.kinds)
        for name, words in (
            ("own word", own.kinds.tolist()),
            ("other class's word", others.tolist()),
            ("no word", [NO_WORD] * n),
        )
    }
    changed = reworded(own, "judge", others.tolist(), seed)
    return {
        "use of the word": right["own word"] - right["other class's word"],
        "accuracy with own word": right["own word"],
        "accuracy with another class's word": right["other class's word"],
        "accuracy without a word": right["no word"],
        "says what the word says": accuracy(net, changed, others),
    }


def accuracy(net: Net, pictures: Pictures, classes: Int[Tensor, " n"]) -> float:
    """Return how often a net names the classes given."""
    return float((logits(net, pictures.images).argmax(1) == classes).double().mean())


def readings(net: Net, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return what every method says of a net; larger: more of the word."""
    shown = captioned("judge", sizes.explained, 1.0, seed + 1)
    background = captioned("concept", 16, 1.0, seed + 2).images
    local = local_readings(net, shown.images, shown.strips, shown.things, background, sizes.effort)
    found = {name: float(values.nanmean()) for name, values in local.items()}
    found |= concept_readings(net, sizes, seed) | divided_reading(net, sizes, seed)
    many = captioned("judge", max(sizes.explained * 4, 24), 1.0, seed + 3)
    found |= network_readings(net, many.images, many.strips, many.things)
    probed = captioned("concept", sizes.pool * 2, 1.0, seed + 4)
    right = [probe_accuracy(net, probed.images, labels, probed.drawings, seed) for labels in (probed.words, probed.kinds)]
    return found | {"probes": right[0] - right[1]}


def concept_readings(net: Net, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return TCAV of the classes' words less TCAV of their things, and the same of effects in logits.

    A concept is pictures with one word beneath any thing, or one thing above any word, against pictures of any thing
    above any word; inputs are pictures of the class above any word.
    """
    n, count = sizes.concept, len(KINDS)
    concepts = {}
    for k, kind in enumerate(KINDS):
        base = captioned("concept", n, 1.0, seed + 10 + k)
        same = reworded(base, "concept", [k] * n, seed + 10 + k)
        concepts[f"word {kind}"] = same.images
        base = captioned("concept", n, 1.0, seed + 20 + k)
        one = draw("concept", [k] * n, base.words.tolist(), base.photos.tolist(), seed + 20 + k)
        concepts[f"thing {kind}"] = one.images
    pool = captioned("concept", sizes.pool, 1.0, seed + 30).images
    base = captioned("judge", n, 1.0, seed + 31)
    inputs = {k: draw("judge", [k] * n, base.words.tolist(), base.photos.tolist(), seed + 31).images for k in range(count)}
    result = tcav(net, concepts, pool, inputs, sizes.effort, seed)
    return {
        "tcav (score)": word_less_thing(result, "mean"),
        "tcav (effect)": word_less_thing(result, "effect"),
        "tcav word": of_words(result, "mean"),
        "tcav thing": of_things(result, "mean"),
    }


def divided_reading(net: Net, sizes: Sizes, seed: int) -> dict[str, float]:
    """Return concept attribution to the word less that to the thing, where both change to the class's; mean over classes."""
    n, found = sizes.concept, []
    for k in range(len(KINDS)):
        other, own = (k + 1) % len(KINDS), seed + 40 + k
        base = captioned("concept", n, 1.0, own)
        kinds, words, photos = (x.tolist() for x in (base.kinds, base.words, base.photos))
        sides = {
            CUE: tuple(draw("concept", kinds, [w] * n, photos, own).images for w in (k, other)),
            THING: tuple(draw("concept", [t] * n, words, photos, own).images for t in (k, other)),
        }
        ends, starts = (draw("judge", [x] * n, [x] * n, photos, own).images for x in (k, other))
        found.append(divided(net, k, sides, ends, starts))
    return {"concept attribution": float(np.mean([part[CUE] - part[THING] for part in found]))}


def word_less_thing(result: TcavResult, what: str) -> float:
    """Return the mean over classes of a statistic of the class's word less that of its thing."""
    return of_words(result, what) - of_things(result, what)


def of_words(result: TcavResult, what: str) -> float:
    """Return the mean over classes of a statistic of the class's own word."""
    cells = getattr(result, what)[0]
    return float(torch.stack([cells[2 * k, k] for k in range(len(KINDS))]).mean())


def of_things(result: TcavResult, what: str) -> float:
    """Return the same of the class's own thing."""
    cells = getattr(result, what)[0]
    return float(torch.stack([cells[2 * k + 1, k] for k in range(len(KINDS))]).mean())


NETWORK = (
    "probes",
    "dissection (units)",
    "dissection (ablation)",
    "tcav (score)",
    "tcav (effect)",
    "concept attribution",
)
PAPER = (0.0, 0.3, 1.0)


def experiment(sizes: Sizes) -> Iterator[dict[str, object]]:
    """Yield one row per net: how it was trained, the truth about it, and every method's reading."""
    for noise in sizes.levels:
        for seed in range(sizes.seeds):
            began = time.process_time()
            learnt = captioned("train", sizes.training, noise, seed)
            net = train(learnt.images, learnt.kinds, seed, sizes.epochs)
            trained = time.process_time() - began
            row = {"noise": noise, "seed": seed, "training seconds": trained}
            yield row | truth(net, sizes.judged, 1000) | readings(net, sizes, 2000)


def verdicts(rows: Sequence[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Return how each method orders the nets against how they lean on the word, and how often it names the cue.

    A net's cue is the word if it says what the word says more often than what the thing is, where the two conflict; a
    method names the word if more than half of its evidence is there, or if what it says of the word is larger.
    """
    known = column(rows, "use of the word")
    of_paper = [i for i, row in enumerate(rows) if row["noise"] in PAPER]
    follows = np.array(column(rows, "says what the word says"))
    words = follows > np.array(column(rows, "accuracy with another class's word"))
    found = {}
    for name in (*METHODS, *NETWORK):
        said = column(rows, name)
        named = np.array(said) > (0.5 if name in METHODS else 0)
        found[name] = ordered(known, said) | {
            "rho at paper levels": spearman([known[i] for i in of_paper], [said[i] for i in of_paper]),
            "names the cue": float((named == words).mean()),
        }
    return found


def main() -> None:
    """Run the experiment and write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/caption"))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    run(arguments.out, Sizes.tiny() if arguments.tiny else Sizes())


def run(out: Path, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Write `nets.csv`, `results.json` and the figures of one run into a folder, and return the verdicts."""
    rows = []
    for row in experiment(sizes):
        rows.append(row)
        print(
            f"p = {row['noise']}, seed {row['seed']}: use of the word {row['use of the word']:.2f}, "
            f"TCAV word - thing {row['tcav (score)']:+.2f}, saliency on the word {row['saliency']:.2f}",
            flush=True,
        )
    found = verdicts(rows)
    write_rows(out / "nets.csv", rows)
    write_rows(out / "verdicts.csv", [{"method": name, **v} for name, v in found.items()])
    write_document(
        out / "results.json",
        {"truth": "use of the word", "by net": rows, "rank correlation": found},
    )
    order = order_figure(rows, found, "use of the word", "noise", CAPTION)
    save_figure(order, out / "caption_order")
    samples = [(f"p = {p:g}", captioned("train", 8, p, 0)) for p in sizes.levels]
    samples_figure(out / "caption_pictures", samples, lambda s, i: f"{KINDS[s.kinds[i]]}")
    for name, verdict in sorted(found.items(), key=lambda item: -np.nan_to_num(item[1]["rho"], nan=-2)):
        print(
            f"{name:24} rho {verdict['rho']:+.2f} ({verdict['low']:+.2f} to {verdict['high']:+.2f}), "
            f"at the paper's levels {verdict['rho at paper levels']:+.2f}, names the cue {verdict['names the cue']:.0%}"
        )
    return found


if __name__ == "__main__":
    main()
