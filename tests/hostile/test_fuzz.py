"""Hostile input: each file or text gives a result, or one clear line and exit status 2.

No traceback, no hang over ten seconds, nothing written outside the output folder and the cache, no network. `FUZZ=20`
multiplies the number of mutated inputs; `make fuzz` does.
"""

import contextlib
import csv
import importlib
import itertools
import os
import random
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import audits
import hostile
import pytest
import yaml

from concepts.cli import app
from probing.data.examples import ExampleError, ImageExamples, ImageFiles
from probing.data.images import ImageError, decode
from probing.data.svg_images import rendered

for slow in (
    "torchvision",
    "matplotlib.font_manager",
    "concepts.auditing.run",
):  # imported once, and not while watched
    importlib.import_module(slow)

SHARE = int(os.environ.get("FUZZ", "1"))


def seeds(count: int) -> range:
    """Return so many seeds, or as many times more as FUZZ says."""
    return range(count * SHARE)


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    """Let warnings be warnings, as they are outside of tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def judged(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], *writable: Path) -> tuple[int, str]:
    """Run a command while it is watched, hold what it says against the rule, and return status and errors."""
    with hostile.watched(*writable):
        status = app.main(list(arguments))
    printed = capsys.readouterr()
    said = printed.err.splitlines()
    assert status in {0, 2}
    assert "Traceback" not in printed.err
    if status == 2:
        lines = [line for line in said if line.startswith("Error: ")]
        assert len(lines) == 1 or arguments[:2] == ["manifest", "check"]
        assert lines
        assert all(len(line) < 2000 for line in said)
    assert not [c for c in printed.err + printed.out if unsafe(c)]
    return status, printed.err


def unsafe(character: str) -> bool:
    """Whether a character steers a terminal or turns the direction of reading."""
    if character in "\n\t":
        return False
    kind = unicodedata.category(character)
    return kind in {"Cc", "Cs"} or (kind == "Cf" and character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# Manifests and audits


def manifest(folder: Path) -> dict[str, object]:
    """Write pictures and return a manifest of them."""
    import hashlib

    rows = []
    (folder / "pictures").mkdir(parents=True)
    for i, who in enumerate(("w", "m") * 3):
        data = hostile.picture("PNG", "RGB", (6, 6 + i))
        (folder / "pictures" / f"{i}.png").write_bytes(data)
        rows.append([f"{i}.png", hashlib.sha256(data).hexdigest(), who, str(i // 2)])
    columns = ["file", "sha256", "who", "place"]
    return {
        "name": "sound",
        "about": "a",
        "licence": "MIT",
        "source": "none",
        "background": [255, 0, 10],
        "images": {"kind": "files", "root": "pictures", "columns": columns, "rows": rows},
        "groups": {"women": {"where": {"who": "w"}, "without": {"place": ["0"]}}, "some": {"files": ["1.png"]}},
        "matched": [{"vary": "who", "within": ["place"], "cluster": "place"}],
    }


SOURCES = (
    {"kind": "folder", "root": "pictures", "pattern": "**/*"},
    {"kind": "package", "package": "numpy", "version": "1", "root": "numpy", "columns": ["file", "sha256"], "rows": []},
    {"kind": "dataset", "format": "arrow", "path": "pictures"},
    {"kind": "dataset", "format": "parquet", "path": "pictures"},
)


@pytest.mark.parametrize("seed", seeds(25))
def test_a_manifest_with_anything_in_it_is_checked_or_refused(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, hub = random.Random(seed), tmp_path / "hub"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", hub)  # the cache of that library
    sound = manifest(tmp_path)
    if seed % 5 == 0:
        sound |= {"images": dict(rng.choice(SOURCES)), "groups": {}, "matched": []}
    if rng.random() < 0.4:
        data = hostile.mutated(hostile.plain_text(sound), rng)
    else:
        tree: object = sound
        for _ in range(rng.randint(1, 3)):
            tree = hostile.twisted(tree, rng)
        with contextlib.suppress(yaml.YAMLError):
            data = hostile.plain_text(tree)
    (tmp_path / "m.yaml").write_bytes(data)
    judged(["manifest", "check", str(tmp_path / "m.yaml")], capsys, hub)


@pytest.mark.parametrize("name", hostile.yaml_bombs())
@pytest.mark.parametrize("command", ["manifest", "audit"])
def test_yaml_that_is_meant_ill_is_refused_in_a_line(
    name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "m.yaml", tmp_path / "out"
    file.write_bytes(hostile.yaml_bombs()[name])
    arguments = ["audit", str(file), "--out", str(out)] if command == "audit" else ["manifest", "check", str(file)]
    status, _ = judged(arguments, capsys, out)
    assert status == 2
    assert not out.exists()


def test_a_manifest_learns_nothing_of_files_outside_its_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link.png").symlink_to(secret)
    digest = hashlib.sha256(b"secret").hexdigest()
    for name in ("../secret", str(secret), "link.png", "/dev/zero", "..\\secret"):
        for checksum in ("", "0" * 64, digest):
            images = {"kind": "files", "columns": ["file", "sha256"], "rows": [[name, checksum]]}
            text = hostile.plain_text({"name": "x", "licence": "x", "source": "x", "images": images})
            (tmp_path / "inside" / "m.yaml").write_bytes(text)
            status, said = judged(["manifest", "check", str(tmp_path / "inside" / "m.yaml")], capsys)
            assert status == 2
            assert digest not in said


# Pictures


def attribute(path: Path, out: Path) -> list[str]:
    return ["attribute", "hostile:net", str(path), "--method", "saliency", "--out", str(out)]


@pytest.mark.parametrize("name", hostile.pictures())
def test_a_picture_of_any_kind_is_shown_or_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(hostile.pictures()[name])
    _, said = judged(attribute(path, tmp_path / "out"), capsys, tmp_path / "out")
    del said


@pytest.mark.parametrize("seed", seeds(12))
def test_pictures_changed_at_random_are_read_or_left_out(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, sources = random.Random(seed), hostile.pictures()
    small = [n for n, data in sources.items() if len(data) < 5000]
    for i in range(20):
        name = rng.choice(small)
        (tmp_path / f"{i}.{name.rpartition('.')[2]}").write_bytes(hostile.mutated(sources[name], rng))
    text = "name: x\nlicence: x\nsource: x\nimages: {kind: folder}\n"
    (tmp_path / "m.yaml").write_text(text)
    judged(["manifest", "check", str(tmp_path / "m.yaml")], capsys)
    with hostile.watched(), contextlib.suppress(ExampleError):
        examples = ImageExamples(ImageFiles.in_folder(tmp_path), hostile.PLAIN, on_error="skip")
        rows = examples.load(range(len(examples)))
        assert rows.isfinite().all()


def test_a_picture_that_has_no_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "holes.png").open("wb") as file:
        file.truncate(2 << 30)
    for name, said in (("pipe", "a pipe or a device"), ("zero", "a pipe or a device"), ("holes", "2147483648 bytes")):
        out = tmp_path / "out"
        status, error = judged(attribute(tmp_path / f"{name}.png", out), capsys, out)
        assert status == 2
        assert said in error
        assert not out.exists()


@pytest.mark.parametrize("name", hostile.drawings())
def test_a_drawing_is_drawn_or_refused(name: str) -> None:
    pytest.importorskip("resvg_py")
    with hostile.watched(), contextlib.suppress(ImageError):
        assert decode(rendered(hostile.drawings()[name], 72)).size == (72, 72)
        assert name in {"sound", "pattern", "dashes", "script"}


# Weights


def layers(path: Path) -> list[str]:
    return ["layers", "nets:ConvNet", "--shape", "1,6,6", "--weights", str(path)]


@pytest.mark.parametrize("name", hostile.weights())
def test_weights_of_any_kind_are_read_or_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(hostile.weights()[name])
    status, said = judged(layers(tmp_path / name), capsys)
    assert (status == 0) == name.startswith("sound")
    if name.startswith("code") or name in {"module.pt", "pickle.pt"}:
        assert "is not unpickled, since that could run code" in said
        assert "safetensors" in said
    assert not Path("owned").exists()


@pytest.mark.parametrize("seed", seeds(20))
def test_weights_changed_at_random_are_read_or_refused(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng, sources = random.Random(seed), hostile.weights()
    name = rng.choice(["sound.pt", "sound.safetensors", "complex.pt", "old.pt"])
    (tmp_path / name).write_bytes(hostile.mutated(sources[name], rng))
    judged(layers(tmp_path / name), capsys)


# Texts


TEXTS = list(itertools.islice(hostile.texts(random.Random(0)), len(hostile.EVIL) + 5 + 5 * SHARE))


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_a_text_with_anything_in_it_is_explained_or_refused(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXTS[number]
    out = tmp_path / "out"
    arguments = ["attribute", "hostile:feeling", "--text", text, "--method", "lime"]
    status, _ = judged([*arguments, "--out", str(out)], capsys, out)
    assert out.exists() == (status == 0)
    if status == 0:
        page = (out / "lime.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert "<img" not in page


# From end to end


class Harmless(HTMLParser):
    """Fails for elements and attributes that run or fetch anything, but for the report's own script."""

    in_script = False

    def handle_endtag(self, tag: str) -> None:
        self.in_script = self.in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        assert not (self.in_script and "alert" in data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_script = tag == "script"
        assert not (self.in_script and attrs)
        assert tag not in {"iframe", "object", "embed", "base", "link", "form"}, tag
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name, value)
            if name in {"src", "href", "xlink:href"}:
                assert re.match(r"data:|#|[\w./-]+$", value or ""), (tag, name, value)


