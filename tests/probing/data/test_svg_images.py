"""Vector drawings become the same pictures everywhere, and the second artist's set is matched as the first's."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from concepts.data.manifest import ChecksumError, Manifest
from concepts.data.manifest_check import check
from concepts.data.sources import ManifestError
from probing.data.images import ImageError, Preprocess
from probing.data.svg_images import VectorFiles, rendered

SQUARE = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 8 8">{}</svg>'
RED = SQUARE.format('<rect x="0" y="0" width="4" height="8" fill="#ff0000"/>').encode()


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


def test_a_drawing_is_drawn_at_the_size_asked_for_and_transparent_elsewhere():
    pixels = _pixels(rendered(RED, 16))
    assert pixels.shape == (16, 16, 4)
    assert (pixels[:, :8] == [255, 0, 0, 255]).all()
    assert (pixels[:, 8:, 3] == 0).all()


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<text>a</text>", "text, whose fonts differ"),
        ("<g><svg:tspan>a</svg:tspan></g>", "text, whose fonts differ"),
        ('<image href="file:///etc/passwd"/>', "refers to other files"),
        ("<image xlink:href = 'photo.png'/>", "refers to other files"),
        ("<style>@import 'a.css';</style>", "refers to other files"),
        ('<rect fill="url(other.svg#a)"/>', "refers to other files"),
        ("<rect", "cannot be drawn"),
    ],
)
def test_a_drawing_that_is_not_in_itself_is_refused(inside, message):
    with pytest.raises(ImageError, match=message):
        rendered(SQUARE.format(inside).encode(), 8)


def test_a_drawing_may_refer_to_its_own_parts():
    own = '<linearGradient id="g"><stop stop-color="#00ff00"/></linearGradient><rect width="8" height="8" fill="url(#g)"/>'
    assert _pixels(rendered(SQUARE.format(own).encode(), 8))[4, 4].tolist() == [0, 255, 0, 255]


def _listed(folder: Path, **changes: object) -> Path:
    (folder / "red.svg").write_bytes(RED)
    images = {
        "kind": "files",
        "columns": ["file", "sha256"],
        "render": 16,
        "rows": [["red.svg", hashlib.sha256(RED).hexdigest()]],
    }
    path = folder / "data.yaml"
    parts = {"name": "d", "licence": "none", "source": "a test", "images": images | changes}
    path.write_text(yaml.safe_dump(parts))
    return path


def test_checksums_are_of_the_drawing_and_not_of_the_picture(tmp_path):
    manifest = Manifest.load(_listed(tmp_path))
    assert isinstance(manifest.images, VectorFiles)
    plain = Preprocess(size=16, resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert manifest.examples(plain).load([0])[0, :, 8, 4].tolist() == [1, 0, 0]
    (tmp_path / "red.svg").write_bytes(RED.replace(b"ff0000", b"fe0000"))
    with pytest.raises(ChecksumError, match="1 changed"):
        Manifest.load(tmp_path / "data.yaml")


def test_drawings_need_a_size_and_pictures_take_none(tmp_path):
    with pytest.raises(ManifestError, match=r"'red\.svg' is a drawing without a size: give 'render'"):
        Manifest.load(_listed(tmp_path, render=None))
    (tmp_path / "a.png").write_bytes(rendered(RED, 8))
    rows = [["a.png", hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()]]
    with pytest.raises(ManifestError, match=r"'render' is for SVG drawings, and 'a\.png' is none"):
        Manifest.load(_listed(tmp_path, rows=rows))


def test_openmoji_has_the_same_roles_matched_in_the_same_way(repository):
    folder = repository / "data_manifests"
    ours, other = (Manifest.load(folder / f"{n}_people.yaml") for n in ("openmoji", "twemoji"))
    for name in ("role", "gender", "tone"):
        assert ours.attribute(name) == other.attribute(name)
    assert ours.pairs("gender", "woman", "man") == other.pairs("gender", "woman", "man")
    women, men, roles = ours.pairs("gender", "woman", "man")
    assert len(women) == 150
    assert len(set(roles)) == 25
    ids = ours.examples(Preprocess()).ids
    assert not [r for a, b, r in zip(women, men, roles, strict=True) if ids[a] == ids[b]]
    again = Manifest.load(folder / "openmoji_people.yaml").examples(Preprocess()).ids
    assert again == ids


def test_every_figure_of_openmoji_can_be_read(repository):
    found = check(repository / "data_manifests" / "openmoji_people.yaml")
    assert [f.message for f in found if f.level == "error"] == []
