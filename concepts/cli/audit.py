"""`probing audit`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from concepts.cli.common import (
    CacheOption,
    DeviceOption,
    DiskOption,
    EngineOption,
    budget_bytes,
    filled,
    output_folder,
    say,
)

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
    engine: EngineOption = "local",
    disk_budget: DiskOption = None,
) -> None:
    """Audit a model for bias as a file lays down, and write tables, figures and a report."""
    from concepts.auditing.measurement.setup import Material
    from concepts.auditing.measurement.spec import read_audit
    from concepts.auditing.run import audit, requests
    from probing.store.shards import default_root

    output_folder(out)
    root = cache or default_root()
    if engine != "local":
        parts = read_audit(file)
        material = Material.of(parts, file.parent, device)
        wanted = partial(requests, material)
        if not filled(engine, wanted, root, disk_budget, parts.model.precision):
            return
    limit = budget_bytes(disk_budget)
    audit(file, out, store_root=root, device=device, disk_budget_bytes=limit, say=say)
