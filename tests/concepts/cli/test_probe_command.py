"""`probing probe`: what it prints and saves, and how it fails."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from concepts.cli import app
from probing.probes import ProbeResult


def paint(folder: Path, count: int, red: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8)
        pixels[..., 0] += red
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for seed, (name, red) in enumerate((("red", 100), ("dull", 0))):
        for person in range(6):
            paint(tmp_path / "photos" / name / f"person {person}", 5, red, 10 * seed + person)
    return ["probe", "nets:red_net", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]


def test_probe_prints_saves_and_draws_what_it_finds(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*arguments, "--layer", "relu", "--layer", "head"]) == 0
    printed = capsys.readouterr().out
    result = ProbeResult.load(tmp_path / "out")
    assert result.layers == ("(input)", "relu", "head")
    assert result.classes == ("dull", "red")
    assert result.error.tolist() == [0, 0, 0]
    line = next(line for line in printed.splitlines() if line.startswith("relu"))
    assert line.split()[:3] == ["relu", "3", "0.000"]
    assert "ProbeResult.load" in printed
    assert (tmp_path / "out" / "probes.png").stat().st_size > 5000
    assert (tmp_path / "out" / "probes.pdf").exists()


def test_probe_s_options_change_what_is_read(arguments: list[str], tmp_path: Path) -> None:
    options = ["--layer", "relu", "--reduce", "grid2", "--kind", "ridge", "--group-folders", "--no-untrained", "--seed", "3"]
    assert app.main([*arguments, *options]) == 0
    result = ProbeResult.load(tmp_path / "out")
    assert result.features.tolist() == [12, 12]
    assert result.grouped
    assert result.groups <= 4
    assert result.untrained_error.isnan().all()
    assert result.bits.isnan().all()
    fields = result.provenance.method["fields"]
    assert isinstance(fields, dict)
    assert fields["seed"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--layer", "rleu"], "has no layer 'rleu'"),
        (["--layer", "relu", "--reduce", "bogus"], "'bogus' is not one of"),
    ],
)
def test_a_mistake_in_a_probe_command_is_one_line(
    arguments: list[str], change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*arguments, *change]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_pictures_without_a_class_or_a_group_are_told(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "photos" / "third", 3, 50, 99)
    assert app.main([*arguments, "--group-folders"]) == 2
    assert "wants CLASS/GROUP/PICTURE, got 'third/00.png'" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "loose.png")
    assert app.main(arguments) == 2
    assert "1 pictures outside a class's folder, such as 'loose.png'" in capsys.readouterr().err
