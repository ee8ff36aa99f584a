"""`probing audit`."""

from pathlib import Path
from typing import Annotated

import typer

from concepts.commands.common import CacheOption, DeviceOption

EXAMPLE = "probing audit experiments/audits/occupations.yaml --out results/occupations"


def audit(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An audit in YAML."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and report are written.")],
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Audit a model for bias as a file lays down, and write tables, figures and a report."""
    from concepts.audit import run_audit

    run_audit(file, out, store_root=cache, device=device, say=typer.echo)
