"""How inputs are cut into parts, and how they look when parts are hidden."""

import sys

import pytest
import torch
from torch import Tensor

from probing.attribution.baselines import Constant
from probing.attribution.perturbation.parts import (
    Occurrences,
    PartMean,
    Parts,
    TensorParts,
    Words,
    contiguous,
    fillings,
)
from probing.attribution.perturbation.superpixels import (
    Each,
    Given,
    Grid,
    Quickshift,
    Segmentation,
    Slic,
)
from probing.core.inputs import InputError
from probing.core.packages import PackageMissingError


def scene(n: int = 1, size: int = 48) -> Tensor:
    """A bright disc on a dark ground, each with a little noise."""
    at = torch.arange(size) - size / 2 + 0.5
    disc = (at[:, None] ** 2 + at**2 < (size / 4) ** 2).float()
    noise = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return disc * torch.tensor([2.0, 1.0, 0.2])[:, None, None] + 0.05 * noise


def pieces(labels: Tensor) -> int:
    """Count connected pieces of equal labels."""
    from scipy import ndimage

    return sum(ndimage.label((labels == label).numpy())[1] for label in labels.unique())


SEGMENTATIONS = [Slic(), Slic(20, 2.0, 5), Grid(), Grid(3, 5)]


@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_superpixels_cover_the_image_and_do_not_depend_on_neighbours(
    segmentation: Segmentation,
) -> None:
    images = scene(3)
    labels = segmentation(images)
    assert labels.shape == (3, 1, 48, 48)
    for i in range(3):
        assert torch.equal(labels[i : i + 1], segmentation(images[i : i + 1]))
        found = labels[i].unique()
        assert torch.equal(found, torch.arange(len(found)))


def test_slic_gives_connected_superpixels_of_about_the_number_asked_for() -> None:
    for segments in (10, 50, 120):
        labels = Slic(segments)(scene())[0, 0]
        count = len(labels.unique())
        assert 0.5 * segments <= count <= 1.5 * segments
        assert pieces(labels) == count
        assert labels.flatten().bincount().min() >= 48 * 48 / segments / 4


def test_slic_follows_edges_unless_compactness_forbids_it() -> None:
    images = scene()
    disc = images[0, 0] > 1

    def impure(compactness: float) -> float:
        labels = Slic(40, compactness)(images)[0, 0]
        inside = labels[disc].bincount(minlength=int(labels.max()) + 1)
        outside = labels[~disc].bincount(minlength=int(labels.max()) + 1)
        return float(torch.minimum(inside, outside).sum()) / disc.numel()

    assert impure(10.0) < 0.01
    assert impure(10_000.0) > 0.04


def test_slic_takes_images_of_any_size_and_number_of_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 1, 20, 9), (1, 3, 5, 5), (2, 5, 16, 30), (1, 3, 1, 40)):
        labels = Slic()(torch.randn(shape, generator=generator))
        assert labels.shape == (shape[0], 1, *shape[2:])
    assert Slic(4)(torch.zeros(1, 3, 8, 8)).unique().tolist() == [0, 1, 2, 3]


def test_a_grid_has_rectangles_of_equal_size() -> None:
    labels = Grid(2, 3)(torch.zeros(1, 3, 4, 6))[0, 0]
    assert labels.tolist()[0] == [0, 0, 1, 1, 2, 2]
    assert labels.tolist()[-1] == [3, 3, 4, 4, 5, 5]
    assert Grid(7, 7)(torch.zeros(1, 1, 224, 224)).flatten().bincount().unique().tolist() == [1024]


def test_quickshift_is_that_of_scikit_image() -> None:
    pytest.importorskip("skimage")
    labels = Quickshift(max_dist=10.0)(scene(2))
    assert labels.shape == (2, 1, 48, 48)
    assert len(labels[0].unique()) > 3
    assert torch.equal(labels[:1], Quickshift(max_dist=10.0)(scene(2)[:1]))
    assert len(Quickshift(max_dist=10.0, kernel_size=1.0)(scene()).unique()) != len(labels[0].unique())


def test_quickshift_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(PackageMissingError, match=r"'probing-concepts\[superpixels\]'"):
        Quickshift()(scene())
    with pytest.raises(InputError, match="three channels, got 1"):
        Quickshift()(scene()[:, :1])


def test_given_labels_may_be_any_numbers() -> None:
    labels = torch.tensor([[[5, 5], [-1, 100]]])
    assert contiguous(labels).tolist() == [[[1, 1], [0, 2]]]
    parts = TensorParts.of(torch.rand(3, 2, 2), labels, torch.zeros(3, 2, 2))
    assert parts.count == 3
    assert isinstance(parts, Parts)


def test_given_labels_serve_all_inputs_or_one_each() -> None:
    labels = torch.arange(8).reshape(2, 2, 2)
    images = torch.rand(2, 3, 2, 2)
    assert torch.equal(Given.of(labels)(images)[:, 0], labels)
    assert torch.equal(Given.of(labels[:1])(images)[1, 0], labels[0])
    assert Given.of(torch.tensor([[0, 0, 1]]))(torch.rand(5, 3)).shape == (5, 3)
    with pytest.raises(InputError, match=r"whole numbers, got torch\.float32"):
        Given.of(torch.rand(1, 2, 2))
    with pytest.raises(InputError, match=r"labels have size \(2, 2\), inputs \(3, 4, 4\)"):
        Given.of(labels)(torch.rand(2, 3, 4, 4))
    with pytest.raises(InputError, match="2 maps of labels can't serve 3 inputs"):
        Given.of(labels)(torch.rand(3, 3, 2, 2))


