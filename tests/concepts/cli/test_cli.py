"""The command line: what it prints, how it fails, how fast it answers."""

import errno
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn

from concepts.cli import app
from concepts.tcav.result import TcavResult
from concepts.tcav.sample_size import detectable
from probing import __version__
from probing.data.examples import TensorExamples
from probing.models import loading, weights
from probing.store.store import ActivationStore

CONV = ["layers", "nets:ConvNet", "--shape", "1,6,6"]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(*_: object, **__: object) -> loading.LoadedModel:
        raise error

    monkeypatch.setattr(loading, "load", load)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is on stderr, which must be one line, with nothing on stdout."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def commands() -> Iterator[list[str]]:
    """Yield the path of every command and group."""
    waiting: list[tuple[list[str], object]] = [([], typer.main.get_command(app.app))]
    while waiting:
        path, command = waiting.pop()
        yield path
        waiting += [([*path, n], c) for n, c in getattr(command, "commands", {}).items()]


# Help


@pytest.mark.parametrize("path", list(commands()), ids=lambda path: "-".join(path) or "probing")
def test_every_command_s_help_shows_an_example(path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*path, "--help"]) == 0
    printed = capsys.readouterr()
    assert f"Example: probing {' '.join(path)}".strip() in printed.out
    assert printed.err == ""


def test_no_arguments_tell_where_to_begin_in_commands_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 12
    root = typer.main.get_command(app.app)
    shown = [line.split("   ")[0].split()[1:] for line in told.splitlines() if line.startswith("  probing ")]
    assert [name for name, *_ in shown] == ["layers", "init", "audit"]
    for name, *rest in shown:
        command = root.commands[name]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known
    assert "probing --help" in told


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"probing-concepts {__version__}\n"


# Layers


def test_layers_lists_paths_shapes_runs_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(CONV) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert list(rows)[:4] == ["layer", "(model)", "features", "features.0"]
    assert rows["features.0"][1:] == ["Conv2d", *["4", "x", "6", "x", "6"], "1", "40", "0.00", "MB"]
    assert rows["head"][1:5] == ["Linear", "3", "1", "18"]


def test_layers_takes_globs(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main([*CONV, "features.*"]) == 0
    paths = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert paths == ["layer", "features.0", "features.1", "features.2", "features.3"]


def test_layers_shows_what_runs_twice_and_what_returns_no_tensor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["layers", "nets:SharedReluNet", "relu", "--shape", "4"]) == 0
    assert "ReLU  3       2" in capsys.readouterr().out
    assert app.main(["layers", "nets:TupleNet", "split", "--shape", "4"]) == 0
    assert "Split  tuple" in capsys.readouterr().out


def test_layers_needs_no_weights_and_no_shape_of_a_library_s_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["layers", "torchvision:squeezenet1_1", "features.12"]) == 0
    assert "512 x 13 x 13" in capsys.readouterr().out


def test_layers_reads_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nets.ConvNet(classes=4).state_dict(), tmp_path / "other.pt")
    assert app.main([*CONV, "--weights", str(tmp_path / "other.pt")]) == 2
    assert "'other.pt' does not fit ConvNet" in one_line(capsys)


