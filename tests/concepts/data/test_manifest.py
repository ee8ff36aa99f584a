"""Manifests: data only, checked against what is there, and refused in one sentence."""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from concepts.data import yaml_schema
from concepts.data.manifest import ChecksumError, Manifest, ManifestFile
from concepts.data.manifest_check import Finding, check
from concepts.data.sources import ManifestError
from concepts.data.yaml_schema import Schema, SchemaError, read
from probing.core.packages import PackageMissingError, PathEscapeError
from probing.data.examples import ChangedExampleError, ExampleError
from probing.data.images import ImageError, Preprocess

SMALL = Preprocess(size=8, resize=8)
COLUMNS = ["file", "sha256", "role", "gender"]
ROLES, GENDERS = ("cook", "judge", "pilot"), ("man", "woman")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8))


def checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(folder: Path, images: dict[str, object], **more: object) -> Path:
    text = {"name": "tiny", "licence": "CC0-1.0", "source": "made here", "images": images, **more}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture
def table(tmp_path: Path) -> list[list[str]]:
    """Make the six figures of three roles and two genders."""
    (tmp_path / "images").mkdir()
    rows = []
    for i, (role, gender) in enumerate((r, g) for r in ROLES for g in GENDERS):
        file = tmp_path / "images" / f"{role}-{gender}.png"
        picture(i).save(file)
        rows.append([file.name, checksum(file), role, gender])
    return rows


@pytest.fixture
def listed(tmp_path: Path, table: list[list[str]]) -> Callable[..., Path]:
    """Return a writer of a manifest of those figures."""

    def writer(rows: list[list[str]] = table, columns: list[str] = COLUMNS, **more: object) -> Path:
        images = {"kind": "files", "root": "images", "columns": columns, "rows": rows}
        return write(tmp_path, images, **more)

    return writer


MATCHED = [{"vary": "gender", "within": ["role"], "cluster": "role"}]

# Groups and pairs


def test_groups_follow_attributes_and_explicit_lists(listed: Callable[..., Path]) -> None:
    manifest = Manifest.load(
        listed(
            groups={
                "women": {"where": {"gender": "woman"}},
                "two roles": {"where": {"role": ["cook", "pilot"]}},
                "not pilots": {"without": {"role": "pilot"}, "where": {"gender": "man"}},
                "by name": {"files": ["judge-man.png", "cook-woman.png"]},
                "all": {},
            }
        )
    )
    assert len(manifest) == 6
    assert manifest.group("women") == (1, 3, 5)
    assert manifest.group("two roles") == (0, 1, 4, 5)
    assert manifest.group("not pilots") == (0, 2)
    assert manifest.group("by name") == (1, 2)
    assert manifest.group("all") == tuple(range(6))
    assert manifest.attribute("role") == ("cook", "cook", "judge", "judge", "pilot", "pilot")
    assert manifest.select({"gender": "man"}, without={"role": ["cook", "judge"]}) == (4,)


def test_pairs_differ_in_one_attribute_and_agree_in_the_others(listed: Callable[..., Path]) -> None:
    manifest = Manifest.load(listed(matched=MATCHED))
    assert manifest.pairs("gender", "woman", "man") == ((1, 3, 5), (0, 2, 4), ROLES)
    first, second, cluster = manifest.pairs("gender", "man", "woman")
    assert (first, second, cluster) == ((0, 2, 4), (1, 3, 5), ROLES)


