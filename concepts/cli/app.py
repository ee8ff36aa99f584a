"""The command line of both packages: `probing …`.

Only what a command needs is imported, and only when it runs, so that help comes at once.
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from concepts.cli import (
    atlas,
    attribute,
    audit,
    cache,
    discover,
    dissect,
    evaluate,
    init,
    layers,
    manifest,
    maximize,
    mend,
    probe,
    report,
    tcav,
)
from concepts.cli.common import OPTIONS, forget_folders, one_line
from probing import __version__
from probing.core.errors import Mend, ProbingError, line_of_users

app = typer.Typer(
    help="Read a PyTorch network and relate what it computes to concepts that people have names for.",
    epilog="Example: probing layers torchvision:resnet18",
    add_completion=False,
)
for command, example in (
    (init.init, init.EXAMPLE),
    (audit.audit, audit.EXAMPLE),
    (report.report, report.EXAMPLE),
    (mend.mend, mend.EXAMPLE),
    (tcav.tcav, tcav.EXAMPLE),
    (attribute.attribute, attribute.EXAMPLE),
    (dissect.dissect, dissect.EXAMPLE),
    (discover.discover, discover.EXAMPLE),
    (probe.probe, probe.EXAMPLE),
    (atlas.atlas, atlas.EXAMPLE),
    (maximize.maximize, maximize.EXAMPLE),
    (evaluate.evaluate, evaluate.EXAMPLE),
    (layers.layers, layers.EXAMPLE),
):
    app.command(epilog=f"Example: {example}")(command)
app.add_typer(manifest.app, name="manifest")
app.add_typer(cache.app, name="cache")


_BEGINNING = f"""probing reads a PyTorch network and relates what it computes to concepts that people have names for.

Where to begin, from nothing but a network:
  probing layers torchvision:resnet18      what it is made of
An audit of your own pictures, a folder for each concept:
  {init.EXAMPLE}
  probing audit my_audit/audit.yaml --out results
All commands: probing --help; each in turn: probing COMMAND --help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 when done, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        typer.echo(_BEGINNING)
        return 0
    debug, context, failed = False, None, True
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with (
            _stoppable(),
            typer.main.get_command(app).make_context("probing", given) as context,
        ):
            debug = context.params["debug"]
            from probing.core.progress import talking

            with talking():
                context.command.invoke(context)
        failed = False
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort) as stop:
        typer.echo("Interrupted; what was stored is kept.", err=True)
        return 143 if isinstance(stop, _Terminated) else 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = _told(error, _options_of(context))
        if debug or not told:  # nobody but us can mend a bug: it shows where it is
            raise
        typer.echo(f"Error: {one_line(told)}", err=True)
        return 2
    finally:
        forget_folders(remove=failed)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Have SIGTERM raise as Ctrl-C does, so that what is at work cleans up.

    One more signal, later than starters of many processes repeat theirs, ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    asked: list[float] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not asked:
            asked.append(time.monotonic())
            raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - asked[0] > _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    # Others stay as the starter of this process wants them: shells have jobs in the background ignore Ctrl-C.
    ours = {s: h for s, h in before.items() if h in {signal.default_int_handler, signal.SIG_DFL}}
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


_PATIENCE = 2.0
"""Seconds in which one more signal belongs to the first."""


def _options_of(context: object) -> frozenset[str]:
    """Return the options of the command that was called."""
    commands = getattr(getattr(context, "command", None), "commands", {})
    called = commands.get(getattr(context, "invoked_subcommand", None))
    return frozenset(option for p in getattr(called, "params", ()) for option in p.opts)


def _version(show: bool) -> bool:
    if show:
        typer.echo(f"probing-concepts {__version__}")
        raise typer.Exit
    return show


@app.callback()
def _options(
    *,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
) -> None:
    # Both are read elsewhere: the version by its callback, `debug` by main().
    del version, debug


_HINTS: Mapping[type[OSError], str] = {
    FileNotFoundError: "there is no {0!r}; check the path",
    PermissionError: "no permission for {0!r}; choose another place, or change its rights",
    IsADirectoryError: "{0!r} is a folder; name a file",
    NotADirectoryError: "{0!r} is not a folder; choose another place",
    FileExistsError: "{0!r} is there already; choose another place",
}


def _told(error: Exception, options: frozenset[str]) -> str:
    """Return an error that its user can mend in one line: what, where, and how; of a bug nothing."""
    if isinstance(error, ProbingError):
        text = error.worded(lambda mend: _as_option(mend, options))
    elif hasattr(error, "format_message"):  # of the command line itself
        path = getattr(getattr(error, "ctx", None), "command_path", "probing")
        text = f"{error.format_message().rstrip('.')}; see '{path} --help'."
    elif isinstance(error, OSError):
        text = str(error)
        if error.filename and error.strerror:  # as the operating system tells it
            hint = _HINTS.get(type(error), "{0!r}: " + (error.strerror or type(error).__name__))
            text = hint.format(str(error.filename)) + "."
    elif line := line_of_users(error):
        return (
            f"{type(error).__name__}: {str(error).strip() or 'it says no more'} "
            f"(in your own code, {line}; `probing --debug …` shows the way there)"
        )
    else:
        return ""
    return text.strip() or type(error).__name__


def _as_option(mend: Mend, options: frozenset[str]) -> str:
    """Return how the command that was called does it; nothing if it can't."""
    option = OPTIONS.get(mend.argument)
    return f"{mend.do} by {option}" if option in options else ""
