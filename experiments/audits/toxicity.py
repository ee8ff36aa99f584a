"""Does a toxicity classifier call words for groups of people toxic, and do explanations of it say so?

    python experiments/audits/toxicity.py --out results/toxicity [--tiny]

reads a published classifier as data (`tox_block.py`), checks its published scores, and measures what `toxicity.yaml` asks:
what swapping an ordinary adjective for a word for a group of people does to the logit, and what LIME, integrated
gradients, TCAV and probes of hidden layers say of it. Results are saved before anything is drawn. `--tiny`: few words,
templates and draws.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import tox_block

from concepts.auditing.word_swaps.page import write_page
from concepts.auditing.word_swaps.readings import WordReader
from concepts.auditing.word_swaps.templates import Wording, WordingFile, read_wording
from probing.store.store import ActivationStore

FILE = Path(__file__).with_suffix(".yaml")


def small(file: WordingFile) -> WordingFile:
    """Return a few words and templates of an audit, and few draws."""
    templates = {kind: each[:6] for kind, each in file.templates.items()}
    statistics = file.statistics.model_copy(
        update={"lime_samples": 100, "steps": 8, "pseudo_concepts": 39, "relabellings": 199}
    )
    return file.model_copy(
        update={
            "terms": {kind: words[:2] for kind, words in file.terms.items()},
            "reference": file.reference[:4],
            "ordinary": file.ordinary[:6],
            "templates": templates,
            "layers": [file.read_at],
            "statistics": statistics,
        }
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, save, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and report")
    parser.add_argument("--archive", type=Path, help="the wheel, where it is here already")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args(argv)
    out: Path = options.out
    archive = options.archive or tox_block.ARCHIVE.fetch(out)
    classifier = tox_block.load(archive)
    for text, probability in tox_block.golden(classifier).items():
        print(f"published score reproduced: {probability:.3f} for “{text}”")
    file = small(read_wording(FILE)) if options.tiny else read_wording(FILE)
    reader = WordReader(file, Wording.of(file, classifier), classifier)
    store = ActivationStore(out / "rows", progress=False)
    tcav, probes = reader.tcav(store), reader.probes(store)
    integrated, gap = reader.integrated()
    explained = {"LIME": reader.lime(), "integrated gradients": integrated}
    result = reader.result(reader.logits(), explained, tcav, gap)
    for name, found in {"words": result, "tcav": tcav, "probes": probes, "used": reader.used(store)}.items():
        found.save(out / name)
    (out / "audit.json").write_text(file.model_dump_json(indent=1), encoding="utf-8")
    for finding in write_page(out, file, classifier.reference).findings:
        print(f"- {finding.claim} {finding.evidence}")
    print(f"Report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