def test_pairs_without_a_partner_are_left_out_and_counted_by_check(
    listed: Callable[..., Path], table: list[list[str]]
) -> None:
    path = listed(rows=table[1:], matched=MATCHED)
    assert Manifest.load(path).pairs("gender", "woman", "man") == (
        (2, 4),
        (1, 3),
        ("judge", "pilot"),
    )
    assert check(path) == [Finding("warning", "1 of 3 sets matched over 'gender' lack one of its 2 values.")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"groups": {"g": {"where": {"gendre": "man"}}}},
            r"have no attribute 'gendre', only \['role', 'gender'\]",
        ),
        (
            {"groups": {"g": {"where": {"gender": "men"}}}},
            "no image of 'tiny' has gender 'men'; values: man, woman",
        ),
        (
            {"groups": {"g": {"files": ["x.png"]}}},
            "group 'g' lists 'x.png', which is none of the images",
        ),
        ({"groups": {"g": {"files": []}}}, "the group 'g' of 'tiny' holds no image"),
        (
            {"matched": [{"vary": "gender", "within": ["rol"], "cluster": "rol"}]},
            "have no attribute 'rol'",
        ),
        (
            {"matched": [{"vary": "gender", "within": ["role"], "cluster": "gender"}]},
            "must agree in their cluster",
        ),
        (
            {"matched": [{"vary": "role", "within": ["role"], "cluster": "role"}]},
            "and not in 'role' itself",
        ),
    ],
)
def test_groups_and_matches_that_do_not_fit_the_images_are_refused(
    listed: Callable[..., Path], more: dict[str, object], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.load(listed(**more))


def test_matched_images_must_be_unique(listed: Callable[..., Path], table: list[list[str]]) -> None:
    table[2][2] = "cook"
    with pytest.raises(ManifestError, match=r"'cook-man\.png' and 'judge-man\.png' agree in \['gender', 'role'\]"):
        Manifest.load(listed(matched=MATCHED))


def test_groups_and_pairs_that_are_not_there_are_refused(listed: Callable[..., Path]) -> None:
    manifest = Manifest.load(listed(matched=MATCHED, groups={"all": {}}))
    with pytest.raises(ManifestError, match=r"no group 'women'; it has \['all'\]"):
        manifest.group("women")
    with pytest.raises(ManifestError, match=r"matches no images that vary in 'role', only in \['gender'\]"):
        manifest.pairs("role", "cook", "judge")
    with pytest.raises(ManifestError, match="no image of 'tiny' has gender 'person'"):
        manifest.pairs("gender", "person", "man")


# Examples


def test_examples_are_the_items_in_order_on_the_manifests_background(
    listed: Callable[..., Path], tmp_path: Path, table: list[list[str]]
) -> None:
    clear = picture(0)
    clear.putalpha(0)
    clear.save(tmp_path / "images" / table[0][0])
    table[0][1] = checksum(tmp_path / "images" / table[0][0])
    examples = Manifest.load(listed(background=[255, 0, 0])).examples(SMALL)
    red = SMALL(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert torch.equal(examples.load([0])[0], red)
    assert torch.equal(examples.load([3])[0], SMALL(picture(3)))
    assert examples.ids != Manifest.load(listed()).examples(SMALL).ids


def test_unreadable_images_are_left_out_on_demand_and_all_indices_follow(
    listed: Callable[..., Path], tmp_path: Path, table: list[list[str]]
) -> None:
    (tmp_path / "images" / table[2][0]).write_bytes(b"not a picture")
    table[2][1] = checksum(tmp_path / "images" / table[2][0])
    path = listed(matched=MATCHED, groups={"judges": {"files": ["judge-man.png", "judge-woman.png"]}})
    with pytest.raises(ImageError, match=r"judge-man\.png': it is no picture of a known format"):
        Manifest.load(path).examples(SMALL)
    manifest = Manifest.load(path, on_error="skip")
    assert [s.name for s in manifest.skipped] == ["judge-man.png"]
    assert manifest.group("judges") == (2,)
    assert manifest.pairs("gender", "woman", "man") == ((1, 4), (0, 3), ("cook", "pilot"))
    assert torch.equal(manifest.examples(SMALL).load([2])[0], SMALL(picture(3)))
    assert [f.level for f in check(path)] == ["error"]
    assert "'judge-man.png': it is no picture" in check(path)[0].message


def test_a_manifest_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    rows = [["x.png", checksum(tmp_path / "x.png")]]
    path = write(tmp_path, {"kind": "files", "columns": ["file", "sha256"], "rows": rows})
    with pytest.raises(ManifestError, match="none of the 1 images"):
        Manifest.load(path, on_error="skip")


# Checksums


def test_missing_and_changed_images_are_named(listed: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "images" / "cook-man.png").unlink()
    picture(99).save(tmp_path / "images" / "pilot-man.png")
    message = r"of the 6 images of .*, 1 missing \(cook-man\.png\) and 1 changed \(pilot-man\.png\): restore"
    with pytest.raises(ChecksumError, match=message):
        Manifest.load(listed())
    with pytest.raises(ChecksumError, match="1 missing"):
        Manifest.load(listed(), on_error="skip")
    said = [f.message for f in check(listed())]
    assert said[0] == "'cook-man.png' is missing: put the file back, or take its row out."
    new = checksum(tmp_path / "images" / "pilot-man.png")
    assert said[1].startswith("'pilot-man.png' has changed, its checksum is not ")
    assert said[1].endswith(f"put the old file back, or write {new} if the change is meant.")
    assert len(said) == 2


def test_check_tells_all_that_is_wrong_in_one_go(
    listed: Callable[..., Path], tmp_path: Path, table: list[list[str]]
) -> None:
    images, sha = tmp_path / "images", table[0][1]
    table[0][1] = ""
    (images / table[1][0]).unlink()
    picture(99).save(images / table[2][0])
    (images / table[3][0]).write_bytes(b"no picture")
    table[3][1] = checksum(images / table[3][0])
    table[5].pop()
    groups = {"lost": {"files": ["x.png", "y.png"]}, "old": {"where": {"age": "old"}}}
    matched = [{"vary": "gender", "within": ["role"], "cluster": "gender"}]
    path = listed(groups=groups, matched=matched)
    path.write_text("\n".join(path.read_text().replace("licence: CC0-1.0\n", "").splitlines()))
    found = [f for f in check(path) if f.level == "error"]
    said = "\n".join(f.message for f in found)
    for part in (
        "the key 'licence' is missing: add the licence or consent by which you hold the images, as in",
        f"the checksum of 'cook-man.png' is missing (it is empty): write {sha}",
        "'cook-woman.png' is missing: put the file back",
        "'judge-man.png' has changed, its checksum is not",
        "'judge-woman.png': it is no picture",
        "has 3 values for the columns",
        "the group 'lost' lists 'x.png', which is none of the images",
        "the group 'lost' lists 'y.png', which is none of the images",
        "have no attribute 'age'",
        "must agree in their cluster 'gender'",
    ):
        assert part in said
    assert len(found) == 10


def test_where_every_image_is_missing_the_place_is_asked_for(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed()
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    [finding] = check(path)
    assert "all 6 images are missing (cook-man.png, " in finding.message
    assert "say where by --root" in finding.message


def test_a_licence_that_is_not_stated_is_remarked(listed: Callable[..., Path], table: list[list[str]]) -> None:
    path = listed(licence="not stated")
    assert [f.level for f in check(path)] == ["warning"]
    assert "the licence is not stated, and the report will say so" in check(path)[0].message


def test_masks_that_are_missing_are_told_one_by_one(listed: Callable[..., Path], table: list[list[str]]) -> None:
    rows = [[*row, f"{i}.png"] for i, row in enumerate(table[:3])]
    masks = {"planes": {"object": "mask"}, "labels": {"object": {"cup": 1}}}
    found = check(listed(rows=rows, columns=[*COLUMNS, "mask"], masks=masks))
    assert len(found) == 3
    assert all("there is no mask" in f.message for f in found)


def test_an_image_changed_after_loading_is_not_served(listed: Callable[..., Path], tmp_path: Path) -> None:
    examples = Manifest.load(listed()).examples(SMALL)
    picture(99).save(tmp_path / "images" / "pilot-man.png")
    with pytest.raises(ChangedExampleError, match=r"pilot-man\.png' has changed"):
        examples.load([4])


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (
            ["file", "role"],
            ["a.png", "cook"],
            r"must name 'file' and 'sha256' .* got \['file', 'role'\]",
        ),
        (["file", "sha256", "file"], ["a.png", "0" * 64, "x"], "each attribute once"),
        (
            ["file", "sha256"],
            ["a.png", "0" * 64, "cook"],
            r"has 3 values for the columns \['file', 'sha256'\]",
        ),
        (
            ["file", "sha256"],
            ["a.png", "ABC"],
            "sha256 of 'a.png' must be 64 hexadecimal characters .* got 'ABC'",
        ),
    ],
)
def test_a_table_that_does_not_fit_its_columns_is_refused(
    columns: list[str], row: list[str], message: str, listed: Callable[..., Path]
) -> None:
    with pytest.raises(ManifestError, match=message):
        Manifest.load(listed(rows=[row], columns=columns))


def test_no_rows_and_repeated_files_are_refused(listed: Callable[..., Path], table: list[list[str]]) -> None:
    with pytest.raises(ManifestError, match="kind 'files' are none at all"):
        Manifest.load(listed(rows=[]))
    with pytest.raises(ManifestError, match=r"lists some files twice: cook-man\.png"):
        Manifest.load(listed(rows=[*table, list(table[0])]))


def test_check_warns_of_repeated_images(listed: Callable[..., Path], tmp_path: Path, table: list[list[str]]) -> None:
    images = tmp_path / "images"
    (images / table[1][0]).write_bytes((images / table[0][0]).read_bytes())
    table[1][1] = table[0][1]
    assert check(listed()) == [Finding("warning", "1 of 6 images repeat another one byte for byte.")]


# Paths


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png"])
def test_a_listed_path_that_leaves_its_root_is_refused(listed: Callable[..., Path], path: str) -> None:
    with pytest.raises(PathEscapeError, match=r"leaves its root"):
        Manifest.load(listed(rows=[[path, "0" * 64, "cook", "man"]]))


@pytest.mark.parametrize(
    "images",
    [
        {"kind": "folder", "root": ".."},
        {"kind": "folder", "pattern": "../*"},
        {"kind": "folder", "pattern": "/etc/*"},
        {"kind": "files", "root": "/", "columns": ["file", "sha256"], "rows": []},
        {"kind": "dataset", "format": "arrow", "path": "../data"},
    ],
)
def test_a_root_or_pattern_that_leaves_the_manifests_folder_is_refused(tmp_path: Path, images: dict[str, object]) -> None:
    with pytest.raises(PathEscapeError, match="leaves its root"):
        Manifest.load(write(tmp_path, images))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    picture(0).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(PathEscapeError, match=r"'link\.png' is a link out of its root"):
        Manifest.load(write(root, {"kind": "folder"}))


def test_relative_paths_can_start_elsewhere_on_demand(listed: Callable[..., Path], tmp_path: Path) -> None:
    path = listed()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = path.rename(elsewhere / path.name)
    with pytest.raises(ChecksumError, match="6 missing"):
        Manifest.load(moved)
    assert len(Manifest.load(moved, root=tmp_path)) == 6
    assert check(moved, root=tmp_path) == []


# Other sources


def test_a_folder_gives_its_pictures_by_the_folder_they_lie_in(tmp_path: Path) -> None:
    for i, name in enumerate(["b/1.png", "a/2.png", "a/x/3.png", "4.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path / name)
    path = write(tmp_path, {"kind": "folder"}, groups={"a": {"where": {"folder": "a"}}})
    manifest = Manifest.load(path)
    assert [item.name for item in manifest.items] == ["4.png", "a/2.png", "a/x/3.png", "b/1.png"]
    assert manifest.attribute("folder") == (".", "a", "a/x", "b")
    assert manifest.group("a") == (1,)
    assert check(path) == [Finding("warning", "images of kind 'folder' have no checksums: a change of them goes unnoticed.")]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"holds no picture \(pattern '\*\*/\*'"):
        Manifest.load(write(tmp_path, {"kind": "folder"}))


def test_images_come_from_a_package_which_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tmp_path / "site" / "tiny_images" / "assets"
    assets.mkdir(parents=True)
    picture(0).save(assets / "a.png")
    (assets.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    info = tmp_path / "site" / "tiny_images-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-images\nVersion: 1.5\n")
    (info / "RECORD").write_text("tiny_images/assets/a.png,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    images = {
        "kind": "package",
        "package": "tiny-images",
        "version": "1.0",
        "root": "tiny_images/assets",
        "columns": ["file", "sha256"],
        "rows": [["a.png", checksum(assets / "a.png")]],
    }
    path = write(tmp_path, images)
    manifest = Manifest.load(path)
    assert manifest.version == "1.5"
    assert torch.equal(manifest.examples(SMALL).load([0])[0], SMALL(picture(0)))
    assert check(path) == [Finding("warning", "the package 'tiny-images' is 1.5, the manifest was written for 1.0.")]
    with pytest.raises(PackageMissingError, match="'no-such-package' is not installed: pip install no-such-package"):
        Manifest.load(write(tmp_path, images | {"package": "no-such-package"}))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    module.disable_progress_bars()
    return module


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "arrow"])
def test_images_come_from_hugging_face_data_sets_on_disk(kind: str, tmp_path: Path, datasets: ModuleType) -> None:
    for i, name in enumerate(["dog/1.png", "cat/2.png", "cat/3.png"]):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(tmp_path / "data" / name)
    source = {"kind": "dataset", "format": kind, "path": "data", "attributes": ["label"]}
    files = [str(tmp_path / "data" / name) for name in ("cat/2.png", "cat/3.png", "dog/1.png")]
    label = datasets.ClassLabel(names=["cat", "dog"])
    data = datasets.Dataset.from_dict({"image": files, "label": [0, 0, 1]})
    data = data.cast_column("image", datasets.Image()).cast_column("label", label)
    if kind == "parquet":
        data.to_parquet(tmp_path / "data.parquet")
        source["path"] = "data.parquet"
    elif kind == "arrow":
        datasets.DatasetDict(train=data).save_to_disk(tmp_path / "arrow")
        source["path"] = "arrow"
    manifest = Manifest.load(write(tmp_path, source, groups={"cats": {"where": {"label": "cat"}}}))
    assert manifest.group("cats") == (0, 1)
    assert torch.equal(manifest.examples(SMALL).load([2, 0]), torch.stack([SMALL(picture(0)), SMALL(picture(1))]))
    with pytest.raises(ManifestError, match=r"has no column 'breed'; it has \['image', 'label'\]"):
        Manifest.load(write(tmp_path, source | {"attributes": ["breed"]}))
    with pytest.raises(ManifestError, match=r"cannot be read as .* \(there is no"):
        Manifest.load(write(tmp_path, source | {"path": "missing"}))


