"""`probing report`."""

from pathlib import Path
from typing import Annotated

import typer

from concepts.cli.common import CommandError, say

EXAMPLE = "probing report results/occupations"


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            exists=True,
            file_okay=False,
            help="Results of an audit; of two, to compare them.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where two audits are compared; comparison.html if left out."),
    ] = None,
) -> None:
    """Make an audit's report again from what was saved, or set two audits side by side; no model is run."""
    if len(folders) > 2:
        raise CommandError(f"one audit is reported or two are compared, got {len(folders)} folders.")
    if len(folders) == 2:
        from concepts.auditing.model_comparison.page import write_side_by_side

        for line in write_side_by_side(folders[0], folders[1], out or Path("comparison.html")):
            say(line)
        return
    if out is not None:
        raise CommandError("--out is for two folders: one audit's report stands in its own.")
    from concepts.auditing.run import rebuild, summary

    say(summary(rebuild(folders[0]), folders[0]))
