"""Seeds hang on what is asked for: not on source, modules, hashes, captions or the last bit of a tensor."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from where import ROOT, SUPPORT

from probing.core.seeds import seed_of
from probing.maximization import Channel, Direction, Diversity, Logit, Neuron, Space, maximize

DRAW = """
import sys
sys.path[:0] = [{package!r}, {tests!r}]
import nets
from probing.maximization import Channel, Logit, Space, maximize
import probing.maximization as used
assert used.__file__.startswith({package!r})
goals = [Channel("features.0", 1), Logit(0) - 0.5 * Channel("features.0", 2)]
found = maximize(nets.seeded(nets.ConvNet()), goals, space=Space.plain("grey"), size=8, steps=1, seed=3)
sys.stdout.write(found.images.numpy().tobytes().hex())
"""


def drawn(unit: int = 1, seed: int = 3) -> str:
    goals = [Channel("features.0", unit), Logit(0) - 0.5 * Channel("features.0", 2)]
    net = nets.seeded(nets.ConvNet())
    found = maximize(net, goals, space=Space.plain("grey"), size=8, steps=1, seed=seed)
    return found.images.numpy().tobytes().hex()


def test_images_do_not_change_with_docstrings_moved_classes_renamed_modules_or_hashes(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "probing", tmp_path / "probing")
    folder = tmp_path / "probing" / "maximization"
    text = (folder / "objectives.py").read_text(encoding="utf-8")
    edited = text.replace("The mean of a unit over positions.", "Another docstring, and more.")
    assert edited != text
    (folder / "goals.py").write_text(f"# moved\n{edited}", encoding="utf-8")
    (folder / "objectives.py").unlink()
    for path in (tmp_path / "probing").rglob("*.py*"):
        if path.suffix in {".py", ".pyi"}:
            source = path.read_text(encoding="utf-8")
            moved = re.sub(r"(maximization|from )\.objectives\b", r"\1.goals", source)
            path.write_text(moved, encoding="utf-8")
    code = DRAW.format(package=str(tmp_path), tests=str(SUPPORT))
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == drawn()
    assert done.stdout != drawn(unit=2)
    assert done.stdout != drawn(seed=4)


def test_seeds_are_these_numbers_for_ever() -> None:
    assert seed_of(0, Channel("layer3", 5), 0) == 543503764034627507
    assert seed_of(1, 2 * Neuron("a", 1, (2, 3)) - Diversity("b", 2), 1) == 2394322827117116436


@dataclass(frozen=True)
class Blob:
    width: float
    shape: tuple[int, ...] = (1, 2)
    options: dict[str, int] = field(default_factory=dict)
    caption: str = field(default="", compare=False)


def test_what_means_the_same_has_the_same_seed() -> None:
    @dataclass(frozen=True)
    class Newer:
        width: float
        shape: tuple[int, ...] = (1, 2)
        options: dict[str, int] = field(default_factory=dict)
        more: str | None = None

    Newer.__name__ = "Blob"
    assert seed_of(Blob(2.0)) == seed_of(Newer(2.0)) != seed_of(Newer(2.0, more="x"))
    assert seed_of(Blob(2.0)) == seed_of(Blob(2)) == seed_of(Blob(np.float32(2)))
    assert seed_of(Blob(1, options={"a": 1, "b": 2})) == seed_of(Blob(1, options={"b": 2, "a": 1}))
    assert seed_of(Blob(1, caption="wide")) == seed_of(Blob(1))
    assert seed_of(Logit(3, "cat")) == seed_of(Logit(3)) != seed_of(Logit(4, "cat"))
    assert seed_of({"b", "a"}) == seed_of({"a", "b"})
    v = torch.tensor([1.0, 2.0])
    assert seed_of(Direction("a", v)) == seed_of(Direction("a", v * (1 + 1e-7)))


@pytest.mark.parametrize(
    "other",
    [
        Blob(2.5),
        Blob(2, shape=(2, 1)),
        Blob(2, shape=(1, 2, 3)),
        Blob(2, options={"a": 1}),
        Channel("a", 2),
        ("Blob", "width", 2),
        [2],
        2,
        "2",
        True,
        None,
        torch.zeros(2),
        frozenset({2}),
        {"a": 2},
        seed_of,
    ],
)
def test_what_means_something_else_has_another_seed(other: object) -> None:
    assert seed_of(Blob(2)) != seed_of(other)
    assert seed_of(0, Blob(2)) != seed_of(0, other)
    assert seed_of(Blob(2)) != seed_of(1, Blob(2))


def test_parts_do_not_run_together() -> None:
    assert seed_of("a", "b") != seed_of("ab", "")
    assert seed_of((1, 2), 3) != seed_of(1, (2, 3))
    assert seed_of(Blob(2), 3) != seed_of((Blob(2), 3))
    assert seed_of({"a": 1}, "b", 2) != seed_of({"a": 1, "b": 2})
