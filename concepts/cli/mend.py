"""`probing mend`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli import common
from concepts.cli.common import CommandError, DeviceOption, SeedOption, output_folder, say

if TYPE_CHECKING:
    from rich.table import Table

    from concepts.auditing.measurement.setup import ContrastSets, Material
    from concepts.erasure.corrections import Correction
    from concepts.erasure.mending_result import MendingResult

EXAMPLE = "probing mend people/audit.yaml --by projection --out results/mended"

How = Literal["projection", "mean-projection", "last-layer", "group-dro"]


def mend(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An audit in YAML.")],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where weights and result are written.")],
    by: Annotated[How, typer.Option(help="last-layer and group-dro need --labels.")] = "projection",
    contrast: Annotated[
        str | None, typer.Option(help="As 'woman against man'; by default the audit's first contrast.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="ATTRIBUTE", help="Attribute of the images whose values are the model's classes.")
    ] = None,
    layer: Annotated[str, typer.Option(help="The last linear layer; by default it is looked for.")] = "",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Correct an audit's model so that it leans less on a contrast, and measure again on images never used."""
    from concepts.auditing.measurement.setup import Material
    from concepts.auditing.measurement.spec import read_audit
    from concepts.erasure.mending import Mending
    from concepts.erasure.mending_page import mending_page
    from concepts.local_vs_global.matched_pairs import MatchedConcept

    output_folder(out)  # a folder that can't be written is reported before the work
    parts = read_audit(file)
    material = Material.of(parts, file.parent, device)
    chosen = _contrast(material, contrast)
    rows = list(dict.fromkeys([*chosen.every.first, *chosen.every.second]))
    sides = [chosen.spec.positive if row in set(chosen.every.first) else chosen.spec.negative for row in rows]
    matched = [
        MatchedConcept(c.spec.name, material.subset(c.every.first), material.subset(c.every.second), c.every.cluster)
        for c in (chosen, *(c for c in material.contrasts if c is not chosen))
    ]
    mended = Mending(_correction(by), layer, level=parts.statistics.level, seed=seed)(
        material.loaded.model,
        material.subset(rows),
        sides,
        None if labels is None else _labels(material, labels, rows),
        clusters=material.clusters_of(rows),
        matched=matched,
        targets=material.targets,
        name=chosen.spec.name,
        fitted_on=material.fitted_on,
    )
    mended.save(out)
    mending_page(mended.result, f"{parts.model.reference}, audit {file.name}").save(out / "report.html")
    common.show(_table(mended.result))
    for sentence in mended.result.sentences():
        say(sentence)
    say(f"Saved in {out}: report.html, weights.safetensors; MendingResult.load({str(out)!r}) reads the numbers back.")


def _contrast(material: "Material", name: str | None) -> "ContrastSets":
    known = {c.spec.name: c for c in material.contrasts}
    if not known:
        raise CommandError("the audit has no contrast of matched images: there is nothing to lean less on.")
    if name is not None and name not in known:
        raise CommandError(f"the audit has no contrast {name!r}, only {list(known)}.")
    return known[name or next(iter(known))]


def _correction(by: How) -> "Correction":
    from concepts.erasure.corrections import GroupDro, LastLayer, Projection

    if by == "last-layer":
        return LastLayer()
    return GroupDro() if by == "group-dro" else Projection("mean" if by == "mean-projection" else "leace")


def _labels(material: "Material", attribute: str, rows: list[int]) -> list[int]:
    values = material.manifests[0].attribute(attribute)
    return [common.class_index(material.loaded, values[row]) for row in rows]


def _table(result: "MendingResult") -> "Table":
    from rich.table import Table

    table = Table("what", "of", "before", "after", "change", "interval", title=f"{result.attribute}, by {result.by}")
    for row in result.to_pandas().itertuples(index=False):
        numbers = (f"{row.before:.2f}", f"{row.after:.2f}", f"{row.change:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}")
        table.add_row(row.what, row.of, *numbers)
    return table
