"""The page that says whether an audit's findings replicate, made of its saved result alone."""

from pathlib import Path

from concepts.auditing.replication.replicate import (
    BOTH,
    FIRST,
    NEITHER,
    OPPOSITE,
    SECOND,
    Replication,
    correlation_in_words,
)
from concepts.auditing.replication.summary import replication_summary
from probing.results.html_report import (
    Block,
    Finding,
    Plate,
    Report,
    Section,
    Table,
    interval,
    linked,
    number,
    p_value,
)
from probing.results.tables import DataTable

_LAYERS = "Effects predicted in the layers"
OUTCOMES = (BOTH, OPPOSITE, FIRST, SECOND, NEITHER)


def write_replication(folder: Path, title: str, limits: tuple[str, ...] = ()) -> Report:
    """Write table, figure and `report.html` of the replication saved in a folder; no model is run."""
    page = replication_page(Replication.load(folder), title, limits)
    page.save(folder / "report.html")
    return page


def replication_page(found: Replication, title: str, limits: tuple[str, ...] = ()) -> Report:
    """Return the page on a replication, its figure yet to be drawn."""
    data = DataTable.of_frame("replication", "each logit's change on both sets", found.to_pandas(), 2)
    a, b = found.sets
    plate = Plate(
        found.plot,
        f"Changes of logits on {a} and on {b}",
        f"Left: what the swap does to each logit on {a} and on {b}, with intervals over {found.cluster_by}s; filled:"
        f" significant on both; dotted: equal changes. Right: whether the same {found.cluster_by}s move a logit most on"
        " both, by class.",
        "figures/replication",
        data.name,
    )
    return Report(
        title=title,
        subject=f"One audit on {a} and on {b}",
        question=f"Does what was found on {a} hold on images of the same things by other hands, {b}?",
        findings=tuple(finding for c in found.contrasts for finding in findings(found, c)),
        limits=(
            *limits,
            (
                "That an effect is significant on one set and not on the other does not show that the sets differ: the "
                "difference is tested by itself."
            ),
            f"Two sets of drawings of the same {found.cluster_by}s are two cases, not a sample of all drawings.",
        ),
        summary=replication_summary(found),
        data=(data,),
        sections=(
            Section("Both sets", (plate, *(_table(found, c, data) for c in found.contrasts))),
            Section(_LAYERS, (_layer_table(found),)),
        ),
        colophon=(
            ("Made", f"{found.provenance.created} by {' '.join(found.provenance.command)}"),
            ("Versions", ", ".join(f"{k} {v}" for k, v in found.provenance.versions.items())),
            ("Content of model and images", f"{found.provenance.model}, {found.provenance.examples}"),
        ),
    )


def findings(found: Replication, contrast: str) -> list[Finding]:
    """Return what may be said of one contrast."""
    c = found.contrasts.index(contrast)
    outcomes = found.outcomes(contrast)
    named = " ".join(f"{o.capitalize()}: {', '.join(outcomes[o])}." for o in OUTCOMES if o in outcomes)
    differ = found.differing(contrast)
    r = found.over_clusters[c]
    above = int((r[:, 1] > 0).sum())
    rest = (
        f"Over {len(found.targets)} classes the two sets' changes correlate with {correlation_in_words(found, contrast)}."
        f" Over {len(found.clusters)} {found.cluster_by}s the changes of a class correlate with r ="
        f" {number(float(r[:, 0].nanmedian()))} in the median ({number(float(r[:, 0].nan_to_num().min()))} to"
        f" {number(float(r[:, 0].nan_to_num().max()))}); for {above or 'none'} of them the interval is above 0. Amounts that"
        f" differ for sure: {', '.join(differ) or 'none'}."
    )
    findings = [Finding(found.statement(contrast), f"{named} {rest}")]
    if expected := found.expected.get(contrast):
        findings.append(_expectation(found, contrast, expected))
    return [*findings, _trust(found, contrast)]


def _trust(found: Replication, contrast: str) -> Finding:
    one, two = (set(found.trusted[name][contrast]) for name in found.sets)
    both = [layer for layer in found.layers if layer in one & two]
    each = "; ".join(f"{name}: {', '.join(found.trusted[name][contrast]) or 'none'}" for name in found.sets)
    return Finding(
        f"Effects predicted for {contrast} follow the measured change on both sets at {len(both)} of {len(found.layers)} "
        "layers.",
        f"By the bound that the audit names: {each}.",
        see=_LAYERS,
    )


def _expectation(found: Replication, contrast: str, expected: dict[str, str]) -> Finding:
    c = found.contrasts.index(contrast)
    kinds: dict[str, list[str]] = {"borne out on both": [], "reversed on both": [], "other": []}
    for target, way in expected.items():
        k = found.targets.index(target)
        sure = found.outcome(contrast, target) == BOTH
        as_said = (float(found.swap[0, c, k]) > 0) == (way == "up")
        kinds["other" if not sure else "borne out on both" if as_said else "reversed on both"].append(target)
    return Finding(
        f"Of {len(expected)} directions written down beforehand for {contrast}, {len(kinds['borne out on both'])} are borne "
        f"out on both sets and {len(kinds['reversed on both'])} reversed on both.",
        " ".join(f"{name.capitalize()}: {', '.join(t)}." for name, t in kinds.items() if t and name != "other"),
    )


def _table(found: Replication, contrast: str, data: DataTable) -> Table:
    c = found.contrasts.index(contrast)
    rows = []
    for k, target in enumerate(found.targets):
        sides = [
            f"{number(float(found.swap[s, c, k]), sign=True)}"
            f" ({interval(float(found.low[s, c, k]), float(found.high[s, c, k]))})"
            for s in (0, 1)
        ]
        r = found.over_clusters[c, k].tolist()
        cells = (
            target,
            found.expected.get(contrast, {}).get(target, ""),
            found.outcome(contrast, target),
            *sides,
            f"{number(float(found.difference[c, k]), sign=True)} (p {p_value(float(found.difference_p[c, k]))})",
            f"{number(r[0])} ({interval(r[1], r[2])})",
        )
        rows.append(linked(cells, data.at(contrast, target), 3))
    header = ("class", "expected", "significant on", *found.sets, "difference", f"r over {found.cluster_by}s")
    return Table(f"Change of logits by {contrast}", header, tuple(rows), text_columns=3)


def _layer_table(found: Replication) -> Block:
    rows = tuple(
        (c, layer, *(str(found.effect_outcomes(c, layer).get(o, 0)) for o in OUTCOMES))
        for c in found.contrasts
        for layer in found.layers
    )
    caption = "Classes by whether their predicted effect is significant, on which set"
    return Table(caption, ("contrast", "layer", *OUTCOMES), rows, text_columns=2)