def test_tables_are_not_cut_where_another_program_reads_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a" * 300, nn.Identity())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return next(self.children())(x)

    monkeypatch.setattr(loading, "load", lambda *_, **__: loading.LoadedModel(Deep()))
    assert app.main(["layers", "any:thing", "--shape", "3"]) == 0
    assert "a" * 300 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*CONV, "feature.0"], r"ConvNet has no layer 'feature.0'. Close names: ['features.0'"),
        (["layers", "nets:ConvNet"], "give --shape, as in --shape 3,224,224."),
        (
            ["layers", "nets:ConvNet", "--shape", "big"],
            "numbers with commas, as in 3,224,224, got 'big'.",
        ),
        (
            ["layers", "nets:ConvNet", "--shape", "2,6,6"],
            "ConvNet fails on an input of shape (1, 2, 6, 6)",
        ),
        (["layers", "nets:Missing"], "'nets' has no function 'Missing'"),
        (["layers", "torchvision:resnet19"], "Close names: ['resnet18'"),
        (["layers"], "Missing argument 'MODEL'; see 'probing layers --help'."),
        (["layers", "a", "--colour"], "No such option: --colour; see 'probing layers --help'."),
        (["layer"], "No such command 'layer'."),
        (["cache"], "Missing command; see 'probing cache --help'."),
        (["--colour"], "No such option: --colour; see 'probing --help'."),
    ],
)
def test_a_user_s_mistake_is_one_line_and_status_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(arguments) == 2
    line = one_line(capsys)
    assert line.startswith("Error: ")
    assert said in line


# Audits