def test_a_data_set_of_the_hub_that_cannot_be_had_is_one_sentence(tmp_path: Path, datasets: ModuleType) -> None:
    source = {"kind": "dataset", "format": "hub", "path": "nobody/nothing"}
    with pytest.raises(ManifestError, match="the data set 'nobody/nothing' cannot be read as hub"):
        Manifest.load(write(tmp_path, source))


def test_a_state_of_the_hub_that_is_not_pinned_is_remarked(
    tmp_path: Path, datasets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(0).save(tmp_path / "a.png")
    data = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", datasets.Image())
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or data)
    source = {"kind": "dataset", "format": "hub", "path": "some/one", "split": "test"}
    assert "no revision of 'some/one' is named" in check(write(tmp_path, source))[1].message
    pinned = check(write(tmp_path, source | {"revision": "abc"}))
    assert not any("revision" in finding.message for finding in pinned)
    assert asked[1] == (("some/one",), {"split": "test", "revision": "abc"})


# The file itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nlicens: y\n", r"unknown key 'licens'; did you mean 'licence'"),
        (
            "name: x\nlicence: y\nsource: z\nimages: {kind: folder, rot: a}\n",
            r"unknown key 'images\.folder\.rot'",
        ),
        ("name: x\nlicence: y\nimages: {kind: folder}\n", "the key 'source' is missing"),
        (
            "name: 3\nlicence: y\nsource: z\nimages: {kind: folder}\n",
            "'name': input should be a valid string, got 3",
        ),
        (
            "name: x\nlicence: y\nsource: z\nimages: {kind: zip}\n",
            "'images': input tag 'zip' .* 'folder'",
        ),
        ("name: x\nname: y\n", "the key 'name' stands twice in line 2"),
        ("images: {kind: folder, kind: files}\n", "the key 'kind' stands twice in line 1"),
        ("a: &x [1]\nb: *x\n", "the anchor or alias 'x' is refused, write it out in line 1"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "could not determine a constructor for the tag",
        ),
        ("a: [\n", r"tiny\.yaml' cannot be read: .* in line"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("[" * 30 + "]" * 30, "it is nested deeper than 20 levels in line 1"),
        ("", "'the file': input should be a valid dictionary"),
        ("- 1\n", "'the file': input should be a valid dictionary .* got \\[1\\]"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(SchemaError, match=message) as caught:
        Manifest.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    first = check(path)[0]
    assert first.level == "error"
    assert re.search(message, first.message) or "is missing: add" in first.message


def test_an_alias_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(SchemaError, match="the anchor or alias 'a0' is refused"):
        read(tmp_path / "bomb.yaml", ManifestFile)


def test_a_file_over_the_size_limit_or_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Line(Schema):
        a: str

    path = tmp_path / "x.yaml"
    path.write_text("a: abc")
    assert read(path, Line).a == "abc"
    monkeypatch.setattr(yaml_schema, "MAX_BYTES", 5)
    with pytest.raises(SchemaError, match="has more bytes than the limit of 5"):
        read(path, Line)
    monkeypatch.setattr(yaml_schema, "MAX_BYTES", 100)
    path.write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(SchemaError, match="cannot be read"):
        read(path, Line)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.yaml", Line)
    assert check(tmp_path / "missing.yaml")[0].level == "error"


# The manifests that come with the project


def _packaged(path: Path) -> Manifest:
    try:
        return Manifest.load(path)
    except PackageMissingError as error:
        pytest.skip(str(error))


def test_every_manifest_of_the_project_loads_and_what_is_found_is_known(repository: Path) -> None:
    paths = sorted((repository / "data_manifests").glob("*.yaml"))
    assert len(paths) >= 2
    known = {"openmoji_people": "60 of 450 images repeat another one byte for byte."}
    for path in paths:
        _packaged(path)
        said = [Finding("warning", known[path.stem])] if path.stem in known else []
        assert check(path) == said


def test_the_twemoji_people_are_450_matched_figures(repository: Path) -> None:
    manifest = _packaged(repository / "data_manifests" / "twemoji_people.yaml")
    assert len(manifest) == 450
    assert [len(set(manifest.attribute(a))) for a in ("role", "gender", "tone")] == [25, 3, 6]
    for first, second in (("woman", "man"), ("woman", "person")):
        pairs = manifest.pairs("gender", first, second)
        assert len(pairs.first) == 150
        assert len(set(pairs.cluster)) == 25
        for i, j, role in zip(*pairs, strict=True):
            a, b = manifest.items[i].attributes, manifest.items[j].attributes
            assert (a["gender"], b["gender"]) == (first, second)
            assert (a["tone"], a["role"]) == (b["tone"], b["role"])
            assert a["role"] == role
    assert len(manifest.pairs("tone", "light", "dark").first) == 75
    ids = manifest.examples(SMALL).ids
    assert len(set(ids)) == 450


def test_the_twemoji_objects_share_no_drawing_with_the_people_and_show_none(
    repository: Path,
) -> None:
    people, objects = (_packaged(repository / "data_manifests" / f"twemoji_{n}.yaml") for n in ("people", "objects"))
    preprocess = replace(SMALL, size=16, resize=16)
    assert not set(people.examples(preprocess).ids) & set(objects.examples(preprocess).ids)
    assert len(objects) > 700
    human = (
        "1f3fb",
        "1f3fc",
        "1f3fd",
        "1f3fe",
        "1f3ff",
        "1f468",
        "1f469",
        "1f9d1",
        "1f466",
        "1f467",
    )
    assert not [item.name for item in objects.items if set(item.name.removesuffix(".png").split("-")) & set(human)]
    assert set(objects.attribute("category")) == {
        "activities",
        "animals-nature",
        "food-drink",
        "objects",
        "travel-places",
    }


def test_the_maker_script_writes_the_manifests_bit_for_bit(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("twemoji_people", "openmoji_people"):
        _packaged(repository / "data_manifests" / f"{name}.yaml")
    spec = importlib.util.spec_from_file_location("maker", repository / "experiments" / "make_emoji_manifests.py")
    assert spec
    assert spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    monkeypatch.setattr(sys, "argv", ["maker", "--out", str(tmp_path)])
    maker.main()
    for name in ("twemoji_people.yaml", "twemoji_objects.yaml", "openmoji_people.yaml"):
        assert (tmp_path / name).read_bytes() == (repository / "data_manifests" / name).read_bytes()
