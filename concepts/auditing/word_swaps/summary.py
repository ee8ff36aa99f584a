"""An audit of words in one screen: its answer in a sentence, the figure that shows it, how sure, what it does not say."""

from functools import partial
from typing import TYPE_CHECKING

from concepts.auditing.word_swaps.result import WordResult, middle
from concepts.auditing.word_swaps.templates import SLOT, Called
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects
from probing.results.html_report import Mark, Plate, Standing, Summary
from probing.statistics.hypothesis_tests import Correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def word_summary(words: WordResult, called: Called, expected: Correlation | None = None) -> Summary:
    """Return the first screen of an audit of words.

    Args:
        words: what each word changes.
        called: what the page calls the words.
        expected: of the changes with what was named beforehand, if anything was.
    """
    shown = f" Shown are the {MOST_ROWS} largest of {len(words.words)}." if len(words.words) > MOST_ROWS else ""
    caption = (
        f"Change of the logit of “{words.label}” with each word, against the reference {called.other}s, in the mean over "
        f"{len(words.templates)} templates; bars are {words.level:.0%} intervals over these. Filled: beyond chance after "
        f"correction. The grey band holds the middle 95% of ordinary {called.other}s. Above: the word that changes most, "
        f"and one of the reference {called.other}s, in the template where it changes the logit most as in the mean.{shown}"
    )
    marks = (beyond_chance(words, called), methods_agree(words), *(_as_expected(expected) if expected else ()))
    return Summary(
        answer=answer(words, called),
        plate=Plate(partial(_changes, words), "Change of the score by word", caption, "figures/summary", "words"),
        marks=(*marks, Mark("Replicated?", Standing.UNTESTED)),
        caveat="how other words or sentences fare, or where the model has it from.",
    )


def answer(words: WordResult, called: Called) -> str:
    """Say in one sentence how many words are shown to change the score, and which most."""
    moved = [w for w, sure in enumerate(words.moves()[0].tolist()) if sure]
    count = len(words.words)
    if not moved:
        return (
            f"None of {count} {called.terms} is shown to change the score of “{words.label}”; that does not prove that none "
            "does."
        )
    most = max(moved, key=lambda w: abs(float(words.value[0, w])))
    side = "up" if words.value[0, most] > 0 else "down"
    verb = "changes" if len(moved) == 1 else "change"
    what = f"{len(moved)} of {count} {called.terms} {verb} the score of “{words.label}” beyond chance"
    return f"{what}, most “{words.words[most]}” ({side})."


def beyond_chance(words: WordResult, called: Called) -> Mark:
    """Say how many changes are significant after correction, and how many of these stand out from ordinary words'."""
    count, far, total = int(words.moves()[0].sum()), int(words.stands_out().sum()), len(words.words)
    standing = Standing.of(count, total)
    if not count:
        return Mark("Beyond chance?", standing, f"none of {total} after correction.")
    further = f"{far or 'none'} further than 95% of ordinary {called.other}s"
    return Mark("Beyond chance?", standing, f"{count} of {total}; {further}.")


def followers(words: WordResult) -> list[str]:
    """Return the methods, of those named beforehand, that rank words as the measured change does, beyond chance."""
    return [method for method in words.listed[1:] if words.correlation(method).low > 0]


def methods_agree(words: WordResult) -> Mark:
    """Say how many methods rank words as the measured change does."""
    count, total = len(followers(words)), len(words.listed) - 1
    if not total:
        return Mark("Measures agree?", Standing.UNTESTED)
    standing = Standing.of(count, total)
    return Mark("Measures agree?", standing, f"{count or 'none'} of {total} methods, in rank.")


def _as_expected(found: Correlation) -> tuple[Mark]:
    if found.low > 0:
        return (Mark("As expected?", Standing.YES, "in rank."),)
    return (Mark("As expected?", Standing.NO, "reversed." if found.high < 0 else "not shown."),)


def _changes(words: WordResult) -> "Figure":
    value, low, high = (t[0].tolist() for t in (words.value, words.low, words.high))
    sure = words.moves()[0].tolist()
    effects = {word: Effect(*row) for word, *row in zip(words.words, value, low, high, sure, strict=True)}
    panel = EffectPanel("", effects, band=middle(words.ordinary[0]))
    return draw_effects([panel], f"change of “{words.label}” (logit)", sentences(words))


def sentences(words: WordResult) -> tuple[str, str]:
    """Return the template in which the word that changes most does so as in the mean, with a reference word and with it."""
    most = int(words.value[0].abs().argmax())
    typical = int((words.by_template[most] - words.value[0, most]).abs().argmin())
    before, after = (words.templates[typical].replace(SLOT, w) for w in (words.reference_words[0], words.words[most]))
    return f"“{before}”", f"\N{RIGHTWARDS ARROW} “{after}”"