def test_labels_of_another_size_do_not_cut_an_example() -> None:
    with pytest.raises(InputError, match=r"labels of shape \(1, 2, 3\) don't fit"):
        TensorParts.of(torch.rand(3, 2, 2), torch.zeros(1, 2, 3).long(), PartMean())


def test_rendering_shows_kept_parts_exactly_and_the_filling_elsewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(3, 4, 4, generator=generator)
    hidden = torch.randn(3, 4, 4, generator=generator)
    labels = Grid(2, 2)(example[None])[0]
    parts = TensorParts.of(example, labels, hidden)
    kept = torch.tensor([[True, True, True, True], [False] * 4, [True, False, False, False]])
    variants = parts.render(kept)
    assert torch.equal(variants[0], example)
    assert torch.equal(variants[1], hidden)
    assert torch.equal(variants[2, :, :2, :2], example[:, :2, :2])
    assert torch.equal(variants[2, :, 2:], hidden[:, 2:])
    spread = parts.spread(torch.arange(4.0))
    assert torch.equal(spread[1], labels[0].float())


def test_hidden_parts_show_their_mean_colour() -> None:
    example = torch.arange(12.0).reshape(3, 2, 2)
    labels = torch.tensor([[[0, 1], [0, 1]]])
    filled = TensorParts.of(example, labels, PartMean()).hidden
    assert filled[:, 0].tolist() == [[1.0, 2.0], [5.0, 6.0], [9.0, 10.0]]
    assert filled[:, 1].tolist() == filled[:, 0].tolist()
    every_value = torch.zeros(3, 2, 2).long()  # labels of values: channels mix
    every_value[0, 0, 0] = 1
    assert PartMean().fill(example, every_value)[2, 1, 1].item() == pytest.approx(66 / 11)


def test_a_part_that_is_one_value_has_no_mean_to_show() -> None:
    x = torch.rand(1, 4)
    with pytest.raises(InputError, match="such as Constant"):
        TensorParts.of(x[0], Each()(x)[0], PartMean())
    filled = fillings(Constant((1.0,)), x)
    assert TensorParts.of(x[0], Each()(x)[0], filled[0]).hidden.tolist() == [1.0] * 4


def test_words_are_hidden_together_and_separators_stay() -> None:
    parts = Words()("The cat, the dog!")
    assert parts.names == ("The", "cat", "dog")
    assert parts.labels.tolist() == [0, 1, 0, 2]
    kept = torch.tensor([[True, True, True], [False, True, True], [True, False, False]])
    assert parts.render(kept) == ["The cat, the dog!", " cat,  dog!", "The , the !"]
    assert parts.spans == (((0, 3), (9, 12)), ((4, 7),), ((13, 16),))
    assert isinstance(parts, Parts)
    assert Words(ignore_case=False)("The the").names == ("The", "the")
    assert Words(mask="_")("a b").render(torch.tensor([[False, True]])) == ["_ b"]
    assert Words(pattern=r"\S+")("it's so").names == ("it's", "so")


def test_occurrences_are_hidden_one_by_one() -> None:
    parts = Occurrences()(" no, no…")
    assert parts.names == ("no", "no")
    assert parts.render(torch.tensor([[False, True]])) == [" UNKWORDZ, no…"]
    assert parts.spans == (((1, 3),), ((5, 7),))


@pytest.mark.parametrize("text", ["", "  ", "… !"])
def test_a_text_without_words_is_refused(text: str) -> None:
    for tokens in (Words(), Occurrences()):
        with pytest.raises(InputError, match="holds no word"):
            tokens(text)


def test_words_of_the_world_are_parts() -> None:
    assert Words()("नमस्ते 😀, don't!").names == ("नमस्ते", "😀", "don't")
    assert Occurrences()("好 好").names == ("好", "好")
    assert Words()("cafe\u0301 CAF\u00c9").names == ("cafe\u0301",)  # one word, composed and not
    assert Words(ignore_case=False)("cafe\u0301 caf\u00e9").labels.tolist() == [0, 0]


def test_a_tokeniser_cuts_a_text() -> None:
    assert Words(tokeniser=str.split)("a-b c a-b").names == ("a-b", "c")
    assert Occurrences(tokeniser=lambda text: [(1, 2)])("abc").between == ("a", "c")
    for tokens in (Words, Occurrences):
        with pytest.raises(InputError, match="word 'x' is not in 'a b'"):
            tokens(tokeniser=lambda text: ["x"])("a b")
        with pytest.raises(InputError, match="not both"):
            tokens(pattern="a", tokeniser=str.split)("a b")


def test_a_mask_that_is_a_word_of_the_text_would_hide_nothing() -> None:
    for tokens in (Words(mask="UNK"), Occurrences(mask="UNK")):
        assert tokens("a UNKNOWN").count == 2
        with pytest.raises(InputError, match="word 'UNK', which stands for hidden words"):
            tokens("a UNK")


def test_settings_that_cut_nothing_are_refused() -> None:
    for segmentation in (Slic(0), Slic(iterations=0), Grid(0, 1), Grid(9, 1)):
        with pytest.raises(InputError):
            segmentation(torch.zeros(1, 3, 8, 8))
