"""`probing maximize`: what it saves, what it makes again, how it refuses; sheets, pages and dreams."""

import csv
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from concepts.cli import app
from concepts.tcav.dream import cav_objective, dream, dream_figure
from probing.data.examples import TensorExamples
from probing.data.images import Preprocess
from probing.maximization import (
    Channel,
    Direction,
    Maximization,
    Maximize,
    Space,
    TensorDirection,
    maximize,
    presets,
)
from probing.maximization.unit_page import SheetError, unit_page
from probing.models.loading import LoadedModel
from probing.results import figures
from probing.store.store import ActivationStore

MODEL = "test_maximize_command:pictured"
TRANSFORM = Preprocess(size=32, resize=None, channels="grey", mean=(0.4,), std=(0.25,))


def pictured() -> LoadedModel:
    return LoadedModel(nets.seeded(nets.ConvNet()), TRANSFORM, ("ant", "bee", "school bus"))


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep figures from being rendered, which takes most of a run."""

    def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
        stem.with_suffix(".png").touch()
        return stem.with_suffix(".png"), stem.with_suffix(".pdf")

    monkeypatch.setattr(figures, "save_figure", save)


def run(*arguments: str) -> int:
    return app.main(["maximize", MODEL, "--steps", "3", *arguments])


def test_units_are_saved_as_pictures_results_and_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("--layer", "features.2", "--unit", "0:3", "--out", str(out)) == 0
    assert "Made 3 images. " in capsys.readouterr().out
    assert {p.name for p in out.glob("*.png")} == {f"features.2_{k}.png" for k in range(3)} | {"contact.png"}
    with Image.open(out / "features.2_0.png") as shown:
        assert shown.size == (26, 26)  # views are 32 px, with their margin
    found = Maximization.load(out)
    assert found.names == ("features.2:0", "features.2:1", "features.2:2")
    rows = list(csv.reader((out / "traces.csv").read_text().splitlines()))
    assert rows[0] == ["step", *found.names]
    assert [float(x) for x in rows[2][1:]] == pytest.approx(found.trace[:, 1].tolist())
    alone = replace(presets.FOURIER, steps=3)(pictured(), Channel("features.2", 1))
    assert torch.allclose(found.images[1], alone.images[0], atol=1e-4)


def test_what_was_made_is_not_made_again_unless_something_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["--layer", "features.2", "--out", str(tmp_path)]
    run("--unit", "0:2", *there)
    before = Maximization.load(tmp_path)
    capsys.readouterr()
    run("--unit", "1,0,3", *there)
    assert "Made 1 images, 2 were there." in capsys.readouterr().out
    after = Maximization.load(tmp_path)
    assert after.names == ("features.2:1", "features.2:0", "features.2:3")
    assert torch.equal(after.images[:2], before.images[[1, 0]])
    run("--unit", "0", "--seed", "1", *there)
    assert "Made 1 images. " in capsys.readouterr().out


def test_classes_are_raised_by_name_and_by_other_presets(tmp_path: Path) -> None:
    assert run("--target", "school bus", "--target", "0", "--preset", "A", "--out", str(tmp_path)) == 0
    assert {p.name for p in tmp_path.glob("*.png")} == {"school_bus.png", "ant.png", "contact.png"}
    assert Maximization.load(tmp_path).images.shape == (2, 1, 32, 32)


def test_images_are_placed_among_pictures_of_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(6):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    out = tmp_path / "out"
    arguments = [
        "--target",
        "ant",
        "--data",
        str(tmp_path / "data"),
        "--size",
        "32",
        "--preset",
        "C",
    ]
    assert run(*arguments, "--out", str(out)) == 0
    beside = Maximization.load(out).beside
    assert beside is not None
    assert beside.top.shape == (1, 5)


def test_a_unit_without_gradient_is_named_and_has_no_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pictured()
    with torch.no_grad():
        loaded.model.get_submodule("features.2").bias[:2] = torch.tensor([9.0, -1e5])  # type: ignore[index]
    monkeypatch.setattr("test_maximize_command.pictured", lambda: loaded)
    arguments = ["--layer", "features.3", "--unit", "0:2", "--steps", "20", "--out", str(tmp_path)]
    assert run(*arguments) == 0
    assert "features.3:1 has no gradient at any step" in capsys.readouterr().err
    assert not (tmp_path / "features.3_1.png").exists()
    assert run("--layer", "features.3", "--unit", "1", "--steps", "20", "--out", str(tmp_path / "b")) == 2
    assert "is zero at every step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --layer with --unit, or --target"),
        (["--layer", "features.2"], "give --layer with --unit, or --target"),
        (["--layer", "features.2", "--unit", "0", "--target", "ant"], "or --target"),
        (
            ["--layer", "features.2", "--unit", "5:2"],
            "--unit takes 7, or 3,7,9, or 0:64, got '5:2'",
        ),
        (["--layer", "features.2", "--unit", "x"], "got 'x'"),
        (
            ["--layer", "features.2", "--unit", "5"],
            "unit 5 is out of range: layer 'features.2' has 5",
        ),
        (["--target", "cow"], "no class 'cow'"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", str(tmp_path)) == 2
    assert message in capsys.readouterr().err


def placed() -> tuple[Maximization, TensorExamples]:
    pixels = torch.rand(9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    data = TensorExamples(Space.of(TRANSFORM).encode(pixels))
    goals = [Channel("features.2", k) for k in range(2)]
    settings = Maximize(steps=3, transforms=())
    return settings(pictured(), goals, store=ActivationStore(), examples=data), data


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def test_a_page_shows_image_label_top_and_nearest_data() -> None:
    found, data = placed()
    page = unit_page(found, 1, data, label="stripes")
    assert len(page.axes[0].images) == 11
    assert "Synthetic image of features.2:1, labelled 'stripes'" in texts(page)
    assert "Highest of 9 examples" in texts(page)
    assert "cosine" in texts(page)
    assert len(found.plot().axes[0].images) == 2
    with pytest.raises(SheetError, match="no place among data"):
        unit_page(maximize(pictured(), Channel("features.2", 0), steps=2), 0, data)
    with pytest.raises(SheetError, match="got 1: pass the same"):
        unit_page(found, 0, TensorExamples(torch.zeros(1, 1, 32, 32)))


def test_parts_of_a_result_are_the_images_they_name() -> None:
    found, _ = placed()
    part = found.part([1])
    assert part.names == ("features.2:1",)
    assert torch.equal(part.images[0], found.images[1])
    assert part.beside is not None
    assert found.beside is not None
    assert torch.equal(part.beside.top[0], found.beside.top[1])


def test_the_dream_of_a_cav_moves_the_layer_along_it_and_its_opposite_away() -> None:
    generator = torch.Generator().manual_seed(0)
    cavs = torch.randn(3, 5, generator=generator) * 0.2 + torch.tensor([1.0, -1, 0.5, 2, 0])
    found = dream(pictured(), "features.2", list(cavs), "dots", settings=Maximize(steps=60), cosine_power=0.0)
    assert found.names == ("features.2 dots", "features.2 not dots")
    mean = torch.nn.functional.normalize(cavs, dim=1).mean(0)
    flat = torch.zeros_like(found.images[:1])
    rows = pictured().model.get_submodule("features")[:3](torch.cat([flat, found.images]))
    along = torch.einsum("nchw,c->n", rows.detach(), mean)
    assert along[1] > along[0] > along[2]
    shown = dream_figure(found, "dots", [Image.new("RGB", (4, 4))] * 9)
    assert len(shown.axes[0].images) == 2 + 6
    assert "toward dots" in texts(shown)


def test_a_cav_of_whole_maps_becomes_a_direction_of_whole_maps() -> None:
    assert isinstance(cav_objective("a", torch.ones(4), "x"), Direction)
    flattened = cav_objective("a", torch.ones(4, 2, 2), "x")
    assert isinstance(flattened, TensorDirection)
    assert float(flattened.tensor.norm()) == pytest.approx(1)


def test_images_too_small_to_have_a_gradient_are_said_to_be_and_no_folder_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(net: nets.ConvNet) -> nets.ConvNet:
        torch.nn.init.zeros_(net.features[0].weight)
        return net

    loaded = LoadedModel(dead(nets.seeded(nets.ConvNet())), TRANSFORM)
    monkeypatch.setattr("probing.models.loading.load", lambda *_, **__: loaded)
    out = tmp_path / "new" / "out"
    arguments = ("--layer", "features.2", "--unit", "0", "--out", str(out), "--size")
    assert run(*arguments, "1") == 2
    assert (
        "images of 1 x 1 pixels may be too small for a model made for 32: give a larger side by --size."
        in capsys.readouterr().err
    )
    assert run(*arguments, "32") == 2
    assert "the unit is dead" in capsys.readouterr().err
    assert not out.parent.exists()
