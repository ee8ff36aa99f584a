"""What commands share: options, pictures and classes as users name them, tables."""

import contextlib
import difflib
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from probing.core.errors import ProbingError
from probing.core.storage import located

if TYPE_CHECKING:
    from rich.table import Table

    from probing.core.storage import Place
    from probing.data.examples import ImageExamples, OnError
    from probing.models.loading import LoadedModel
    from probing.models.precision import Kind
    from probing.store.launchers import Work
    from probing.store.requests import Request

MODEL_REFERENCES = "timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, open_clip:FOLDER or package.module:function."
ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help=MODEL_REFERENCES),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A file, package:NAME/path/inside, or random."),
]
KeysOption = Annotated[
    Literal["name", "order"],
    typer.Option(help="How entries of the weights file find their places."),
]
DeviceOption = Annotated[
    str,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, …; auto is a GPU if there is one."),
]
CacheOption = Annotated[
    Any,  # a Path or an Address; typer takes no unions
    typer.Option(
        "--cache",
        metavar="DIR|URL",
        parser=located,
        help="Stored activations; $PROBING_CACHE or ~/.cache/probing by default.",
    ),
]

SeedOption = Annotated[int, typer.Option(help="Of all random draws.")]
SkipOption = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read.")]

EngineOption = Annotated[
    Literal["local", "torchrun", "slurm", "ray"],
    typer.Option(help="Who does the work: this process, the ranks of a torchrun, the tasks of a SLURM array, or Ray."),
]
DiskOption = Annotated[
    float | None,
    typer.Option(
        "--disk-budget",
        metavar="GB",
        min=0,
        help="Refuse, before it starts, a job whose rows would make the cache larger.",
    ),
]


class CommandError(ProbingError, ValueError):
    """A command line that can't be followed."""


OPTIONS: Mapping[str, str] = {
    "allow_overlap=True": "--allow-overlap",
    "disk_budget_bytes=…": "--disk-budget",
    "on_error='skip'": "--skip-unreadable",
    "root=…": "--cache",
    "Score(output=…)": "--output",
    "size=…": "--size",
}
"""The options that do what arguments do which mend an error; `root=None`, say, has none."""


def class_index(loaded: "LoadedModel", name: str) -> int:
    """Return the number of a class given by name or number."""
    return loaded.class_index(int(name) if name.isdecimal() else name)


def pictures(folder: Path, loaded: "LoadedModel", on_error: "OnError") -> "ImageExamples":
    """Return the pictures in a folder, as the model takes them, and say on stderr which were left out."""
    from probing.data.examples import ImageExamples, ImageFiles

    examples = ImageExamples(ImageFiles.in_folder(folder), loaded.preprocess, on_error=on_error)
    for left_out in examples.skipped:
        say(f"Left out {left_out.name}: {left_out.reason}", err=True)
    return examples


def picture_files(given: Sequence[Path]) -> list[Path]:
    """Return picture files as given, and for a folder all those below it, sorted by path; each once.

    How many there are is said on stderr where a folder is among them.

    Raises:
        ExampleError: for a folder without pictures.
        CommandError: if there is no such file or folder.
    """
    from probing.data.examples import ImageFiles

    found: list[Path] = []
    for path in given:
        if not path.exists():
            near = [f.name for f in path.parent.iterdir()] if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, near, 3, 0.7)
            hint = f". Close names: {close}." if close else "; check the path."
            raise CommandError(f"there is no {str(path)!r}{hint}")
        found += ImageFiles.in_folder(path).paths if path.is_dir() else [path]
    found = list(dict.fromkeys(found))
    found = list(dict.fromkeys(found))
    if any(path.is_dir() for path in given):
        say(f"{len(found):,} picture{'s' * (len(found) > 1)}.", err=True)
    return found


def named_folders(given: Sequence[str], option: str = "--concept") -> dict[str, Path]:
    """Return the folders given as `--concept NAME=DIR`, by name, or by another option."""
    found: dict[str, Path] = {}
    for item in given:
        name, _, folder = item.partition("=")
        if not name or not folder:
            raise CommandError(f"{option} takes NAME=DIR, as in striped=photos/striped, got {item!r}.")
        if name in found:
            raise CommandError(f"{option} {name!r} is given twice: put its pictures into one folder.")
        found[name] = Path(folder)
    return found


def budget_bytes(disk_budget: float | None) -> int | None:
    """Return what `--disk-budget` allows, in bytes."""
    return None if disk_budget is None else int(disk_budget * 1e9)


def have_done(engine: str, work: "Work") -> bool:
    """Have an engine do all shares of some work; return whether this process goes on and reads the whole."""
    from probing.store.launchers import ENGINES

    chosen = ENGINES[engine]()
    done = chosen.run(work)
    if not chosen.leads() and not done:
        say(
            "This share is stored. When all tasks have ended, run the same command with --engine local.",
            err=True,
        )
    return chosen.leads()


def filled(
    engine: str,
    requests: "Callable[[], tuple[Request, ...]]",
    root: "Place",
    disk_budget: float | None = None,
    precision: "Kind" = "float32",
) -> bool:
    """Have an engine store rows that a command will ask for; return whether this process goes on and asks.

    Args:
        engine: its name; `local` leaves it to the command itself.
        requests: are made only if they are needed.
        root: of the store.
        disk_budget: of the store, in GB.
        precision: of the store.
    """
    if engine == "local":
        return True
    from probing.models.precision import Precision
    from probing.store.fill import Fill

    limit = budget_bytes(disk_budget)
    work = Fill(requests(), root, precision=Precision(precision), disk_budget_bytes=limit)
    return have_done(engine, work)


_made: list[Path] = []


def output_folder(folder: Path) -> Path:
    """Make the folder that a command writes to, so that one that can't be written is reported before the work."""
    _made.extend(p for p in (folder, *folder.parents) if not p.exists())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def forget_folders(*, remove: bool) -> None:
    """Forget which folders were made; of a command that failed, remove those that it left empty."""
    for path in _made if remove else ():
        with contextlib.suppress(OSError):  # something was written
            path.rmdir()
    _made.clear()


def printable(text: str) -> str:
    """Return a text in which characters that steer a terminal or turn the direction of reading are written out.

    Names of files, classes and concepts come from elsewhere: they must not move a cursor or hide a part of a line.
    """
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _harmless(character: str) -> bool:
    return character in "\n\t" or not (
        unicodedata.category(character) in {"Cc", "Cs"} or unicodedata.bidirectional(character) in _TURNS
    )


_TURNS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
_LONGEST = 1000


def one_line(text: str) -> str:
    """Return a text as one printable line; the middle of a very long one is left out."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return " ".join(printable(text).split())


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold names from elsewhere."""
    typer.echo(printable(text), err=err)


def new_table(*columns: str) -> "Table":
    """Return an empty table for the terminal; what is put into it is text, not markup."""
    from rich.table import Table
    from rich.text import Text

    class Plain(Table):
        def add_row(self, *cells: object, **options: Any) -> None:
            super().add_row(*(Text(one_line(str(cell))) for cell in cells), **options)

    table = Plain(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(table: "Table") -> None:
    """Print a table; at full width where it is read by another program."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
