"""What long work says on stderr: its cost before, where it is, and how it ends when it is stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nets
import pytest
import torch
from where import ROOT, SUPPORT

from concepts.cli import app
from probing.attribution.cam.grad_cam import AblationCAM
from probing.attribution.gradient import SmoothGrad
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.lime import LIME
from probing.core import progress
from probing.core.progress import Progress, about, talking
from probing.models.scores import Score


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "about 5 s"),
        (12.3, "about 10 s"),
        (57, "about 55 s"),
        (58, "about 1 min"),
        (200, "about 3 min"),
        (569, "about 9 min"),
        (571, "about 10 min"),
        (2000, "about 35 min"),
        (3500, "about 1 h"),
        (9000, "about 2.5 h"),
        (40_000, "about 11 h"),
        (300_000, "about 3 days"),
    ],
)
def test_an_estimate_claims_no_precision_that_it_has_not(seconds: float, said: str) -> None:
    assert about(float(seconds)) == said


def test_long_work_says_once_how_many_parts_there_are_and_how_long_they_take(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with talking(), Progress(64, "LIME", unit="passes") as meter:
        for _ in range(8):
            clock.now += 3
            meter.advance(1)
        assert meter.line() == "LIME: 8 of 64 passes, about 3 min left"
    printed = capsys.readouterr()
    assert printed.err == "LIME: 64 passes, about 3 min.\n"
    assert printed.out == ""


def test_short_work_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with talking(), Progress(9, "LIME") as meter:
        for _ in range(9):
            clock.now += 1.05
            meter.advance(1)
    assert capsys.readouterr().err == ""


def test_what_was_stored_does_not_make_the_rest_look_quick(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with talking(), Progress(1000, "rows") as meter:
        meter.advance(900, computed=False)
        clock.now += 5
        meter.advance(0, computed=False)
        clock.now += 10
        meter.advance(10)
        assert meter.left == pytest.approx(90)
    assert capsys.readouterr().err == "rows: 1,000 examples, about 2 min.\n"


def test_a_part_of_work_whose_cost_was_said_says_nothing_of_its_own(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with talking(), Progress(3, "evaluate", unit="methods") as outer:
        clock.now += 20
        outer.advance(1)
        with Progress(100, "LIME", unit="passes") as inner:
            clock.now += 2
            inner.advance(5)
    assert capsys.readouterr().err == "evaluate: 3 methods, about 1 min.\n"


def test_python_stays_silent_in_a_log_unless_asked(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for show, said in ((None, ""), (False, ""), (True, "work: 10 examples, about 50 s.\n")):
        with Progress(10, "work", show) as meter:
            clock.now += 5
            meter.advance(1)
        assert capsys.readouterr().err == said
        assert progress._open == []


def test_a_log_gets_a_line_now_and_then_of_all_that_is_going_on_or_of_nothing_in_particular(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.02)
    with talking():
        with Progress(3, "evaluate", unit="methods"), Progress(None, "drawing the page"):
            time.sleep(0.2)
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: 0 of 3 methods; drawing the page"
    assert re.fullmatch("still at work, .* s so far", lines[-1])
    assert len(lines) <= 0.4 / 0.02 + 1


def test_a_terminal_shows_a_bar_and_what_is_printed_meanwhile_goes_where_it_should(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(10, "work") as outer:
        outer.advance(1)
        with Progress(5, "a part") as inner:
            inner.advance(1)
            sys.stdout.write("a result\n")
        outer.advance(9)
    printed = capsys.readouterr()
    assert printed.out == "a result\n"
    assert progress._Bar.one is None


def test_a_bar_goes_when_work_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def work() -> None:
        with Progress(10, "work") as meter:
            meter.advance(1)
            assert progress._Bar.one is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert progress._Bar.one is None


@pytest.mark.parametrize(
    ("method", "unit"),
    [
        (IntegratedGradients(batch_size=10), "passes"),
        (IntegratedGradients(batch_size=10, steps="auto"), "intervals"),
        (SmoothGrad(batch_size=10), "noisy copies"),
        (LIME(batch_size=10), "passes"),
        (AblationCAM("features.0"), "channels"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else v,
)
def test_methods_of_many_passes_count_them(method: object, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Progress] = []

    def note(meter: Progress) -> None:
        seen.append(meter)

    monkeypatch.setattr(Progress, "_announce", note)
    net, x = nets.seeded(nets.ConvNet()), torch.rand(1, 1, 6, 6)
    with talking():
        method(Score(net, 0), x)  # type: ignore[operator]
    assert any(unit in meter.unit for meter in seen)
    assert all(meter.done == meter.total for meter in seen)


# Being stopped


SCRIPT = """
import sys
from concepts.cli.app import main
sys.exit(main())
"""


def started(arguments: list[str], folder: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "PYTHONPATH": f"{SUPPORT}{os.pathsep}{ROOT}",
        "PROBING_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONUNBUFFERED": "1",
    }
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - as a terminal does
    )


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_one_line_and_leaves_what_it_saved_and_nothing_half_written(
    number: int, status: int, tmp_path: Path
) -> None:
    from PIL import Image

    # Of two colours: LIME refuses a picture in which hiding changes nothing.
    Image.linear_gradient("L").resize((8, 8)).convert("RGB").save(tmp_path / "a.png")
    given = ["attribute", "nets_of_verify:stuck", str(tmp_path / "a.png"), "--out"]
    methods = ["--method", "saliency", "--method", "lime"]
    process = started([*given, str(tmp_path / "out"), *methods], tmp_path)
    saved, end = tmp_path / "out" / "a" / "saliency" / "result.json", time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)  # in a pass of LIME, which ends only when it is interrupted
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    assert err.splitlines()[-1] == "Interrupted; what was stored is kept."
    assert "Traceback" not in err
    kept = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert kept == {"a/saliency/result.json", "a/saliency/tensors.safetensors"}
    assert list((tmp_path / "tmp").rglob("*.tmp")) == []


def test_signals_mean_what_they_meant_after_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert app.main(["--version"]) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_sigterm_in_the_middle_of_a_command_is_status_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("probing.models.loading.load", load)
    assert app.main(["layers", "nets:ConvNet", "--shape", "1,6,6"]) == 143
    assert capsys.readouterr().err == "Interrupted; what was stored is kept.\n"
