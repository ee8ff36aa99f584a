"""Does a small language model go on with "she" or "he" by the occupation, and do explanations of it say so?

    python experiments/audits/pronouns.py --out results/pronouns [--tiny]

reads SmolLM2-135M-Instruct out of a package as data (`smollm2.py`), checks how it continues a text, and measures what
`pronouns.yaml` asks: what swapping a noun for a word for an occupation does to the logit of "she" minus that of "he", and
what LRP, integrated gradients, TCAV and probes of hidden layers say of it. Results are saved before anything is drawn.
`--tiny`: few words, openings and draws, with the same model.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import smollm2

from concepts.auditing.word_swaps.language import LanguageModel, LanguageReader, PaddedTokens
from concepts.auditing.word_swaps.page import write_page
from concepts.auditing.word_swaps.templates import Wording, WordingFile, read_wording
from probing.attribution.lrp.lrp import LRP
from probing.attribution.path import IntegratedGradients
from probing.models.loading import LoadedModel
from probing.store.store import ActivationStore

FILE = Path(__file__).with_suffix(".yaml")
PRONOUNS = (" she", " he")


def small(file: WordingFile) -> WordingFile:
    """Return a few words and openings of an audit, and few draws."""
    statistics = file.statistics.model_copy(update={"steps": 2, "pseudo_concepts": 39, "relabellings": 199})
    return file.model_copy(
        update={
            "terms": {kind: words[:1] for kind, words in file.terms.items()},
            "reference": file.reference[:2],
            "ordinary": file.ordinary[:2],
            "templates": {kind: each[:6] for kind, each in file.templates.items()},
            "layers": [file.read_at],
            "statistics": statistics,
        }
    )


def read_as_pronouns(loaded: LoadedModel, label: str) -> LanguageModel:
    """Return a language model read by which of two pronouns follows, each of which must be one token of it."""
    assert loaded.preprocess is not None
    ids = [loaded.preprocess(word).tensors["input_ids"][0].tolist() for word in PRONOUNS]  # type: ignore[attr-defined, union-attr]
    if any(len(each) != 1 for each in ids):
        raise ValueError(f"{PRONOUNS} are {[len(each) for each in ids]} tokens of this model, not one each.")
    return LanguageModel(loaded.model, loaded.preprocess, ids[0][0], ids[1][0], label, loaded.reference)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, save, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and report")
    parser.add_argument("--archive", type=Path, help="the wheel, where it is here already")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args(argv)
    out: Path = options.out
    file = small(read_wording(FILE)) if options.tiny else read_wording(FILE)
    loaded = smollm2.load(options.archive or smollm2.ARCHIVE.fetch(out))
    model = read_as_pronouns(loaded, file.label)
    wording = Wording.of(file, model)
    model = replace(model, words=PaddedTokens.of(model.words, wording.texts(range(len(wording.words)))))
    reader = LanguageReader(file, wording, model)
    store = ActivationStore(out / "rows", progress=False)
    logits = reader.logits()
    tcav, probes = reader.tcav(store), reader.probes(store)
    relevance, _ = reader.local(LRP())
    integrated, gap = reader.local(IntegratedGradients(steps=file.statistics.steps))
    result = reader.result(logits, {"LRP": relevance, "integrated gradients": integrated}, tcav, gap)
    for name, found in {"words": result, "tcav": tcav, "probes": probes}.items():
        found.save(out / name)
    (out / "audit.json").write_text(file.model_dump_json(indent=1), encoding="utf-8")
    for finding in write_page(out, file, model.reference).findings:
        print(f"- {finding.claim} {finding.evidence}")
    print(f"Report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
