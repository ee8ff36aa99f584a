"""`probing manifest …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Data manifests: where images come from.",
    epilog="Example: probing manifest check data_manifests/occupations.yaml",
)


@app.command("check", epilog="Example: probing manifest check data_manifests/occupations.yaml")
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A manifest in YAML."),
    ],
    *,
    root: Annotated[
        Path | None, typer.Option(help="Where relative paths start; the file's folder by default.")
    ] = None,
) -> None:
    """Say all that is wrong with a manifest, or worth knowing, and how to mend it: images, checksums, groups, licence."""
    from concepts import manifest_check

    findings = manifest_check.check(file, root=root)
    faults = [finding for finding in findings if finding.level == "error"]
    for finding in findings:
        typer.echo(
            f"{finding.level.capitalize()}: {' '.join(finding.message.split())}",
            err=finding in faults,
        )
    if faults:
        if len(findings) > 1:
            counts = f"{len(faults)} errors, {len(findings) - len(faults)} warnings"
            typer.echo(f"{file}: {counts}.", err=True)
        raise typer.Exit(2)
    typer.echo(f"{file}: every image is there and readable.")
