"""Synthetic concept images show what they say, and nothing depends on anything but the seed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from concepts.data.synthetic import COLOURS, PATTERNS, PatternError, SyntheticImages
from probing.data.examples import ExampleSet, ImageSource
from probing.data.images import Preprocess


def drawn(pattern: str, count: int = 12, seed: int = 0, size: int = 64) -> np.ndarray:
    return SyntheticImages(pattern, count, size=size, seed=seed).tensor().double().numpy() / 255


@pytest.mark.parametrize("pattern", PATTERNS)
def test_images_follow_the_seed_and_not_the_global_generators(pattern: str) -> None:
    images = SyntheticImages(pattern, 3, size=32, seed=4)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002 # what must stay untouched
    first = images.tensor()
    assert first.dtype == torch.uint8
    assert first.shape == (3, 3, 32, 32)
    assert torch.equal(first, SyntheticImages(pattern, 3, size=32, seed=4).tensor())
    assert not torch.equal(first, SyntheticImages(pattern, 3, size=32, seed=5).tensor())
    assert not torch.equal(first[0], first[1])
    assert np.array_equal(np.random.get_state()[1], state[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = (SyntheticImages("dots", count, size=32).tensor() for count in (2, 5))
    assert torch.equal(few, many[:2])


@pytest.mark.parametrize("colour", COLOURS)
def test_images_of_a_colour_are_nearest_to_it_of_all_named_colours(colour: str) -> None:
    names = list(COLOURS)
    table = np.array([COLOURS[name] for name in names])
    means = drawn(colour, count=30).mean(axis=(2, 3))
    nearest = np.linalg.norm(means[:, None] - table, axis=2).argmin(axis=1)
    assert {names[i] for i in nearest} == {colour}


def edges(images: np.ndarray) -> np.ndarray:
    """Return the share of pixels whose luma differs much from the one to the right."""
    luma = np.tensordot([0.299, 0.587, 0.114], images, axes=(0, 1))
    return (np.abs(np.diff(luma, axis=2)) > 0.15).mean(axis=(1, 2))


@pytest.mark.parametrize("texture", ["stripes", "dots", "zigzags", "checks"])
def test_textures_have_edges_and_the_plain_control_has_none(texture: str) -> None:
    assert edges(drawn(texture)).mean() > 0.03
    assert edges(drawn("plain")).max() < 0.01


def test_stripes_repeat_along_one_direction_and_checks_along_two() -> None:
    def directions(image: np.ndarray) -> float:
        """Return the share of the gradient's energy along its main direction: 1 for stripes, 0.5 for checks."""
        dy, dx = np.gradient(image.mean(axis=0))
        tensor = np.array([[(dx * dx).sum(), (dx * dy).sum()], [(dx * dy).sum(), (dy * dy).sum()]])
        values = np.linalg.eigvalsh(tensor)
        return float(values[-1] / values.sum())

    stripes, checks = ([directions(image) for image in drawn(p, size=128)] for p in ("stripes", "checks"))
    assert np.mean(stripes) > 0.9
    assert np.mean(checks) < 0.75


def test_texture_colours_tell_nothing_about_the_texture() -> None:
    means = np.stack([drawn(p, count=60).mean(axis=(0, 2, 3)) for p in ("stripes", "dots", "checks", "plain")])
    assert np.ptp(means, axis=0).max() < 0.15


def test_synthetic_images_are_examples_with_stable_content_ids() -> None:
    preprocess = Preprocess(size=16, resize=16)
    images = SyntheticImages("checks", 4, size=40)
    examples = images.examples(preprocess)
    assert isinstance(images, ImageSource)
    assert isinstance(examples, ExampleSet)
    assert examples.ids == SyntheticImages("checks", 4, size=40).examples(preprocess).ids
    assert len(set(examples.ids)) == 4
    assert torch.equal(examples.load([2])[0], preprocess(images.image(2)))
    assert examples.name(2) == "checks[2]"


def test_the_encoded_image_is_the_image() -> None:
    images = SyntheticImages("red", 1, size=24)
    assert np.array_equal(np.array(Image.open(io.BytesIO(images.read(0)))), np.array(images.image(0)))


def test_an_unknown_pattern_is_refused_with_near_names() -> None:
    with pytest.raises(PatternError, match=r"no pattern 'stripe'\. Close names: \['stripes'"):
        SyntheticImages("stripe", 3)


@pytest.mark.parametrize("settings", [{"count": 0}, {"size": 7}])
def test_no_images_or_too_small_ones_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="count must be 1 or more and size 8 or more"):
        SyntheticImages("dots", **{"count": 2, **settings})


def test_an_image_out_of_range_is_refused() -> None:
    with pytest.raises(IndexError, match="index 2 is out of range for 2 images"):
        SyntheticImages("dots", 2).image(2)
