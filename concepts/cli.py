"""The command line of both packages: `probing …`.

Only what a command needs is imported, and only when it runs, so that help comes at once.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probing import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from probing.models import LoadedModel

app = typer.Typer(
    help="Read a PyTorch network and relate what it computes to concepts that people have names for.",
    epilog="Example: probing layers torchvision:resnet18",
    add_completion=False,
)
manifest_app = typer.Typer(
    help="Data manifests: where images come from.",
    epilog="Example: probing manifest check data_manifests/occupations.yaml",
)
cache_app = typer.Typer(
    help="The folder of stored activations: $PROBING_CACHE, or ~/.cache/probing.",
    epilog="Example: probing cache info",
)
app.add_typer(manifest_app, name="manifest")
app.add_typer(cache_app, name="cache")

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="timm:NAME, torchvision:NAME or package.module:function."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file, package:NAME/path/inside, or random."),
]
KeysOption = Annotated[
    Literal["name", "order"],
    typer.Option(help="How entries of the weights file find their places."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Stored activations; $PROBING_CACHE or ~/.cache/probing by default."
    ),
]


class CommandError(ValueError):
    """A command line that can't be followed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a user's mistake, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    debug = False
    try:
        with typer.main.get_command(app).make_context("probing", given) as context:
            debug = context.params["debug"]
            context.command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Interrupted; rows that were stored are kept.", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug or not _is_users(error):
            raise
        typer.echo(f"Error: {_sentence(error)}", err=True)
        return 2
    return 0


def _version(show: bool) -> None:
    if show:
        typer.echo(f"probing-concepts {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
) -> None:
    # Both are read elsewhere: the version by its callback, `debug` by main().
    del version, debug


@app.command(epilog="Example: probing layers torchvision:resnet18 'layer4.*'")
def layers(
    model: ModelArgument,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Paths or globs; all by default."),
    ] = None,
    *,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W", help="The input's shape, where the model does not come with it."
        ),
    ] = None,
) -> None:
    """List a model's layers with the shape each returns for one example, and their sizes."""
    from probing import models
    from probing.layers import expand
    from probing.summary import summarize

    fetched = model.partition(":")[0] in {"timm", "torchvision"}  # shapes need no trained weights
    loaded = models.load(model, weights=weights or ("random" if fetched else None), keys=keys)
    wanted = set(expand(loaded.model, patterns)) if patterns else None
    table = _table("layer", "type", "output", "runs", "parameters", "weights")
    for row in summarize(loaded.model, _blank_input(loaded, shape)):
        if wanted is None or row.path in wanted:
            output = row.output if isinstance(row.output, str) else " x ".join(map(str, row.output))
            size = f"{row.weight_bytes / 1e6:,.2f} MB"
            table.add_row(
                row.path or "(model)", row.kind, output, str(row.calls), f"{row.parameters:,}", size
            )
    _show(table)


def _blank_input(loaded: "LoadedModel", shape: str | None) -> "Tensor":
    import torch
    from PIL import Image

    if shape is None and loaded.transform is None:
        raise CommandError(
            "the model does not say what input it takes: give --shape, as in --shape 3,224,224."
        )
    if shape is None:
        return loaded.preprocess(Image.new("RGB", (64, 64)))[None]
    try:
        return torch.zeros(1, *[int(axis) for axis in shape.split(",")])
    except (ValueError, RuntimeError):
        raise CommandError(
            f"--shape takes numbers with commas, as in 3,224,224, got {shape!r}."
        ) from None


@cache_app.command("info", epilog="Example: probing cache info --cache results/cache")
def cache_info(cache: CacheOption = None) -> None:
    """Say what is stored, largest first."""
    from probing import shards

    root = cache or shards.default_root()
    held = shards.cache_info(root)
    total = sum(info.bytes for info in held)
    typer.echo(f"{root}: {sum(info.rows for info in held):,} rows, {total / 1e6:,.1f} MB")
    table = _table("model", "weights", "layer", "what", "pooling", "precision", "rows", "MB")
    for info in held:
        space = info.space
        names = (space.model, space.weights[:8], space.layer or "(output)", space.quantity)
        sizes = (f"{info.rows:,}", f"{info.bytes / 1e6:,.1f}")
        table.add_row(*names, space.pool, space.precision, *sizes)
    if held:
        _show(table)


@cache_app.command("clear", epilog="Example: probing cache clear --yes")
def cache_clear(
    cache: CacheOption = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove all stored rows; they are computed again when they are needed."""
    from probing import shards

    root = cache or shards.default_root()
    size = sum(info.bytes for info in shards.cache_info(root)) / 1e6
    if not yes and not sys.stdin.isatty():
        raise CommandError(f"to remove {size:,.1f} MB of rows from {root}, say --yes.")
    if yes or typer.confirm(f"Remove {size:,.1f} MB of rows from {root}?"):
        typer.echo(f"Freed {shards.clear_cache(root) / 1e6:,.1f} MB in {root}.")


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: "Table") -> None:
    """Print a table; at full width where it is read by another program."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


_OUR_ERRORS = frozenset({"probing", "concepts", "pydantic_core", "yaml"})
_HINTS: Mapping[type[OSError], str] = {
    FileNotFoundError: "there is no {0!r}; check the path",
    PermissionError: "no permission for {0!r}; choose another place, or change its rights",
    IsADirectoryError: "{0!r} is a folder; name a file",
    NotADirectoryError: "{0!r} is not a folder; choose another place",
    FileExistsError: "{0!r} is there already; choose another place",
}


def _is_users(error: Exception) -> bool:
    """Whether an error tells of its user's mistake; types of other packages' make it a bug of ours."""
    if isinstance(error, OSError) or hasattr(error, "format_message"):
        return True
    return type(error).__module__.partition(".")[0] in _OUR_ERRORS


def _sentence(error: Exception) -> str:
    """Return an error in one line: what, where, and how to mend it."""
    text = str(error)
    if hasattr(error, "format_message"):
        path = getattr(getattr(error, "ctx", None), "command_path", "probing")
        text = f"{error.format_message().rstrip('.')}; see '{path} --help'."
    elif type(error).__module__.startswith("pydantic_core"):
        text = _first_field(error)
    elif isinstance(error, OSError) and type(error).__module__ == "builtins" and error.filename:
        hint = _HINTS.get(type(error), "{0!r}: " + (error.strerror or type(error).__name__))
        text = hint.format(str(error.filename)) + "."
    return " ".join(text.split()) or type(error).__name__


def _first_field(error: Exception) -> str:
    """Return the first fault that a checked document has, with the place in it."""
    faults = error.errors()  # type: ignore[attr-defined]  # pydantic is not imported for this
    place = ".".join(map(str, faults[0]["loc"]))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{error.title}: {place}: {faults[0]['msg']}, got {faults[0]['input']!r}{more}."  # type: ignore[attr-defined]
