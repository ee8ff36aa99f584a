"""`probing cache …`."""

import sys
from typing import Annotated

import typer

from concepts.cli.common import (
    CacheOption,
    CommandError,
    new_table,
    say,
    show,
)

app = typer.Typer(
    help="The folder of stored activations: $PROBING_CACHE, or ~/.cache/probing.",
    epilog="Example: probing cache info",
)


@app.command("info", epilog="Example: probing cache info --cache results/cache")
def info(cache: CacheOption = None) -> None:
    """Say what is stored, largest first."""
    from probing.store import shards

    root = cache or shards.default_root()
    held = shards.cache_info(root)
    total = sum(info.bytes for info in held)
    say(f"{root}: {sum(info.rows for info in held):,} rows, {total / 1e6:,.1f} MB")
    table = new_table("model", "weights", "layer", "what", "pooling", "precision", "rows", "MB")
    for info in held:
        space = info.space
        names = (space.model, space.weights[:8], space.layer or "(output)", space.quantity)
        sizes = (f"{info.rows:,}", f"{info.bytes / 1e6:,.1f}")
        table.add_row(*names, space.pool, space.precision, *sizes)
    if held:
        show(table)


@app.command("clear", epilog="Example: probing cache clear --yes")
def clear(
    cache: CacheOption = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all stored rows; they are computed again when they are needed."""
    from probing.store import shards

    root = cache or shards.default_root()
    size = sum(info.bytes for info in shards.cache_info(root)) / 1e6
    if not yes and not sys.stdin.isatty():
        raise CommandError(f"to remove {size:,.1f} MB of rows from {root}, say --yes.")
    if yes or typer.confirm(f"Remove {size:,.1f} MB of rows from {root}?"):
        say(f"Freed {shards.clear_cache(root) / 1e6:,.1f} MB in {root}.")


@app.command("verify", epilog="Example: probing cache verify --cache results/cache --keep")
def verify(
    cache: CacheOption = None,
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Only say what is damaged, and drop nothing.")] = False,
) -> None:
    """Compare every stored byte with its checksum; name and drop what is damaged, to be computed again when needed.

    The exit status is 0 if all is sound and 1 if something is not. Jobs may run on the store meanwhile.
    """
    from probing.store import shards
    from probing.store.verify import verify_cache

    root = cache or shards.default_root()
    found = verify_cache(root, keep=keep)
    for damage in found.damaged:
        lost = "" if damage.rows is None else f" ({damage.what}: {damage.rows:,} rows)"
        action = "Dropped" if found.dropped else "Damaged, kept"
        say(f"{action}: {damage.file}{lost}: {damage.reason}.")
    size = f"{found.rows:,} rows, {found.bytes / 1e6:,.1f} MB"
    say(f"{root}: {found.shards:,} shards are what was written ({size}).")
    if found.damaged:
        say(f"{len(found.damaged):,} are not: a job that asks for their rows computes them again.")
    if found.unfinished:
        say(
            f"{len(found.unfinished):,} unfinished files ({found.unfinished_bytes / 1e6:,.1f} MB), of jobs cut short or at "
            "work now, are never read: the same job overwrites them, `probing cache clear` removes them."
        )
    if found.damaged:
        raise typer.Exit(1)