def test_audit_passes_its_file_folder_and_cache_on_and_prints_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def audit(
        file: Path,
        out: Path,
        *,
        store_root: Path,
        device: str,
        disk_budget_bytes: int,
        say: Callable[[str], object],
    ) -> None:
        say(f"{file.name}, {out.name}, {store_root.name}, {device}, {disk_budget_bytes}")

    monkeypatch.setattr("concepts.auditing.run.audit", audit)
    (tmp_path / "a.yaml").touch()
    options = [
        "--out",
        str(tmp_path / "results"),
        "--cache",
        str(tmp_path / "rows"),
        "--device",
        "cpu",
        "--disk-budget",
        "1.5",
    ]
    assert app.main(["audit", str(tmp_path / "a.yaml"), *options]) == 0
    assert capsys.readouterr().out == "a.yaml, results, rows, cpu, 1500000000\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "a.yaml' does not exist; see 'probing audit --help'."),
        ("", "a.yaml'"),
        ("name: [1", "a.yaml' cannot be read"),
        ("name: x\n", "a.yaml': the key"),
    ],
)
def test_an_audit_file_that_is_none_is_told_in_a_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    assert app.main(["audit", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert said in one_line(capsys)


def test_an_audit_names_a_key_it_does_not_know(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (repository / "experiments/audits/occupations.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(text.replace("\nquestion:", "\nqestion:", 1), encoding="utf-8")
    assert app.main(["audit", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "qestion" in one_line(capsys)


# TCAV


def paint(folder: Path, count: int, red: int, seed: int) -> Path:
    """Fill a folder with noise pictures whose red channel is raised."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8)
        pixels[..., 0] += red
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def tcav_arguments(tmp_path: Path) -> list[str]:
    reds, pool = paint(tmp_path / "reds", 12, 120, 0), paint(tmp_path / "pool", 40, 0, 1)
    shown = ["--inputs", str(paint(tmp_path / "inputs", 6, 0, 2)), "--target", "red"]
    sets = ["--concept", f"reddish={reds}", "--random", str(pool), "--out", str(tmp_path / "out")]
    return ["tcav", "nets:red_net", "--layer", "relu", *sets, *shown, "--runs", "4"]


def test_tcav_prints_and_saves_what_it_finds(
    tcav_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*tcav_arguments, "--target", "1"]) == 0
    printed = capsys.readouterr().out
    result = TcavResult.load(tmp_path / "out")
    assert (result.concepts, result.targets) == (("reddish",), ("red", "1"))
    assert result.scores.shape[-1] == 4
    assert result.mean[0, 0, 0] == pytest.approx(1)
    assert result.effect[0, 0, 0] == pytest.approx(120 / 255, abs=0.05)
    line = next(line for line in printed.splitlines() if line.startswith("relu"))
    assert line.split()[:4] == ["relu", "reddish", "red", "1.00"]
    assert "has the same gradient for every input" in printed
    assert f"Saved in {tmp_path / 'out'}" in printed


def test_tcav_plans_without_concepts_and_saves_nothing(
    tcav_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = tcav_arguments.index("--concept"), tcav_arguments.index("--out")
    bare = [word for i, word in enumerate(tcav_arguments) if i not in {at[0], at[0] + 1, at[1], at[1] + 1}]
    assert app.main([*bare, "--plan", "--size", "9", "--size", "30", "--draws", "10"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("relu")]
    assert [line[:3] for line in lines] == [["relu", "red", "9"], ["relu", "red", "30"]]
    assert [line[4] for line in lines] == [f"{detectable(n, 0.8, 0.05):.2f}" for n in (9, 30)]
    assert {line[6] for line in lines} == {"0%"}  # one gradient for every input: signs tell nothing
    assert not (tmp_path / "out").exists()
    assert app.main(bare) == 2
    assert "name one by --concept NAME=DIR, or plan by --plan." in one_line(capsys)
    assert app.main(tcav_arguments[: at[1]] + tcav_arguments[at[1] + 2 :]) == 2
    assert "name a folder by --out DIR." in one_line(capsys)
    assert app.main([*bare, "--plan", "--power", "0.01"]) == 2
    assert "power must lie between the level of a test, 0.05, and 1, got 0.01" in one_line(capsys)


def test_tcav_draws_by_the_seed(tcav_arguments: list[str], tmp_path: Path) -> None:
    found = []
    for seed in ("0", "0", "1"):
        assert app.main([*tcav_arguments, "--seed", seed]) == 0
        found.append(TcavResult.load(tmp_path / "out").accuracy_p)
        found.append(TcavResult.load(tmp_path / "out").effect_low)
    assert torch.equal(found[1], found[3])
    assert not torch.equal(found[1], found[5])


def test_tcav_leaves_out_unreadable_pictures_only_when_told(
    tcav_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reds" / "broken.png").write_bytes(b"no picture")
    assert app.main(tcav_arguments) == 2
    said = one_line(capsys)
    assert "broken.png" in said
    assert "leave such out by --skip-unreadable" in said
    assert app.main([*tcav_arguments, "--skip-unreadable"]) == 0
    assert "Left out" in capsys.readouterr().err


def test_tcav_takes_sets_that_overlap_only_when_told(
    tcav_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = next((tmp_path / "reds").iterdir())
    (tmp_path / "pool" / "shared.png").write_bytes(shared.read_bytes())
    assert app.main(tcav_arguments) == 2
    assert "or allow it, if it is meant, by --allow-overlap." in one_line(capsys)
    assert app.main([*tcav_arguments, "--allow-overlap"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--concept", "striped"],
            "--concept takes NAME=DIR, as in striped=photos/striped, got 'striped'.",
        ),
        (["--concept", "reddish=a"], "--concept 'reddish' is given twice"),
        (["--concept", "striped=missing"], "'missing' is no folder"),
        (["--target", "rad"], "the model has no class 'rad'. Close names: ['red'"),
        (["--target", "2"], "class 2 is out of range: the model has classes 0 to 1."),
        (["--layer", "rela"], "Sequential has no layer 'rela'. Close names: ['relu'"),
        (["--runs", "1"], "Invalid value for '--runs': "),
        (
            ["--concept", "random={tmp}/pool"],
            "the concept 'random' shares 40 of its 40 examples with",
        ),
        (
            ["--concept", "few={tmp}/inputs"],
            "the concept 'few' has 6 examples: 9 or more are needed",
        ),
        (["--out", "{tmp}/pool/00.png"], "choose another"),
        (["--cache", "{tmp}/pool/00.png"], "name another folder by --cache"),
    ],
)
def test_a_mistake_in_a_tcav_command_is_one_line(
    more: list[str],
    said: str,
    tcav_arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main([*tcav_arguments, *(item.format(tmp=tmp_path) for item in more)]) == 2
    assert said in one_line(capsys)


# Manifests


def write_manifest(folder: Path, root: str = "pictures", more: str = "") -> Path:
    paint(folder / "pictures", 3, 0, 0)
    text = (
        f"name: noise\nlicence: CC0-1.0\nsource: made here\nimages: {{kind: folder, root: {root}, pattern: '*.png'}}\n{more}"
    )
    (folder / "manifest.yaml").write_text(text)
    return folder / "manifest.yaml"


def test_a_sound_manifest_passes_with_its_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["manifest", "check", str(write_manifest(tmp_path))]) == 0
    printed = capsys.readouterr()
    assert "Warning: images of kind 'folder' have no checksums" in printed.out
    assert "every image is there and readable" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("root", "more", "said"),
    [
        ("pictures", "lisence: MIT\n", "unknown key 'lisence'"),
        ("../elsewhere", "", "'../elsewhere'"),
        ("empty", "", "empty"),
        ("pictures", "name: twice\n", "the key 'name' stands twice in line 5"),
    ],
)
def test_a_fault_in_a_manifest_is_one_line_and_status_2(
    root: str, more: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["manifest", "check", str(write_manifest(tmp_path, root, more))]) == 2
    line = one_line(capsys)
    assert line.startswith("Error: ")
    assert said in line


def test_an_unreadable_picture_is_named_by_manifest_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_manifest(tmp_path)
    (tmp_path / "pictures" / "01.png").write_bytes(b"no picture")
    assert app.main(["manifest", "check", str(file)]) == 2
    assert "01.png" in capsys.readouterr().err


def test_a_manifest_that_is_not_there_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["manifest", "check", "missing.yaml"]) == 2
    assert "'missing.yaml' does not exist" in one_line(capsys)


# How errors end


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(errno.ENOENT, "gone", "a/b.yaml"),
            "there is no 'a/b.yaml'; check the path.",
        ),
        (PermissionError(errno.EACCES, "no", "/x"), "no permission for '/x'; choose another place"),
        (IsADirectoryError(errno.EISDIR, "is", "/x"), "'/x' is a folder; name a file."),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "'/x': No space left on device."),
        (OSError("of many\nwords"), "of many words"),
        (weights.WeightsError("two\n  lines"), "two lines"),
    ],
)
def test_errors_a_user_can_mend_are_told_in_a_line(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(monkeypatch, error)
    assert app.main(CONV) == 2
    assert said in one_line(capsys)


@pytest.mark.parametrize("broken", ["load", "_build"])
def test_a_bug_of_ours_keeps_its_traceback(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, broken, None)  # what calls it is ours
    with pytest.raises(TypeError, match="not callable"):
        app.main(CONV)


def test_debug_shows_where_a_mistake_was_found() -> None:
    with pytest.raises(LookupError, match="has no layer"):
        app.main(["--debug", *CONV, "feature.0"])


def test_ctrl_c_is_one_line_and_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert app.main(CONV) == 130
    assert "Interrupted" in one_line(capsys)


def test_a_reader_that_stops_early_is_no_error(repository: Path) -> None:
    code = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        "from concepts.cli.app import main; sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")


# The cache


def test_cache_info_and_clear_tell_and_remove_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ActivationStore(tmp_path)
    net = nets.seeded(nets.ConvNet())
    store.activations(net, ["features.0"], TensorExamples(nets.images(5)), pool="mean")
    assert app.main(["cache", "info", "--cache", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}: 5 rows" in printed
    assert "ConvNet" in printed
    assert "features.0" in printed
    assert app.main(["cache", "clear", "--cache", str(tmp_path), "--yes"]) == 0
    assert "Freed" in capsys.readouterr().out
    assert app.main(["cache", "info", "--cache", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 0 rows, 0.0 MB\n"


def test_the_cache_is_not_cleared_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert app.main(["cache", "clear"]) == 2
    assert "say --yes" in one_line(capsys)


def test_the_default_cache_is_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROBING_CACHE", str(tmp_path / "mine"))
    assert app.main(["cache", "info"]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "mine"))