def test_names_that_are_meant_ill_are_text_in_an_audits_report_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audits.write_drawings(tmp_path, roles=10)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    evil = [e for e in hostile.EVIL if not set(e) & set("/\\\0") and e.isprintable()][:10]
    for i, row in enumerate(data["images"]["rows"]):
        name = f"{evil[i % 10]}{i}.png"[-80:]
        (tmp_path / row[0]).rename(tmp_path / name)
        row[0], row[2] = name, evil[i // 6]
    (tmp_path / "data.yaml").write_bytes(hostile.plain_text(data))
    names = hostile.EVIL[: len(audits.CLASSES)]
    file = audits.audit_file(
        tmp_path,
        {
            "title": hostile.EVIL[0],
            "question": hostile.EVIL[1],
            "limits": list(names),
            "model": {"reference": "hostile:biased", "layers": ["features", "mix"]},
            "inputs": {"about": names[0], "where": {"gender": "person"}},
            "targets": [{"name": n, "group": names[1], "reason": n} for n in names],
        },
    )
    out, cache = tmp_path / "out", tmp_path / "cache"
    with hostile.watched(out, cache, limit=60):
        assert app.main(["audit", str(file), "--out", str(out), "--cache", str(cache)]) == 0
    capsys.readouterr()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    Harmless().feed(page)
    tables = sorted((out / "tables").glob("*.csv"))
    cells = [c for t in tables for line in csv.reader(t.open(encoding="utf-8", newline="")) for c in line]
    assert any(c.startswith("'=cmd") for c in cells)
    assert not [c for c in cells if c[:1] in {"=", "+", "-", "@"} and not re.fullmatch(r"[-+][\d.e-]+", c)]
