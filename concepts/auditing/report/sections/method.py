"""What was asked, and how it was measured."""

from concepts.auditing.measurement.results import AuditResults
from probing.results.html_report import (
    Points,
    Section,
    Table,
)


def targets_section(results: AuditResults) -> Section:
    """Return the classes and why each was chosen."""
    rows = tuple((t.name, str(t.index), t.group, t.reason) for t in results.targets)
    table = Table(
        "The classes, fixed in the audit file.",
        ("class", "index", "group", "reason"),
        rows,
        text_columns=4,
    )
    return Section("Why these classes", (table,))


def _unmatched(results: AuditResults) -> tuple[str, ...]:
    counterpart = results.concepts[0].negative
    return (
        (
            f"Each concept's {results.clusters} were divided at random. Directions were fitted on {len(results.fitted_on)} "
            f"{results.clusters}; scores and effects were read at {results.judged_inputs} images of the other "
            f"{len(results.judged_on)}: {results.inputs}."
        ),
        (
            f"Each run fits a direction that separates two thirds of a concept's images from as many of {counterpart}, and"
            " is judged on the third held out."
        ),
        (
            "Predicted effect: the mean over inputs of gradient times the difference of the two sets' mean activations,"
            " averaged over positions."
        ),
        (
            f"Tests: the same runs with {results.pseudo_concepts} pseudo-concepts, drawn from the concept's images and"
            f" {counterpart}; p-values are corrected over layers and classes by the step-down maximum and over concepts by"
            " Bonferroni."
        ),
        "No images are matched, so nothing was swapped and no predicted effect was checked.",
    )


def _matched(results: AuditResults) -> tuple[str, ...]:
    first = results.contrasts[0]
    return (
        (
            "Measured swap: the difference of the logits of matched images, averaged over all pairs; its interval is a t"
            f" interval over {results.clusters}. Nothing is fitted, so nothing need be held out."
        ),
        (
            "Predicted effect: the mean over inputs of gradient times the difference of the two sets' mean activations,"
            f" averaged over positions. For inputs of one of the {results.clusters} the difference comes from all others."
            f" Its test swaps the two labels within {results.clusters} ({first.relabellings:,}"
            f" ways{', all there are' if first.exact else ''})."
        ),
        f"Inputs are {results.inputs}: {results.input_count} images.",
        (
            f"TCAV scores, accuracies and picked classes: the {results.clusters} were divided at random. Directions were"
            f" fitted on {', '.join(results.fitted_on)}; they were read and judged on {', '.join(results.judged_on)}"
            f" ({results.judged_inputs} inputs)."
        ),
        "Concepts given as one set are compared with random images and serve as controls: there is nothing to swap.",
        "p-values are corrected over contrasts, layers and classes; concepts given as one set are corrected apart.",
    )


def method_section(results: AuditResults) -> Section:
    """Return how everything was measured, and on which sets."""
    items = _matched(results) if results.contrasts else _unmatched(results)
    rows = tuple(
        (
            c.name,
            c.negative,
            str(c.positives),
            str(c.negatives),
            str(c.clusters),
            str(c.fitted),
            str(c.judged),
        )
        for c in results.concepts
    )
    header = (
        "concept",
        "compared with",
        "images",
        "against",
        "independent groups",
        "fitted on",
        "judged on",
    )
    caption = "The sets. Fitted and judged on: images per side, where these are not the same."
    return Section("How it was done", (Points(items), Table(caption, header, rows, text_columns=2)))


def limits(results: AuditResults) -> tuple[str, ...]:
    """Return what every audit's numbers do not say."""
    if not results.contrasts:
        return _limits_unmatched(results)
    contrasts = " or ".join(f"“{c.negative}” and “{c.positive}”" for c in results.contrasts)
    return (
        (
            f"A swap changes everything that was drawn differently between {contrasts}; which of these differences moved a "
            "logit is not known."
        ),
        "A logit that moves need not change a decision, and a change that all classes share changes none.",
        (
            f"Intervals and tests take the {len(results.fitted_on) + len(results.judged_on)} {results.clusters} as"
            " independent and as a sample of others like them."
        ),
        (
            f"Correlations over {len(results.targets)} classes take these as independent, and they were chosen, not drawn at"
            " random."
        ),
        (
            "A predicted effect is a first-order statement about one layer; where it does not follow the measured swap it "
            "says nothing about the model."
        ),
    )


def _limits_unmatched(results: AuditResults) -> tuple[str, ...]:
    return (
        (
            "What sets one folder of pictures apart from others is all that differs between them, such as light, place,"
            " camera or who took them; a direction called by the concept's name may stand for any of it."
        ),
        (
            "A logit that rises along a direction need not change a decision, and no picture was changed to see whether it"
            " does."
        ),
        (
            f"Intervals and tests take the {len(results.fitted_on) + len(results.judged_on)} {results.clusters} as"
            " independent and as a sample of others like them."
        ),
        "A predicted effect is a first-order statement about one layer at these pictures.",
    )
