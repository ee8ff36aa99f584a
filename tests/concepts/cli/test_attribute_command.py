"""`probing attribute`: what it saves, prints and draws, and how it refuses."""

import json
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from concepts.cli import app, attribute as command
from probing.attribution import METHODS
from probing.attribution.base import Attribution
from probing.attribution.perturbation.lime import TextAttribution
from probing.data.images import Preprocess
from probing.models.loading import LoadedModel
from probing.models.scores import Score
from probing.results import figures, heatmaps
from probing.results.result import rebuild

MODEL, PREDICT = "test_attribute_command:pictured", "test_attribute_command:predict"
TRANSFORM = Preprocess(size=6, resize=None, channels="grey", mean=(0.4,), std=(0.25,))
NAMES = ("ant", "bee", "cat")


def pictured() -> LoadedModel:
    return LoadedModel(nets.seeded(nets.ConvNet()), TRANSFORM, NAMES)


def unnamed() -> LoadedModel:
    return LoadedModel(nets.seeded(nets.ConvNet()), TRANSFORM)


def flat() -> LoadedModel:
    return LoadedModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)), TRANSFORM)


class Several(torch.nn.Module):
    """Returns a map besides its class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.seeded(nets.ConvNet())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"map": x, "classes": self.net(x)}


def several() -> LoadedModel:
    return LoadedModel(Several().eval(), TRANSFORM, NAMES)


def predict(texts: list[str]) -> list[list[float]]:
    odds = [float(2 * t.count("good") - t.count("bad")) for t in texts]
    return [[-o, o] for o in odds]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two pictures, one in a folder and with a name that hold spaces."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "first.png", tmp_path / "a folder" / "my second.png"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Figures by the name they would be saved under, which takes most of a run."""
    kept: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path) -> None:
        kept[stem.name] = figure

    monkeypatch.setattr(figures, "save_figure", keep)
    return kept


