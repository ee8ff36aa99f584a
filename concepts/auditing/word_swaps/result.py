"""What words do to a text classifier's logit, and where explanations of it part from that, as it is saved."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probing.results.figures import FAINT, FULL_WIDTH, MARKERS, PALETTE, RULE, new_figure, style
from probing.results.html_report import interval, number
from probing.results.result import Result
from probing.statistics.hypothesis_tests import Correlation, RankSum, rank_sum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SWAP = "swap"
"""The measured change of the logit when reference words are swapped for a word: what explanations are held against."""
AGREE = "same sign"
QUIET = "neither"
OPPOSITE = "opposite sign"
MISSES = "measured only"
ALONE = "predicted only"
"""Whether the measured change and a method's are significant after correction, and to the same side."""
_ALIKE = 5  # times as far as the least, methods are still drawn on one axis


@dataclass(frozen=True)
class WordResult(Result):
    """Each word's change of the logit against the reference words, measured and as methods predict it.

    Attributes:
        label: the class whose logit is measured.
        methods: `swap` first.
        listed: methods whose disagreements are listed word by word, named before the audit.
        words: the terms asked about.
        kinds: of each term, its group.
        ordinary_words: what the terms are held against.
        reference_words: what a term is swapped for.
        templates: sentences with a gap for the word.
        template_kinds: of each sentence, its group.
        level: of the intervals.
        alpha: below which a corrected p counts as significant.
        value: logits: this word less the mean of the reference words, in the mean over templates.
        low, high: its interval over templates.
        p: against no change, corrected over words: Holm; for TCAV by relabelling, step-down over layers.
        beyond: share of ordinary words that move as far in either direction (0-1).
        ordinary: the same number as `value` for ordinary words, for the swap and the local methods.
        by_template: the measured swap in each template.
        probability: of the class, with each word.
        reference_probability: its mean over the reference words.
        reference_flagged: share of the reference words with which the probability exceeds one half (0-1).
        agreement: Spearman's rank correlation with the swap over words, and its interval, which takes words as independent.
        slope: least-squares slope of the swap on the prediction through the origin: 1 where amounts are right.
        completeness_gap: the largest of integrated gradients, in logits.
    """

    label: str
    methods: tuple[str, ...]
    listed: tuple[str, ...]
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    ordinary_words: tuple[str, ...]
    reference_words: tuple[str, ...]
    templates: tuple[str, ...]
    template_kinds: tuple[str, ...]
    level: float
    alpha: float

    value: Float[Tensor, "methods words"]
    low: Float[Tensor, "methods words"]
    high: Float[Tensor, "methods words"]
    p: Float[Tensor, "methods words"]
    beyond: Float[Tensor, "methods words"]
    ordinary: Float[Tensor, "local others"]
    by_template: Float[Tensor, "words templates"]
    completeness_gap: float
    probability: Float[Tensor, "words templates"]
    reference_probability: Float[Tensor, " templates"]
    reference_flagged: Float[Tensor, " templates"]
    agreement: Float[Tensor, "methods 3"]
    slope: Float[Tensor, " methods"]

    def moves(self) -> Bool[Tensor, "methods words"]:
        """Return whether each method finds each word's change significant."""
        return self.p < self.alpha

    def stands_out(self) -> Bool[Tensor, " words"]:
        """Return which words the swap moves for sure and further than at least 95 % of ordinary words."""
        return self.moves()[0] & (self.beyond[0] <= 0.05)

    def correlation(self, method: str) -> Correlation:
        """Return a method's rank agreement with the swap."""
        r, low, high = self.agreement[self.methods.index(method)].tolist()
        return Correlation(r, low, high, len(self.words))

    def relation(self, method: str, word: str) -> str:
        """Say how what a method says of a word relates to the measured swap."""
        m, w = self.methods.index(method), self.words.index(word)
        said, true = (bool(self.moves()[i, w]) for i in (m, 0))
        if said and true:
            return AGREE if self.value[m, w] * self.value[0, w] > 0 else OPPOSITE
        if said or true:
            return ALONE if said else MISSES
        return QUIET

    def relations(self, method: str) -> dict[str, list[str]]:
        """Return the words by how the method relates to the swap."""
        found: dict[str, list[str]] = {}
        for word in self.words:
            found.setdefault(self.relation(method, word), []).append(word)
        return found

    @property
    def flagged(self) -> Bool[Tensor, "words templates"]:
        """Whether the probability of a sentence exceeds one half."""
        return self.probability > 0.5

    @property
    def against_ordinary(self) -> RankSum:
        """How the terms' measured changes compare with those of ordinary words, words taken as independent."""
        return rank_sum(self.value[0], self.ordinary[0])

    def of_kind(self, kind: str) -> list[int]:
        """Return the templates of a kind."""
        return [i for i, k in enumerate(self.template_kinds) if k == kind]

    def by_kind(self) -> dict[str, float]:
        """Return, for each kind of template, the mean size of the measured swap."""
        kinds = dict.fromkeys(self.template_kinds)
        return {k: float(self.by_template[:, self.of_kind(k)].mean(1).abs().mean()) for k in kinds}

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per word: the swap, what methods say, and how they relate to it."""
        import pandas as pd

        rows = []
        for w, word in enumerate(self.words):
            row: dict[str, object] = {"word": word, "kind": self.kinds[w]}
            row["probability"] = float(self.probability[w].mean())
            row["flagged"] = float(self.flagged[w].double().mean())
            for m, method in enumerate(self.methods):
                cells = {"": self.value, " low": self.low, " high": self.high, " p": self.p, " beyond": self.beyond}
                row |= {f"{method}{name}": float(cell[m, w]) for name, cell in cells.items()}
                if method != SWAP:
                    row[f"{method} relation"] = self.relation(method, word)
            rows.append(row)
        return pd.DataFrame(rows)

    def notebook_table(self) -> "pd.DataFrame":
        """Return each word's measured change, and how the listed methods relate to it."""
        relations = [f"{method} relation" for method in self.listed]
        table = self.to_pandas()
        return table[["word", "kind", "probability", *(n for n in (SWAP, *relations) if n in table)]]

    def plot(self) -> "Figure":
        """Draw each word's change, measured and as methods predict it."""
        order = ranked(-self.value[0])
        places = range(len(order))
        with style():
            figure = new_figure(FULL_WIDTH, 1.0 + 0.16 * len(order))
            shown = [self.methods.index(method) for method in self.listed]
            reach = torch.maximum(self.low[shown].abs(), self.high[shown].abs()).amax(1)
            # On one axis a method that is far off would leave nothing to see of the others.
            alike = bool(reach.max() <= _ALIKE * reach.min())
            panels = figure.subplots(1, len(self.listed), sharex=alike, sharey=True, squeeze=False)[0]
            for i, (axes, method) in enumerate(zip(panels, self.listed, strict=True)):
                m = self.methods.index(method)
                value, low, high = (t[m][order].numpy() for t in (self.value, self.low, self.high))
                sure = self.moves()[m][order].numpy()
                if m < len(self.ordinary):
                    axes.axvspan(*middle(self.ordinary[m]), color=RULE, alpha=0.5, lw=0)
                axes.axvline(0, color=FAINT, lw=0.6)
                if i:
                    axes.plot(self.value[0][order].numpy(), places, ls="", marker="s", ms=2.5, color=FAINT, alpha=0.7)
                axes.hlines(places, low, high, color=PALETTE[0], lw=0.8)
                for filled, face in ((True, PALETTE[0]), (False, "white")):
                    rows = [k for k in places if sure[k] == filled]
                    axes.plot(value[rows], rows, ls="", marker="o", ms=3.5, color=PALETTE[0], mfc=face)
                axes.set(xlabel="logits", title="measured" if method == SWAP else method)
            panels[0].set_yticks(list(places), [self.words[w] for w in order])
            panels[0].set_ylim(-0.7, len(order) - 0.3)
        return figure

    def plot_agreement(self) -> "Figure":
        """Draw predicted against measured change, one panel per method."""
        methods = [m for m in self.methods if m != SWAP]
        columns = min(3, len(methods))
        rows = -(-len(methods) // columns)
        kinds = list(dict.fromkeys(self.kinds))
        with style():
            figure = new_figure(FULL_WIDTH, 2.4 * rows + 0.4)
            for i, method in enumerate(methods):
                axes = figure.add_subplot(rows, columns, i + 1)
                m = self.methods.index(method)
                for k, kind in enumerate(kinds):
                    own = [w for w, of in enumerate(self.kinds) if of == kind]
                    axes.plot(
                        self.value[m][own].numpy(),
                        self.value[0][own].numpy(),
                        ls="",
                        ms=3.5,
                        label=kind,
                        marker=MARKERS[k % len(MARKERS)],
                        color=PALETTE[k % len(PALETTE)],
                    )
                reach = [float(self.value[0].min()), float(self.value[0].max())]
                axes.plot(reach, reach, color=FAINT, lw=0.7, zorder=0)
                r, low, high = self.agreement[m].tolist()
                axes.set(title=f"{method}\nrho {number(r)} ({interval(low, high, sign=False)})", xlabel="predicted (logits)")
                axes.set_ylabel("measured (logits)" if i % columns == 0 else "")
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure

    def plot_against(self, numbers: Float[Tensor, " words"], what: str) -> "Figure":
        """Draw each word's measured change against a number of it, such as what was expected."""
        with style():
            figure = new_figure(FULL_WIDTH, 3.4)
            axes = figure.add_subplot()
            axes.axhline(0, color=FAINT, lw=0.6)
            axes.vlines(numbers.numpy(), self.low[0].numpy(), self.high[0].numpy(), color=FAINT, lw=0.8)
            axes.plot(numbers.numpy(), self.value[0].numpy(), ls="", marker="o", ms=3.5, color=PALETTE[0])
            for word, x, y in zip(self.words, numbers.tolist(), self.value[0].tolist(), strict=True):
                axes.annotate(word, (x, y), xytext=(3, 2), textcoords="offset points", fontsize=6)
            axes.set(xlabel=what, ylabel="measured change (logits)")
        return figure


def ranked(values: Tensor) -> list[int]:
    """Return places from the largest value to the smallest."""
    found: list[int] = values.argsort(descending=True, stable=True).tolist()
    return found


def middle(values: Tensor) -> tuple[float, float]:
    """Return the bounds of the middle 95% of values."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
