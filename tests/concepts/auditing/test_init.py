"""`probing init`: what a folder of someone's own pictures becomes, and what is refused."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from concepts.auditing import run
from concepts.auditing.init import draft_audit
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.spec import AuditFile, read_audit
from concepts.cli import app
from concepts.data.manifest import Manifest
from probing.models.stages import StageError, find_stages

REDS = {"reddish": 60.0, "plain": 0.0}


def paint(path: Path, red: float, seed: int, suffix: str = "png") -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.normal(100, 10, 3) + rng.normal(0, 4, (8, 8, 3)) + [red, 0, 0]).clip(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path.with_suffix(f".{suffix}"))


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of folders of pictures, in a folder whose name has a space."""

    def make(counts: dict[str, int], root: str = "my photos", start: int = 0) -> Path:
        for k, (name, count) in enumerate(counts.items()):
            for i in range(count):
                red = REDS.get(name.partition("/")[0], 0.0)
                paint(tmp_path / root / name / f"IMG_{i}", red, start + 1000 * k + i)
        return tmp_path / root

    return make


def init(out: Path, images: Path | str, *more: str) -> int:
    return app.main(["init", str(out), "--images", str(images), "--model", "audits:planted", *more])


def audited(out: Path, results: Path) -> AuditResults:
    """Return what the audit finds, without its figures and report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_report", lambda out, _: AuditResults.load(out))
        assert app.main(["audit", str(out / "audit.yaml"), "--out", str(results)]) == 0
    return AuditResults.load(results)


def read(out: Path) -> tuple[AuditFile, Manifest]:
    file = read_audit(out / "audit.yaml")
    assert file.root is not None
    return file, Manifest.load(out / file.data, root=out / file.root)


def test_three_commands_lead_from_a_folder_of_pictures_to_a_report(
    photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photos({"reddish": 14, "plain": 14})
    (images / "reddish" / "clip.mov").write_bytes(b"no picture")
    (images / ".DS_Store").write_bytes(b"hidden")
    out = tmp_path / "my audit"
    assert init(out, images) == 0
    printed = capsys.readouterr()
    assert "28 pictures (plain 14, reddish 14)" in printed.out
    assert "1 .mov" in printed.out
    assert ".DS_Store" not in printed.out
    assert f"probing audit '{out / 'audit.yaml'}' --out results" in printed.out
    results = tmp_path / "the results"
    assert app.main(["audit", str(out / "audit.yaml"), "--out", str(results)]) == 0
    assert (results / "report.html").stat().st_size > 40_000
    check = (out / "images.yaml").read_text(encoding="utf-8").splitlines()[1]
    command = shlex.split(check.removeprefix("# Check it by: probing "))
    assert app.main(command) == 0
    assert "Reused 28 of 28 rows of images" in capsys.readouterr().out
    told = {c.target for c in AuditResults.load(results).cells if (c.effect_p_corrected or 1) < 0.05}
    assert {"purse", "laptop"} <= told
    assert "vase" not in told


def test_classes_are_the_best_guesses_or_those_asked_for(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = photos({"reddish": 10, "plain": 10})
    assert init(tmp_path / "a", images) == 0
    file, _ = read(tmp_path / "a")
    assert len(file.targets) == 5
    assert file.targets[0].name == "purse"
    assert "best guess for 13 of 20 pictures" in file.targets[0].reason
    assert init(tmp_path / "b", images, "--classes", "vase, 1", "--layer", "mix") == 0
    file, _ = read(tmp_path / "b")
    assert [t.name for t in file.targets] == ["vase", "drill"]
    assert file.model.layers == ["mix"]


def test_a_share_to_fit_on_is_chosen_that_leaves_each_concept_enough(photos: Callable[..., Path], tmp_path: Path) -> None:
    assert init(tmp_path / "few", photos({"reddish": 10, "plain": 12})) == 0
    assert read(tmp_path / "few")[0].inputs.fit_share == 0.9
    assert init(tmp_path / "many", photos({"reddish": 18, "plain": 18}, "more")) == 0
    assert read(tmp_path / "many")[0].inputs.fit_share == 0.5


def test_nothing_is_overwritten_unless_told(
    photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = photos({"reddish": 10, "plain": 10, "random": 27}), tmp_path / "out"
    assert init(out, images) == 0
    assert read_audit(out / "audit.yaml").random is not None
    (out / "audit.yaml").write_text("mine")
    capsys.readouterr()
    assert init(out, images) == 2
    assert "audit.yaml' is there already: choose another name, or replace it by --force" in (capsys.readouterr().err)
    assert (out / "audit.yaml").read_text() == "mine"
    for path in (images / "random").iterdir():
        path.unlink()
    assert init(out, images, "--force") == 0
    assert read_audit(out / "audit.yaml").random is None
    assert not (out / "random.yaml").exists()  # of the earlier try


def test_random_pictures_are_told_from_and_may_lie_elsewhere(photos: Callable[..., Path], tmp_path: Path) -> None:
    images = photos({"reddish": 12})
    pool = photos({"all": 40}, "pool", start=5000)
    assert init(tmp_path / "out", images, "--random", str(pool)) == 0
    file, _ = read(tmp_path / "out")
    assert [c.name for c in file.concepts] == ["reddish"]
    assert file.random is not None
    assert (file.random.images, file.random.size) == (40, 13)
    found = audited(tmp_path / "out", tmp_path / "r")
    assert found.of("reddish").negatives == 40


def test_matched_pictures_make_contrasts_that_are_swapped(
    photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photos({"plain": 12, "reddish": 11})
    assert init(tmp_path / "plain", images) == 0
    assert "--matched measures what swapping them does" in capsys.readouterr().out
    assert init(tmp_path / "out", images, "--matched") == 0
    assert "1 pictures of 'plain' and 'reddish' have no partner" in capsys.readouterr().out
    file, manifest = read(tmp_path / "out")
    assert [c.name for c in file.contrasts] == ["reddish against plain"]
    assert len(manifest.pairs("concept", "reddish", "plain").first) == 11
    found = audited(tmp_path / "out", tmp_path / "r")
    assert found.swap("reddish against plain", "purse").swap > 0.5


def test_folders_inside_concepts_are_groups_when_told(photos: Callable[..., Path], tmp_path: Path) -> None:
    people = ("ann", "bob", "cy", "di", "eve", "flo", "gus", "hal", "ida", "jo")
    images = photos({f"{concept}/{who}": 2 for concept in REDS for who in people})
    assert init(tmp_path / "out", images, "--grouped") == 0
    file, manifest = read(tmp_path / "out")
    assert file.inputs.cluster == "group"
    assert set(manifest.attribute("group")) == set(people)
    found = audited(tmp_path / "out", tmp_path / "r")
    assert found.clusters == "groups"
    assert set(found.fitted_on) | set(found.judged_on) == set(people)


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    module.disable_progress_bars()
    return module


@pytest.mark.parametrize("kind", ["saved data", "data.parquet"])
def test_a_labelled_data_set_is_as_good_as_folders(
    kind: str, photos: Callable[..., Path], tmp_path: Path, datasets: ModuleType
) -> None:
    images = photos({"plain": 12, "reddish": 12})
    files = sorted(map(str, images.rglob("*.png")))
    columns = {"image": [*files, files[0]], "label": [0] * 12 + [1] * 12 + [0], "day": ["x"] * 25}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    data = data.cast_column("label", datasets.ClassLabel(names=["plain", "reddish"]))
    if kind == "data.parquet":
        data.to_parquet(tmp_path / kind)
    else:
        data.save_to_disk(tmp_path / kind)
    assert init(tmp_path / "few", tmp_path / kind, "--most", "11") == 0
    assert 21 <= len(read(tmp_path / "few")[1]) <= 22
    assert init(tmp_path / "out", tmp_path / kind) == 0
    file, manifest = read(tmp_path / "out")
    assert [c.name for c in file.concepts] == ["plain", "reddish"]
    assert len(manifest) == len(set(manifest.examples(nn.Identity()).ids)) == 24
    assert manifest.items[-1].name == "image[23]"  # the 25th is a picture that is there already
    assert init(tmp_path / "none", tmp_path / kind, "--column", "breed") == 2
    assert not (tmp_path / "none").exists()


def test_a_name_of_the_hub_is_asked_of_the_hub(
    photos: Callable[..., Path],
    tmp_path: Path,
    datasets: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = photos({"plain": 10, "reddish": 10})
    data = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
    asked = []

    def load(name: str, **options: object) -> object:
        asked.append((name, options))
        return data

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert init(tmp_path / "out", "hub:some/pictures", "--split", "test") == 0
    assert asked[0] == ("some/pictures", {"split": "test", "revision": None})
    assert "path: some/pictures" in (tmp_path / "out" / "images.yaml").read_text()


def test_odd_names_survive(photos: Callable[..., Path], tmp_path: Path) -> None:
    odd = ["yes", "12", "it's: #1 [new] {é}", "日本 \u202f"]
    images = photos(dict.fromkeys(odd, 10), "a 'b' & c")
    assert init(tmp_path / "1 - x", images) == 0
    file, manifest = read(tmp_path / "1 - x")
    assert file.name == "1-x"
    assert [c.name for c in file.concepts] == sorted(odd)
    assert set(manifest.attribute("concept")) == set(odd)


@pytest.mark.parametrize(
    ("counts", "more", "said"),
    [
        ({}, [], "is no folder: name one that holds a folder of pictures for each concept"),
        ({".": 10}, [], "holds pictures, but not in folders: put those of each concept into a folder"),
        ({"plain": 12, "reddish": 1}, [], "'reddish' holds 1 picture: 10 or more are needed"),
        ({"plain": 12}, [], "is the only folder of pictures"),
        ({"random": 30}, [], "holds no pictures but random ones: add a folder for each concept"),
        ({"plain": 12, "reddish": 12, "random": 5}, [], "there are 5 random pictures: give 27 or more"),
        ({"plain/a": 12, "reddish/a": 12}, [], "'plain/a' is a folder inside the folder of a concept"),
        (
            {"plain/a": 12, "reddish/b": 12},
            ["--grouped"],
            "holds pictures of 1 groups (a), which count as one observation each",
        ),
        ({"plain": 12, "reddish": 12}, ["--model", "audits:nothing"], "has no function 'nothing'"),
        ({"plain": 12, "reddish": 12}, ["--model", "torchvision:resnet19"], "Close names: ['resnet18'"),
        ({"plain": 12, "reddish": 12}, ["--classes", "purze"], "no class 'purze'. Close names: ['purse'"),
        ({"plain": 12, "reddish": 12}, ["--layer", "mixx"], "no layer 'mixx'"),
        ({"plain": 12, "reddish": 12, "x": 10}, ["--matched"], ""),
    ],
)
def test_what_makes_no_audit_is_one_line_and_leaves_nothing_behind(
    counts: dict[str, int],
    more: list[str],
    said: str,
    photos: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = photos(counts)
    if not said:  # names that differ make no pairs
        for path in list((images / "x").iterdir()):
            path.rename(path.with_name(f"x{path.name}"))
        said = "'plain' and 'x' have 0 names of pictures in common"
    assert init(tmp_path / "out", images, *more) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_and_one_without_pictures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert init(tmp_path / "out", tmp_path / "empty") == 2
    assert "empty' holds no picture: put those of each concept" in capsys.readouterr().err


def test_unreadable_and_repeated_pictures_are_told_and_left_out_on_demand(
    photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photos({"plain": 12, "reddish": 12})
    whole = (images / "plain" / "IMG_0.png").read_bytes()
    (images / "plain" / "cut.png").write_bytes(whole[:60])
    (images / "plain" / "again.png").write_bytes(whole)
    assert init(tmp_path / "out", images) == 2
    error = capsys.readouterr().err
    assert "'plain/cut.png'" in error
    assert "leave such out by --skip-unreadable" in error
    assert init(tmp_path / "out", images, "--skip-unreadable") == 0
    printed = capsys.readouterr().out
    assert "Left out 'plain/cut.png': " in printed
    assert "Left out 'plain/again.png': the same picture as 'plain/IMG_0.png'." in printed
    (images / "reddish" / "plain.png").write_bytes(whole)
    assert init(tmp_path / "two", images, "--skip-unreadable") == 2
    assert "are the same picture: keep it in one of the two" in capsys.readouterr().err


def test_a_link_out_of_the_folder_and_a_name_no_manifest_takes_are_refused(
    photos: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photos({"plain": 12, "reddish": 12})
    paint(tmp_path / "secret", 0, 1)
    (images / "plain" / "link.png").symlink_to(tmp_path / "secret.png")
    assert init(tmp_path / "out", images) == 2
    assert "'plain/link.png' is a link out of its root" in capsys.readouterr().err
    (images / "plain" / "link.png").unlink()
    paint(images / "plain" / "a\\b", 0, 2)
    assert init(tmp_path / "out", images) == 2
    assert "holds signs that a manifest can't: rename the file" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = photos({"plain": 12, "reddish": 12})
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(draft_audit.os, "access", lambda _, mode: mode != os.W_OK)
    monkeypatch.setattr(draft_audit.loading, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert init(tmp_path / "out", images) == 2
    assert "no permission for" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "file").touch()
    assert init(tmp_path / "file" / "out", images) == 2
    assert "is not a folder; choose another place" in capsys.readouterr().err


# Which layers are read


class Tokens(nn.Module):
    """A tiny transformer: a class token, six blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 8, 4, 4)
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.blocks = nn.ModuleList(nn.Sequential(block, nn.Identity()) for _ in range(6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cut(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def test_the_ends_of_stages_are_found() -> None:
    def found(model: nn.Module, size: int = 64) -> tuple[str, ...]:
        return find_stages(model.eval(), torch.zeros(1, 3, size, size)).layers

    assert found(torchvision.models.resnet18()) == ("layer1", "layer2", "layer3", "layer4")
    assert found(torchvision.models.squeezenet1_1()) == (
        "features.1",
        "features.4",
        "features.7",
        "features",
    )
    assert found(Tokens(), 16) == ("blocks.0", "blocks.2", "blocks.3", "blocks.5")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    assert found(plain, 2) == ("0", "1", "2")


def test_maps_with_channels_last_are_pooled_as_such() -> None:
    swin = torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=7)
    found = find_stages(swin.eval(), torch.zeros(1, 3, 32, 32))
    assert found.pool == "mean_last"
    assert found.layers == ("features.1", "norm")


def test_a_model_of_one_layer_that_is_its_answer_has_no_stage() -> None:
    with pytest.raises(StageError, match=r"Linear has no layer .* 'probing layers' lists them"):
        find_stages(nn.Linear(4, 2), torch.zeros(1, 4))
