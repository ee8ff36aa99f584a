"""Is the word found by a discovery, which nobody tells of words, in nets that lean on it, and in others not?

    python experiments/ground_truth/discovery.py --out results/discovery [--tiny]

Nets of `caption.py`: with p = 0 the word beneath a thing always names its class, with p = 1 it says nothing. Atoms of the
last block are learned of pictures in which words and things are independent. On other drawings the word is then swapped,
and nothing else: which atoms move, how much of the class's logit the swap moves through each, and does the conditional
relevance of the one that carries most lie on the word? All of it takes about five minutes of one quiet core.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from caption import captioned, reworded, truth
from networks import train
from verdicts import write_rows

from concepts.discovery import AtomPart, Discovery, Nmf
from concepts.discovery.importance import score_parts
from concepts.discovery.rows import read_rows
from concepts.local_vs_global.matched_pairs import MatchedConcept, evidence
from probing.attribution import ConditionalLRP
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

LAYER, CLASS = "block4", 0


def measured(noise: float, seed: int, *, tiny: bool) -> dict[str, object]:
    """Return what is found in one net, beside how much it leans on the word."""
    drawn = captioned("train", 200 if tiny else 1500, noise, seed)
    net = train(drawn.images, drawn.kinds, seed, 2 if tiny else 8)
    examples = captioned("concept", 40 if tiny else 240, 1.0, seed + 1).images
    base = captioned("judge", 12 if tiny else 60, 1.0, seed + 2)
    other = np.random.default_rng(seed).integers(1, 6, len(base)).tolist()
    own, changed = (reworded(base, "judge", words, seed + 2) for words in ([CLASS] * len(base), other))
    word = MatchedConcept("word", TensorExamples(own.images), TensorExamples(changed.images), base.drawings)
    store, score = ActivationStore(), Score(net, CLASS)
    method = Discovery(LAYER, Nmf(4 if tiny else 12), refits=0, seed=seed)
    found = method(store, net, examples, {"class": score}, matched=[word])
    assert found.importance is not None
    assert found.shifts is not None
    cells = read_rows(store, net, LAYER, examples[:1]).cells
    assert cells is not None
    parts = [score_parts(score, LAYER, cells, found.dictionary, side.images).atoms.mean(0) for side in (own, changed)]
    moved = parts[0] - parts[1]
    atom = int(moved.abs().argmax())
    maps = ConditionalLRP(LAYER)(score, own.images, AtomPart(found.dictionary, atom))
    rest = sum(int(a) != atom and bool(found.moves[0, a]) for a in range(len(found)))
    return {
        "p": noise,
        "seed": seed,
        "use of the word": truth(net, 30 if tiny else 400, seed + 3)["use of the word"],
        "swap of the word moves the logit": float((net(own.images) - net(changed.images))[:, CLASS].double().mean()),
        "through the atom that carries most": float(moved[atom]),
        "that atom": atom,
        "its shift in deviations": float(found.shifts.shift[0, atom]),
        "its p": float(found.shifts.p[0, atom]),
        "others that move": rest,
        "its rank by importance": 1 + int((found.importance.part[0].abs() > found.importance.part[0, atom].abs()).sum()),
        "evidence on the word beyond its area": float(evidence(maps, own.strips).mean()),
        "atoms that are stable": int(found.stable.sum()),
        "atoms": len(found),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for noise in (0.0, 1.0):
        for seed in range(1 if given.tiny else 3):
            rows.append(measured(noise, seed, tiny=given.tiny))
            print("\n".join(f"{name}: {value:.3g}" for name, value in rows[-1].items()), end="\n\n", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    write_rows(given.out / "discovery.csv", rows)


if __name__ == "__main__":
    main()
