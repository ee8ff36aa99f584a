"""Pictures that lie elsewhere have the ids and the pixels that they have on disk."""

import io
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from probing.core.storage import located, write_whole
from probing.data.examples import DatasetImages, ExampleError, ImageExamples, ImageFiles
from probing.data.images import ImageError, Preprocess
from probing.data.remote_images import PlacedImages, SpooledImages, TarImages

PREPROCESS = Preprocess(size=8, resize=None)
COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def on_disk(folder: Path) -> ImageExamples:
    return ImageExamples(ImageFiles.in_folder(folder), PREPROCESS)


@pytest.fixture
def bucket() -> str:
    return f"memory://pictures-{uuid.uuid4().hex}"


def tar_of(folder: Path, numbers: range, mode: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:  # type: ignore[call-overload]
        for i in numbers:
            for name, content in (
                (f"set/{i:03}.cls", str(i % 3).encode()),
                (f"set/{i:03}.PNG", (folder / f"{i:03}.png").read_bytes()),
                (f"set/{i:03}.json", f'{{"number": {i}}}'.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tar.addfile(tarfile.TarInfo("readme"))
    return data.getvalue()


def same(found: ImageExamples, expected: ImageExamples) -> None:
    assert found.ids == expected.ids
    order = [4, 0, 5]
    assert torch.equal(found.load(order), expected.load(order))


def test_files_at_an_address_are_those_on_disk(folder: Path, on_disk: ImageExamples, bucket: str) -> None:
    for path in folder.iterdir():
        write_whole(located(f"{bucket}/photos/{path.name}"), path.read_bytes())
    found = ImageExamples(PlacedImages.under(f"{bucket}/photos"), PREPROCESS)
    same(found, on_disk)
    same(ImageExamples(PlacedImages.under(bucket, depth=2), PREPROCESS), on_disk)
    same(ImageExamples(PlacedImages.under(folder), PREPROCESS), on_disk)
    assert found.name(2) == f"{bucket}/photos/002.png"
    with pytest.raises(ExampleError, match="holds no picture 1 deep"):
        PlacedImages.under(bucket)


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "address"])
def test_samples_of_tar_shards_are_read_where_they_lie(
    remote: bool, folder: Path, on_disk: ImageExamples, bucket: str, tmp_path: Path
) -> None:
    shards = [f"{bucket if remote else tmp_path}/part-{i}.tar" for i in range(2)]
    for shard, numbers in zip(shards, (range(4), range(4, COUNT)), strict=True):
        write_whole(located(shard), tar_of(folder, numbers))
    tars = TarImages.of(shards)
    same(ImageExamples(tars, PREPROCESS), on_disk)
    assert tars.keys == tuple(f"set/{i:03}" for i in range(COUNT))
    assert [int(tars.text(i, "cls")) for i in range(COUNT)] == [0, 1, 2, 0, 1, 2]
    assert tars.json(5) == {"number": 5}
    assert tars.name(4).endswith("part-1.tar: set/004.png")
    with pytest.raises(ExampleError, match=r"'set/000' has no 'seg', but \['cls', 'json', 'png'\]"):
        tars.file(0, "seg")
    write_whole(located(shards[0]), located(shards[0]).read_bytes()[:1500])
    with pytest.raises(ImageError, match="cut short since it was listed"):
        tars.read(3)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda f: tar_of(f, range(2), "w:gz"), "is no uncompressed tar .* unpack compressed ones"),
        (lambda f: b"x" * 2000, "is no uncompressed tar"),
        (lambda f: tar_of(f, range(0)), "the 1 tars hold no picture"),
    ],
)
def test_a_tar_that_cannot_be_read_so_is_refused(
    make: Callable[[Path], bytes], told: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.tar").write_bytes(make(folder))
    with pytest.raises(ExampleError, match=told):
        TarImages.of([tmp_path / "a.tar"])


def test_a_streamed_data_set_is_kept_as_it_comes_by(folder: Path, on_disk: ImageExamples, tmp_path: Path) -> None:
    from datasets import Dataset, Features, Image as ImageFeature

    paths = sorted(str(p) for p in folder.glob("*.png"))
    whole = Dataset.from_dict({"image": paths}, features=Features({"image": ImageFeature()}))
    stream = whole.to_iterable_dataset()
    same(ImageExamples(SpooledImages.of(stream, tmp_path), PREPROCESS), on_disk)
    same(ImageExamples(DatasetImages(whole), PREPROCESS), on_disk)
    assert len(SpooledImages.of(stream, tmp_path, limit=2)) == 2
    size = sum(Path(p).stat().st_size for p in paths)
    with pytest.raises(ExampleError, match=r"budget_bytes is .*: raise it, or set a limit"):
        SpooledImages.of(stream, tmp_path, budget_bytes=size - 1)
    assert len(SpooledImages.of(stream, tmp_path, budget_bytes=size)) == COUNT


def test_rows_without_a_picture_are_told(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match=r"row 1 .* in column 'image'; its columns: \['text'\]"):
        SpooledImages.of([{"image": b"x"}, {"text": "y"}], tmp_path)
    with pytest.raises(ExampleError, match="the stream has no row"):
        SpooledImages.of([], tmp_path)
