"""What a word does to a text classifier's logit, measured by swapping it, beside what explanations say it does.

Everything is compared with the mean over the same reference words in the same template: the logit (which is the truth),
LIME's coefficient of the word, and the integrated gradient of its embedding. So all predict the same number, the change
of the logit when an ordinary word is swapped for this one, and can be told apart in units of it. TCAV predicts it from
directions that are fitted on other templates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.word_swaps.result import SWAP, WordResult
from concepts.auditing.word_swaps.templates import TextModel, Wording, WordingError, WordingFile
from concepts.data.concept_sets import Concept
from concepts.erasure.read_used_moved import ReadUsedMoved
from concepts.erasure.table import ReadUsedMovedResult
from concepts.local_vs_global.matched_pairs import MatchedConcept
from concepts.tcav.result import TcavResult
from concepts.tcav.sampling import Relabelled
from concepts.tcav.tcav import Tcav
from probing.attribution.path import IntegratedGradients, LayerIntegratedGradients
from probing.attribution.perturbation.lime import TextLIME
from probing.attribution.perturbation.surrogate import Local
from probing.core.content_ids import content_id
from probing.data.examples import TextExamples
from probing.data.texts import WordIds
from probing.models.scores import Score
from probing.probes import LayerProbes, ProbeResult
from probing.results.result import Provenance
from probing.statistics.hypothesis_tests import clustered_mean, holm, spearman
from probing.statistics.rounding import beyond_rounding, of_weights
from probing.store.store import ActivationStore

Grid = Float[Tensor, "words templates"]
_Told = Float[Tensor, "words explained"]
_CELLS = ("value", "low", "high", "p", "beyond")
_CONTROLS = 4  # random subspaces; each takes a pass of every held-out sentence at every layer
_TEXTS = 128  # explained by integrated gradients at a time


@dataclass(frozen=True, eq=False)
class WordReader:
    """Reads a classifier by the sentences of an audit of words."""

    file: WordingFile
    wording: Wording
    classifier: TextModel

    @property
    def label(self) -> int:
        """The label's place among the logits."""
        return self.classifier.label_index(self.file.label)

    @property
    def score(self) -> Score:
        """The label's logit."""
        return Score(self.classifier.model, self.label)

    def logits(self) -> Grid:
        """Return the label's logit of every sentence."""
        words = range(len(self.wording.words))
        found = self.classifier.logits(self.wording.texts(words))[:, self.label]
        return self._grid(found.double())

    @property
    def explained(self) -> tuple[int, ...]:
        """Places of the templates that local methods explain."""
        return self.wording.explained(self.file.statistics.explained)

    def lime(self) -> Grid:
        """Return LIME's coefficient of the word in every sentence that is explained."""
        method = TextLIME(
            surrogate=Local(samples=self.file.statistics.lime_samples, coalitions="size", seed=self.file.statistics.seed)
        )
        predict = _once(self.classifier.logits)
        found = []
        for word in range(len(self.wording.words)):
            for text in self.wording.texts([word], self.explained):
                said = method(predict, text, self.label)
                found.append(float(said.values[said.parts.index(self.wording.words[word])]))
        return self._grid(torch.tensor(found, dtype=torch.float64))

    def integrated(self) -> tuple[Grid, float]:
        """Return the integrated gradient of the word's embedding in every explained sentence, and the largest gap.

        The path starts at the embedding of an empty text.

        Raises:
            WordingError: for a model that does not look up whole words.
        """
        method = LayerIntegratedGradients(
            self.file.embedding, IntegratedGradients(steps=self.file.statistics.steps), space="input"
        )
        vocabulary, wording = self.classifier.words, self.wording
        if not isinstance(vocabulary, WordIds):
            raise WordingError("the model does not look up whole words: use `LanguageReader`.")
        names = [w for w in wording.words for _ in self.explained]
        texts = wording.texts(range(len(wording.words)), self.explained)
        found, gap = [], 0.0
        for start in range(0, len(texts), _TEXTS):
            part = texts[start : start + _TEXTS]
            said = method(self.score, vocabulary.batch(part))
            gap = float(said.diagnostics["completeness_gap"].abs().max().clamp(min=gap))
            by_place = said.values.double().sum(2)
            for row, text, word in zip(by_place, part, names[start:], strict=False):
                found.append(row[list(vocabulary.places(text, word))].sum())
        return self._grid(torch.stack(found)), gap

    def tcav(self, store: ActivationStore) -> TcavResult:
        """Return TCAV of each term against ordinary words, in the layers.

        A term's sentences on the training templates stand against as many reference sentences, one of each template,
        the reference words taking turns; labels are swapped within templates. Scores are read at reference sentences of
        the other templates, which no direction was fitted on. The ordinary words are the controls.
        """
        wording, statistics = self.wording, self.file.statistics
        fit, judge = wording.divided(statistics.fit_share, statistics.seed)
        clusters = tuple(wording.templates[t] for t in fit)

        def concept(word: int) -> Concept:
            examples = wording.examples(self.classifier, [word], fit)
            return Concept(wording.words[word], examples, clusters)

        turns = [wording.reference[i % len(wording.reference)] for i in range(len(fit))]
        pool = TextExamples([wording.text(w, t) for w, t in zip(turns, fit, strict=True)], self.classifier.words)
        return Tcav(
            null=Relabelled(statistics.pseudo_concepts if "pseudo_concepts" in statistics.model_fields_set else "auto"),
            runs=statistics.runs,
            relabellings=statistics.relabellings,
            level=statistics.level,
            seed=statistics.seed,
        )(
            store,
            {self.file.label: self.score},
            self.file.layers,
            [concept(w) for w in wording.terms],
            wording.examples(self.classifier, wording.reference, judge),
            pool,
            [concept(w) for w in wording.ordinary],
            pool_clusters=clusters,
            input_clusters=[wording.templates[t] for _ in wording.reference for t in judge],
        )

    def used(self, store: ActivationStore) -> ReadUsedMovedResult:
        """Return, of each kind of words for groups, whether it is read off a layer, used there, and moves the logit.

        A word in a template stands against a reference word in the same one, the reference words taking turns.
        """
        wording, statistics = self.wording, self.file.statistics
        fit, _ = wording.divided(statistics.fit_share, statistics.seed)
        places = range(len(wording.templates))

        def concept(kind: str) -> MatchedConcept:
            own = [w for w in wording.terms if wording.kinds[w] == kind]
            turns = [wording.reference[(w + t) % len(wording.reference)] for w in own for t in places]
            plain = [wording.text(w, t) for w, t in zip(turns, [t for _ in own for t in places], strict=True)]
            negative = TextExamples(plain, self.classifier.words)
            clusters = tuple(wording.templates[t] for _ in own for t in places)
            return MatchedConcept(kind, wording.examples(self.classifier, own, places), negative, clusters)

        kinds = list(dict.fromkeys(wording.kinds[w] for w in wording.terms))
        method = ReadUsedMoved(
            tuple(self.file.layers),
            controls=_CONTROLS,
            relabellings=statistics.relabellings,
            level=1 - statistics.alpha,
            seed=statistics.seed,
        )
        fitted_on = {wording.templates[t] for t in fit}
        return method(store, {self.file.label: self.score}, [concept(kind) for kind in kinds], fitted_on=fitted_on)

    def probes(self, store: ActivationStore) -> ProbeResult:
        """Return how well each layer tells the terms from ordinary words, judged on words never seen."""
        wording = self.wording
        words, templates = range(len(wording.words)), range(len(wording.templates))
        kinds = ["term" if w in wording.terms else "ordinary" for w in words for _ in templates]
        names = [wording.words[w] for w in words for _ in templates]
        examples = wording.examples(self.classifier, words, templates)
        method = LayerProbes(tuple(self.file.layers), inputs=False, seed=self.file.statistics.seed)
        return method(store, self.classifier.model, examples, kinds, groups=names, types=names)

    def result(self, logits: Grid, explained: Mapping[str, _Told], tcav: TcavResult, gap: float) -> WordResult:
        """Put everything side by side; `explained` has what local methods say of every sentence."""
        wording, statistics = self.wording, self.file.statistics
        terms, reference = list(wording.terms), list(wording.reference)
        grids = {SWAP: logits, **explained}
        grids = {name: grid - grid[reference].mean(0) for name, grid in grids.items()}
        grids[SWAP] = beyond_rounding(grids[SWAP], logits.flatten(), of_weights(self.classifier.model))
        local = {name: self._local(grid) for name, grid in grids.items()}
        by_method = {name: rows for name, (rows, _) in local.items()}
        by_method |= {f"TCAV {layer}": _of_layer(tcav, i) for i, layer in enumerate(tcav.layers)}
        cells = {name: torch.stack([rows[name] for rows in by_method.values()]) for name in _CELLS}
        swap = cells["value"][0]
        found = [spearman(row, swap, statistics.level) for row in cells["value"]]
        probability = logits.sigmoid()
        return WordResult(
            provenance=Provenance.collect(
                model=self.classifier.model, examples=content_id([wording.words, wording.templates])
            ),
            label=self.file.label,
            methods=tuple(by_method),
            listed=(SWAP, *explained, f"TCAV {self.file.read_at}"),
            words=tuple(wording.words[w] for w in terms),
            kinds=tuple(wording.kinds[w] for w in terms),
            ordinary_words=tuple(wording.words[w] for w in wording.ordinary),
            reference_words=tuple(wording.words[w] for w in reference),
            templates=wording.templates,
            template_kinds=wording.template_kinds,
            level=statistics.level,
            alpha=statistics.alpha,
            **cells,
            ordinary=torch.stack([others for _, others in local.values()]),
            by_template=grids[SWAP][terms],
            probability=probability[terms],
            reference_probability=probability[reference].mean(0),
            reference_flagged=(probability[reference] > 0.5).double().mean(0),
            agreement=torch.tensor([[r.r, r.low, r.high] for r in found], dtype=torch.float64),
            slope=(cells["value"] * swap).sum(1) / cells["value"].square().sum(1),
            completeness_gap=gap,
        )

    def _local(self, grid: Grid) -> tuple[dict[str, Tensor], Float[Tensor, " others"]]:
        """Return a measure's cells of the terms, in the mean over templates, and the means of ordinary words."""
        terms, ordinary = list(self.wording.terms), list(self.wording.ordinary)
        found = clustered_mean(grid.T, torch.arange(grid.shape[1]), self.file.statistics.level)
        value, others = found.mean[terms], found.mean[ordinary]
        rows = {
            "value": value,
            "low": found.low[terms],
            "high": found.high[terms],
            "p": holm(found.p[terms]),
            "beyond": (others.abs() >= value.abs().unsqueeze(1)).double().mean(1),
        }
        return rows, others

    def _grid(self, values: Tensor) -> Grid:
        return values.reshape(len(self.wording.words), -1)


def _once(logits: Callable[[list[str]], Tensor]) -> Callable[[list[str]], Tensor]:
    """Return a function that gives each distinct text to the classifier once."""
    known: dict[str, Tensor] = {}

    def predict(texts: list[str]) -> Tensor:
        if new := [t for t in dict.fromkeys(texts) if t not in known]:
            known.update(zip(new, logits(new), strict=True))
        return torch.stack([known[t] for t in texts])

    return predict


def _of_layer(tcav: TcavResult, layer: int) -> dict[str, Tensor]:
    """Return the effects in logits at a layer; its rank among controls as a share of them."""
    controls = len(tcav.controls)
    share = (tcav.effect_p_controls[layer, :, 0] * (controls + 1) - 1) / controls
    names = {"value": "effect", "low": "effect_low", "high": "effect_high", "p": "effect_p_max_t"}
    rows = {key: getattr(tcav, name)[layer, :, 0] for key, name in names.items()}
    return {**rows, "beyond": share}