def run(*arguments: str | Path) -> int:
    return app.main(["attribute", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Return what a command that is refused says: one line on stderr."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


# Pictures


def test_every_picture_and_method_is_saved_drawn_and_printed(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "an out"
    assert run(MODEL, *photos, "--method", "ig", "--method", "gradcam", "--out", out) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if ".png" in line]
    assert [line.split("  ")[0] for line in lines] == 2 * ["first.png", "my second.png"]
    assert lines[0].split()[1] == "ig"
    assert "gap " in lines[0]
    assert "features" in lines[2]
    for name in ("first", "my second"):
        for method in ("ig", "gradcam"):
            assert isinstance(Attribution.load(out / name / method), Attribution)
            for kind in ("png", "pdf"):
                assert (out / name / f"{method}.{kind}").stat().st_size > 1000
    assert (out / "comparison.png").exists()
    assert (out / "comparison.pdf").exists()


def test_the_results_are_those_of_the_method_at_the_top_class(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    assert run(MODEL, *photos, "--method", "saliency", "--out", tmp_path / "out") == 0
    inputs = torch.stack([TRANSFORM(Image.open(p).convert("RGB")) for p in photos])
    net = pictured().model
    tops = net(inputs).argmax(1)
    expected = METHODS["saliency"]()(Score(net, tops), inputs)
    for i, name in enumerate(("first", "my second")):
        found = Attribution.load(tmp_path / "out" / name / "saliency")
        torch.testing.assert_close(found.values[0], expected.values[i])
        assert found.target == (int(tops[i]),)
    assert len(drawn) == 2


@pytest.mark.parametrize(("target", "number"), [("bee", 1), ("BEE", 1), ("2", 2)])
def test_a_target_is_named_or_numbered(
    target: str, number: int, photos: list[str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    out = tmp_path / "out"
    assert run(MODEL, photos[0], "--method", "saliency", "--target", target, "--out", out) == 0
    assert Attribution.load(out / "first" / "saliency").target == (number,)
    labels = [t.get_text() for t in drawn["saliency"].axes[0].texts]
    assert any(t.startswith(f"first\n{NAMES[number]}\nlogit ") for t in labels)


def test_a_second_run_replaces_the_first_by_the_same(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (MODEL, photos[0], "--method", "smoothgrad", "--out", tmp_path / "out")
    saved = []
    for _ in range(2):
        assert run(*arguments) == 0
        folder = tmp_path / "out"
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "result.json")
        saved.append({p: p.read_bytes() for p in files})
        saved[-1][Path("printed")] = capsys.readouterr().out.encode()
    assert saved[0] == saved[1]


def test_pictures_of_one_name_do_not_overwrite_each_other(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    twin = tmp_path / "a folder" / "first.png"
    twin.write_bytes(Path(photos[1]).read_bytes())
    assert run(MODEL, photos[0], twin, "--method", "saliency", "--out", tmp_path / "out") == 0
    first, second = (Attribution.load(tmp_path / "out" / n / "saliency") for n in ("first", "first-2"))
    assert not torch.equal(first.values, second.values)
    assert "comparison" in drawn


def test_the_comparison_shows_all_methods_beside_an_edge_detector(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    assert run(MODEL, *photos, "--method", "ig", "--method", "saliency", "--out", tmp_path, "--target", "cat") == 0
    said = [t.get_text() for t in drawn["comparison"].axes[0].texts]
    assert {"input", "ig", "saliency", "edges"} <= set(said)
    assert any(t.startswith("my second\ncat\nlogit ") for t in said)
    assert any("gap " in t for t in said)
    assert len(drawn["comparison"].axes[0].images) == 2 * 4 + 2
    assert "over the input" in [t.get_text() for t in drawn["ig"].axes[0].texts]


def test_the_picture_that_is_shown_is_the_one_before_normalising() -> None:
    image = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6) * 7)
    row = command._as_picture(TRANSFORM(image), TRANSFORM)
    assert row.shape == (3, 6, 6)
    torch.testing.assert_close(row[0] * 255, torch.arange(36.0).view(6, 6) * 7)
    bgr = Preprocess(size=6, resize=None, channels="bgr", mean=(9.0,) * 3, std=(2.0,) * 3, maximum=255)
    red = Image.new("RGB", (6, 6), (255, 0, 0))
    assert command._as_picture(bgr(red), bgr)[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_channels_are_drawn_as_asked(photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    whole = heatmaps.reduce_channels

    def watch(maps: torch.Tensor, how: heatmaps.Channels = "sum") -> torch.Tensor:
        asked.append(how)
        return whole(maps, how)

    monkeypatch.setattr("probing.attribution.base.reduce_channels", watch)
    monkeypatch.setattr(figures, "save_figure", lambda *_: None)
    assert run(MODEL, photos[0], "--method", "ig", "--channels", "l2", "--out", tmp_path) == 0
    assert set(asked) == {"l2"}


def test_expected_gradients_take_a_background(photos: list[str], tmp_path: Path, drawn: dict[str, Figure]) -> None:
    folder = Path(photos[1]).parent
    given = ("--method", "expected_gradients", "--background", folder, "--out", tmp_path / "out")
    assert run(MODEL, photos[0], *given) == 0
    found = Attribution.load(tmp_path / "out" / "first" / "expected_gradients")
    assert "gap_standard_error" in found.diagnostics
    assert "expected_gradients" in drawn


@pytest.mark.parametrize("gaps", [[torch.nan, 0.001], [0.001, torch.nan]])
def test_a_gap_of_nan_is_not_small(gaps: list[float]) -> None:
    said = command._gap_in_words(METHODS["ig"](), gaps)
    assert said == "of 1 of 2 maps it is unknown by how much they miss the score's change."


def test_the_gap_of_a_method_without_a_number_of_steps_to_choose_is_told_alone() -> None:
    for name in ("deeplift", "layer_conductance"):
        said = command._gap_in_words(METHODS[name](), [0.001, 0.02])
        assert said == "maps miss at most 2.0% of the score's change from the baseline."


@pytest.mark.parametrize(
    ("given", "steps", "said"),
    [
        ([], 50, "with 50 steps, maps miss at most"),
        (["--steps", "3"], 3, "with 3 steps, maps miss at most"),
        (["--steps", "auto"], None, "maps miss at most"),
    ],
)
def test_steps_are_50_another_number_or_as_many_as_explain_the_score_and_the_gap_is_told(
    given: list[str],
    steps: int | None,
    said: str,
    photos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    drawn: dict[str, Figure],
) -> None:
    names = ("--method", "ig", "--method", "layer_ig")
    assert run(MODEL, photos[0], *names, *given, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    for name in ("ig", "layer_ig"):
        facts = Attribution.load(tmp_path / "first" / name).diagnostics
        gap = float(facts["relative_gap"])
        (line,) = [ln for ln in printed.splitlines() if ln.startswith(f"{name}: ")]
        assert f"{said}" in line
        assert f"{gap:.1%} of the score's change" in line
        assert ("--steps auto" in line) == (steps is not None and gap > 0.01)
        assert facts["steps"].item() == steps or steps is None
        assert ("converged" in facts) == (steps is None)
        if steps is None:
            assert gap <= 0.01


def test_steps_are_of_every_method_that_follows_a_path_and_else_its_own(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    own = {"guided_ig": 200, "blur_ig": 100, "layer_conductance": 50, "internal_influence": 50}
    names = [part for name in own for part in ("--method", name)]
    for given, expected in (([], own), (["--steps", "3"], dict.fromkeys(own, 3))):
        out = tmp_path / str(len(given))
        assert run(MODEL, photos[0], *names, *given, "--out", out) == 0
        for name, steps in expected.items():
            made = rebuild(Attribution.load(out / "first" / name).provenance.method)
            assert made.steps == steps  # type: ignore[attr-defined]


def test_a_folder_stands_for_all_pictures_below_it_and_they_are_counted(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    below = Path(photos[1]).parent / "B \u00fc\N{LEOPARD}"
    below.mkdir()
    for name in ("z.png", "a.jpg", "notes.txt"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(below / name, format="png")
    out, given = tmp_path / "out", ("--method", "saliency")
    mixture = (photos[0], Path(photos[1]).parent, photos[1])
    assert run(MODEL, *mixture, *given, "--out", out) == 0
    printed = capsys.readouterr()
    assert but_for_times(printed.err) == ["4 pictures."]
    lines = [ln.split("  ")[0] for ln in printed.out.splitlines() if " saliency " in ln]
    assert lines == ["first.png", "a.jpg", "z.png", "my second.png"]
    assert {p.name for p in out.iterdir()} == {"first", "a", "z", "my second"}
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in refused(capsys, MODEL, tmp_path / "empty", *given, "--out", out)


def test_many_pictures_are_compared_in_several_figures(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_A_PAGE", 1)
    given = ("--method", "saliency", "--out", tmp_path / "out")
    assert run(MODEL, *photos, *given) == 0
    assert {"comparison-1", "comparison-2"} <= set(drawn)
    found = [Attribution.load(tmp_path / "out" / n / "saliency") for n in ("first", "my second")]
    assert not torch.equal(found[0].values, found[1].values)


def test_a_wrong_name_of_a_picture_is_told_with_near_ones_before_a_model_is_loaded(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--method", "saliency", "--out", tmp_path / "out")
    wrong = photos[0].replace("first", "frist")
    said = refused(capsys, "no:model", wrong, *given)
    assert "there is no" in said
    assert "Close names: ['first.png']" in said
    assert not (tmp_path / "out").exists()


def test_the_class_scores_of_an_output_of_several_parts_are_named(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    model, given = "test_attribute_command:several", ("--method", "saliency", "--out", tmp_path)
    said = refused(capsys, model, photos[0], *given)
    assert "a mapping with keys ['map', 'classes']: name the class scores by --output." in said
    said = refused(capsys, model, photos[0], "--target", "bee", *given)
    assert "--method saliency: the model returns a mapping" in said
    assert "name the class scores by --output." in said
    assert run(model, photos[0], "--output", "classes", *given) == 0
    found = Attribution.load(tmp_path / "first" / "saliency")
    assert run(MODEL, photos[0], "--method", "saliency", "--out", tmp_path / "whole") == 0
    whole = Attribution.load(tmp_path / "whole" / "first" / "saliency")
    torch.testing.assert_close(found.values, whole.values)


def test_a_network_without_attention_has_no_rollout(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(MODEL, photos[0], "--method", "rollout", "--out", tmp_path) == 2
    assert "--method rollout: no attention weights were seen in" in capsys.readouterr().err.replace("\n", " ")


def but_for_times(printed: str) -> list[str]:
    """Return the lines that a machine says however quick it is."""
    lines = printed.splitlines()
    return [line for line in lines if ", about " not in line and "still at work" not in line]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"expected_gradients"}))
def test_every_method_can_be_asked_for_by_its_name(
    name: str,
    photos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    drawn: dict[str, Figure],
) -> None:
    status = run(MODEL, photos[0], "--method", name, "--out", tmp_path)
    assert status == 0
    assert json.loads((tmp_path / "first" / name / "result.json").read_text(encoding="utf-8"))
    assert set(drawn) == {name, "comparison"}
    assert but_for_times(capsys.readouterr().err) == []


# Texts


def test_a_text_is_explained_saved_drawn_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "an out"
    assert run(PREDICT, "--text", "a <good> day, not bad", "--method", "lime", "--out", out) == 0
    printed = capsys.readouterr().out
    words = [line.split()[0] for line in printed.splitlines()[1:3]]
    assert words == ["good", "bad"]  # the largest first
    found = TextAttribution.load(out / "lime")
    given = f"{found.diagnostics['prediction']:.4g}, R\N{SUPERSCRIPT TWO} 1.00 over "
    assert f"class 1, score 1; the linear model gives {given}" in printed
    assert found.target == 1
    page = (out / "lime.html").read_text(encoding="utf-8")
    assert "&lt;" in page
    assert "<good>" not in page
    assert (out / "lime.png").exists()
    assert (out / "lime.pdf").exists()


def test_the_class_of_a_text_is_numbered(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    given = ("--method", "lime", "--target", "0", "--out", tmp_path)
    assert run(PREDICT, "--text", "good and bad", *given) == 0
    assert TextAttribution.load(tmp_path / "lime").target == 0
    assert set(drawn) == {"lime"}


# Refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "gradcamm"], "there is no method 'gradcamm'; methods: saliency, "),
        (["--method", "ig", "--method", "ig"], "--method ig is given twice."),
        (["--method", "expected_gradients"], "expected_gradients needs --background DIR: pictures"),
        (["--method", "ig", "--background", "x"], "--background is for expected_gradients"),
        (["--method", "ig", "--target", "cow"], "the model has no class 'cow'. Close names: ['ant'"),
        (["--method", "ig", "--target", "3"], "class 3 is out of range: the model has classes 0 to 2."),
        (["--method", "ig", "--weights", "no.pt"], "there is no weights file 'no.pt'"),
        (["--method", "ig", "--steps", "some"], "--steps takes a number from 1, or auto, got 'some'."),
        (["--method", "ig", "--steps", "0"], "--steps takes a number from 1, or auto, got '0'."),
        (["--method", "lime", "--steps", "9"], "--steps is for ig, guided_ig, blur_ig, xrai, layer_ig, "),
        (["--method", "ig", "--method", "blur_ig", "--steps", "auto"], "blur_ig takes a number of --steps, not auto."),
        (["--method", "ig", "--channels", "all"], "'all' is not one of"),
        (["--method", "ig", "missing.png"], "there is no 'missing.png'; check the path."),
        ([], "Missing option '--method'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    said: str,
    photos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refused(capsys, MODEL, photos[0], *arguments, "--out", tmp_path / "out")


def test_a_picture_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "a b.png"
    broken.write_text("no picture")
    said = refused(capsys, MODEL, broken, "--method", "ig", "--out", tmp_path / "out")
    assert "a b.png" in said
    assert "it is no picture of a known format" in said


def test_a_class_number_out_of_range_is_told_where_classes_have_no_names(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--method", "ig", "--target", "7", "--out", tmp_path / "out")
    said = refused(capsys, "test_attribute_command:unnamed", photos[0], *given)
    assert "class 7 is out of range: the model has 3 classes" in said


def test_a_method_that_refuses_a_network_is_named(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--method", "gradcam", "--out", tmp_path / "out")
    said = refused(capsys, "test_attribute_command:flat", photos[0], *given)
    assert "--method gradcam: Sequential has no convolution" in said


def test_an_out_that_is_a_file_is_told_before_the_model_is_loaded(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    said = refused(capsys, "no:model", photos[0], "--method", "ig", "--out", tmp_path / "taken")
    assert "taken' is there already" in said


def test_pictures_or_a_text_are_needed_and_not_both(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--method", "lime", "--out", tmp_path / "out")
    assert "give picture files or folders after MODEL, or a text" in refused(capsys, MODEL, *out)
    said = refused(capsys, PREDICT, photos[0], "--text", "a b", *out)
    assert "--text takes no pictures, --weights, --background, --steps or --output" in said


@pytest.mark.parametrize(
    ("model", "text", "arguments", "said"),
    [
        (PREDICT, "good bad", ["--method", "ig"], "there is no method 'ig'; methods: lime."),
        (PREDICT, "good bad", ["--method", "lime", "--target", "fine"], "a class's number or top, got 'fine'"),
        (PREDICT, "good bad", ["--method", "lime", "--target", "5"], "class 5 is out of range"),
        (PREDICT, "", ["--method", "lime"], "holds no word"),
        (PREDICT, "neither nor", ["--method", "lime"], "does the model know any of its words?"),
        ("test_attribute_command:none", "a b", ["--method", "lime"], "has no function 'none'"),
        ("test_attribute_command:MODEL", "a b", ["--method", "lime"], "is no function but a str"),
        ("no_such_module:f", "a b", ["--method", "lime"], "there is no module 'no_such_module'"),
        ("predict", "a b", ["--method", "lime"], "'predict' names no function: write package.module:function."),
    ],
)
def test_texts_that_cannot_be_explained_are_told_in_one_line(
    model: str,
    text: str,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refused(capsys, model, "--text", text, *arguments, "--out", tmp_path / "out")


def test_a_picture_that_a_method_can_t_explain_is_named_and_what_is_done_is_kept(
    photos: list[str], tmp_path: Path, drawn: dict[str, Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    black = tmp_path / "black.png"
    Image.new("RGB", (24, 24)).save(black)
    names = ("--method", "saliency", "--method", "lime")
    assert run(MODEL, photos[0], black, *names, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        f"Error: {str(black)!r}, --method lime: every part looks the same when it is hidden, so hiding changes nothing."
    )
    for done in ("first/saliency", "black/saliency", "first/lime"):
        assert Attribution.load(tmp_path / "out" / done).values.any()
    assert not (tmp_path / "out" / "black" / "lime").exists()
