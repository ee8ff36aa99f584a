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
    """Say whether a manifest's images are there, unchanged and readable, and its groups and pairs sound."""
    from concepts import manifest

    findings = manifest.check(file, root=root)
    faults = [finding for finding in findings if finding.level == "error"]
    for finding in findings:
        typer.echo(
            f"{finding.level.capitalize()}: {' '.join(finding.message.split())}",
            err=finding in faults,
        )
    if faults:
        raise typer.Exit(2)
    typer.echo(f"{file}: every image is there and readable.")
