"""`probing discover`: what it prints and writes, and how it fails."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from concepts.cli import app
from concepts.discovery import DiscoveryResult


def paint(path: Path, red: int, seed: int) -> None:
    """Draw 8 pixels a side of noise, a part of which is red, and another green."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (8, 8, 3), dtype=np.uint8)
    row, column, other = rng.integers(0, 5, 3)
    pixels[row : row + 3, column : column + 3, 0] += red
    pixels[other : other + 3, other : other + 3, 1] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for i in range(24):
        paint(tmp_path / "photos" / ("red" if i % 2 else "dull") / f"{i:02}.png", 180 if i % 2 else 0, i)
    for i in range(8):
        for side, red in (("without", 0), ("with", 180)):
            paint(tmp_path / "pairs" / side / f"{i}.png", red, 100 + i)
    where = ["--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    return ["discover", "nets:red_net", *where, "--layer", "relu", "--atoms", "3", "--learner", "nmf"]


def test_discover_prints_saves_and_writes_a_page(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = f"red={tmp_path / 'pairs'}"
    assert app.main([*arguments, "--matched", pairs, "--target", "red", "--masks", "2"]) == 0
    printed = capsys.readouterr().out
    found = DiscoveryResult.load(tmp_path / "out")
    assert found.importance is not None
    assert found.naming is not None
    assert found.importance.targets == ("red",)
    assert found.attributes == ("red (with against without)",)
    assert bool(found.importance.sobol.isfinite().all())
    red = int(found.dictionary.atoms[:, 0].argmax())
    assert int(found.importance.part[0].argmax()) == red
    assert found.naming.names == ("dull", "red")
    assert found.name(red) == f"atom {red}: red"
    assert bool(found.moves[0, red])
    assert "DiscoveryResult.load" in printed
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for said in ("Concepts that nobody named", ": red, most active", "Most relevant", "Swapping red"):
        assert said in page
    assert (tmp_path / "out" / f"atom-{red}.png").exists()
    assert len((tmp_path / "out" / "atoms.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_discover_s_options_change_what_is_read(arguments: list[str], tmp_path: Path) -> None:
    options = ["--learner", "pca", "--places", "mean", "--no-twin", "--no-maps", "--seed", "3"]
    assert app.main([*arguments, *options]) == 0
    found = DiscoveryResult.load(tmp_path / "out")
    assert (found.kind, found.places, found.twin, found.importance) == ("Pca", "mean", None, None)
    assert "Most relevant" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--matched", "red"], "--matched takes NAME=DIR"),
        (["--matched", "red={photos}"], "have no file name in common: matched pictures have one name"),
        (["--matched", "red={photos}/red"], "takes a folder with two sub-folders, got 0"),
        (["--layer", "nothing"], "has no layer 'nothing'"),
        (["--atoms", "9999"], "got 9999 for 768 rows"),
    ],
)
def test_what_can_t_be_done_is_refused_in_a_sentence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    given = [option.format(photos=tmp_path / "photos") for option in options]
    assert app.main([*arguments, *given]) == 2
    assert message in capsys.readouterr().err
