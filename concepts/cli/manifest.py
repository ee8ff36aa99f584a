"""`probing manifest …`."""

from pathlib import Path
from typing import Annotated

import typer

from concepts.cli.common import one_line, say

app = typer.Typer(
    help="Data manifests: where images come from.",
    epilog="Example: probing manifest check data_manifests/twemoji_people.yaml",
)


MOST = 200
"""Findings that are printed; the rest are counted."""


@app.command("check", epilog="Example: probing manifest check data_manifests/twemoji_people.yaml")
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A manifest in YAML."),
    ],
    *,
    root: Annotated[Path | None, typer.Option(help="Where relative paths start; the file's folder by default.")] = None,
) -> None:
    """Say all that is wrong with a manifest, or worth knowing, and how to mend it: images, checksums, groups, licence."""
    from concepts.data import manifest_check

    findings = manifest_check.check(file, root=root)
    faults = [finding for finding in findings if finding.level == "error"]
    for finding in findings[:MOST]:
        is_error = finding.level == "error"
        say(f"{finding.level.capitalize()}: {one_line(finding.message)}", err=is_error)
    if faults:
        if len(findings) > 1:
            counts = f"{len(faults)} errors, {len(findings) - len(faults)} warnings"
            say(f"{file}: {counts}.", err=True)
        raise typer.Exit(2)
    say(f"{file}: every image is there and readable.")
