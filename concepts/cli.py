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

    from concepts.tcav_result import TcavResult
    from probing.examples import ImageExamples, OnError
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


def _version(show: bool) -> bool:
    if show:
        typer.echo(f"probing-concepts {__version__}")
        raise typer.Exit
    return show


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


@app.command(
    epilog="Example: probing audit experiments/audits/occupations.yaml --out results/occupations"
)
def audit(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="An audit in YAML."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and report are written.")],
    cache: CacheOption = None,
) -> None:
    """Audit a model for bias as a file lays down, and write tables, figures and a report."""
    from concepts.audit import run_audit

    run_audit(file, out, store_root=cache, say=typer.echo)


@app.command(
    epilog="Example: probing tcav torchvision:resnet18 --layer layer3 --layer layer4 --concept striped=photos/striped"
    " --random photos/random --inputs photos/zebras --target zebra --out results/zebra"
)
def tcav(
    model: ModelArgument,
    *,
    layer: Annotated[list[str], typer.Option(help="Path or glob; again for more.")],
    concept: Annotated[
        list[str],
        typer.Option(metavar="NAME=DIR", help="A concept's name and pictures; again for more."),
    ],
    random: Annotated[
        Path, typer.Option(metavar="DIR", help="Random pictures that concepts are told from.")
    ],
    inputs: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Pictures at which the targets' logits are explained."),
    ],
    target: Annotated[list[str], typer.Option(help="Class by name or number; again for more.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result is saved.")],
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    runs: Annotated[int, typer.Option(min=2, help="CAVs for each concept.")] = 20,
    seed: Annotated[int, typer.Option(help="Of all random draws.")] = 0,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read.")
    ] = False,
    cache: CacheOption = None,
) -> None:
    """Test whether a model's classes depend on concepts shown by folders of pictures."""
    from concepts.sets import Concept
    from concepts.tcav import Tcav
    from probing import models
    from probing.scores import Score
    from probing.shards import default_root
    from probing.store import ActivationStore

    out.mkdir(parents=True, exist_ok=True)  # a folder that can't be written is told before the work
    named = _named_folders(concept)
    loaded = models.load(model, weights=weights, keys=keys)
    scores = {name: Score(loaded.model, _class_index(loaded, name)) for name in target}

    def pictures(folder: Path) -> "ImageExamples":
        return _pictures(folder, loaded, "skip" if skip_unreadable else "raise")

    result = Tcav(runs=runs, seed=seed)(
        ActivationStore(cache or default_root()),
        scores,
        layer,
        [Concept(name, pictures(folder)) for name, folder in named.items()],
        pictures(inputs),
        pictures(random),
    )
    result.save(out)
    _show(_tcav_table(result))
    for sentence in result.sentences():
        typer.echo(sentence)
    typer.echo(f"Saved in {out}; TcavResult.load({str(out)!r}) reads it back.")


def _named_folders(given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for item in given:
        name, _, folder = item.partition("=")
        if not name or not folder:
            raise CommandError(
                f"--concept takes NAME=DIR, as in striped=photos/striped, got {item!r}."
            )
        if name in found:
            raise CommandError(
                f"--concept {name!r} is given twice: put its pictures into one folder."
            )
        found[name] = Path(folder)
    return found


def _class_index(loaded: "LoadedModel", name: str) -> int:
    return loaded.class_index(int(name) if name.isdecimal() else name)


def _pictures(folder: Path, loaded: "LoadedModel", on_error: "OnError") -> "ImageExamples":
    from probing.examples import ImageExamples, ImageFiles

    examples = ImageExamples(ImageFiles.in_folder(folder), loaded.preprocess, on_error=on_error)
    for left_out in examples.skipped:
        typer.echo(f"Left out {left_out.name}: {left_out.reason}", err=True)
    return examples


def _tcav_table(result: "TcavResult") -> "Table":
    level = f"{result.level:.0%}"
    table = _table(
        "layer", "concept", "target", "TCAV", level, "p", "effect (logits)", level, "p", "CAV accuracy"
    )  # fmt: skip
    for row in result.to_pandas().itertuples():
        table.add_row(
            row.layer, row.concept, row.target,
            f"{row.mean:.2f}", f"{row.low:.2f} to {row.high:.2f}", f"{row.p_holm:.2g}",
            f"{row.effect:+.3f}", f"{row.effect_low:+.3f} to {row.effect_high:+.3f}", f"{row.effect_p_max_t:.2g}",
            f"{row.accuracy:.2f}",
        )  # fmt: skip
    table.caption = "p-values are corrected over all layers, concepts and targets of this table."
    return table


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


@manifest_app.command(
    "check", epilog="Example: probing manifest check data_manifests/occupations.yaml"
)
def manifest_check(
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
    return type(error).__module__.partition(".")[0] in {"probing", "concepts"}


def _sentence(error: Exception) -> str:
    """Return an error in one line: what, where, and how to mend it."""
    text = str(error)
    if hasattr(error, "format_message"):
        path = getattr(getattr(error, "ctx", None), "command_path", "probing")
        text = f"{error.format_message().rstrip('.')}; see '{path} --help'."
    elif isinstance(error, OSError) and type(error).__module__ == "builtins" and error.filename:
        hint = _HINTS.get(type(error), "{0!r}: " + (error.strerror or type(error).__name__))
        text = hint.format(str(error.filename)) + "."
    return " ".join(text.split()) or type(error).__name__
