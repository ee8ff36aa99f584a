"""Dissection where places are no rows and columns: steps of a series, voxels of a volume, tokens of a text."""

from dataclasses import replace

import pytest
import torch
from dissection_nets import blobs, given_units, named
from torch import Tensor, nn

import probing as pb
from concepts import Dissection, Scenes, TensorLabels
from concepts.data.segmentation.labels import LabelError
from concepts.dissection.protocols import PNAS, DissectionError, Protocol
from probing.data.examples import as_examples

PROTOCOL = Protocol(0.1, anchors="tiles", union="all")


class Given(nn.Module):
    """A convolution of kernel one that hands on its input, and a head."""

    def __init__(self, axes: int, units: int) -> None:
        super().__init__()
        make = {1: nn.Conv1d, 3: nn.Conv3d}[axes]
        self.units = make(units, units, 1, bias=False)
        with torch.no_grad():
            self.units.weight.copy_(torch.eye(units).view(units, units, *[1] * axes))
        self.head = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.units(x).flatten(2).mean(2))


def scenes(maps: Tensor, planes: Tensor, count: int = 3) -> Scenes:
    return Scenes(as_examples(maps), TensorLabels(planes, named(count)), size=tuple(planes.shape[2:]), frame="input")


def random_labels(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(1))


def test_a_series_is_an_image_of_one_row() -> None:
    series = blobs(8, 4, 24, seed=0)[:, :, 0]
    labels = random_labels(8, 1, 48)
    found = Dissection(("units",), PROTOCOL, draws=19)(pb.ActivationStore(), Given(1, 4).eval(), scenes(series, labels))
    flat = scenes(series[:, :, None], labels[:, :, None])
    image = Dissection(("units",), PROTOCOL, draws=19)(pb.ActivationStore(), given_units(4), flat)
    for name in ("shared", "unit_area", "label_area", "correlation"):
        torch.testing.assert_close(getattr(found, name), getattr(image, name))
    torch.testing.assert_close(found.null.iou, image.null.iou)


@pytest.mark.parametrize("threshold", ["maps", "upsampled"])
def test_a_volumes_cells_are_counted_as_a_loop_counts_them(threshold: str) -> None:
    volumes = blobs(6, 12, 10, seed=0).view(6, 3, 4, 10, 10)
    labels = random_labels(6, 1, 6, 20, 15)
    protocol = replace(PROTOCOL, threshold=threshold)  # type: ignore[arg-type]
    found = Dissection(("units",), protocol, draws=0)(pb.ActivationStore(), Given(3, 3).eval(), scenes(volumes, labels))
    wide = nn.functional.interpolate(volumes.double(), size=(6, 20, 15), mode="trilinear")  # between centres of tiles
    for unit in range(3):
        values = (volumes if threshold == "maps" else wide)[:, unit].flatten().double().sort(descending=True).values
        active = wide[:, unit] > values[int(0.1 * len(values))]
        for c in range(3):
            labelled = labels[:, 0] == c + 1
            iou = (active & labelled).sum() / (active | labelled).sum()
            assert abs(float(found.iou[unit, c]) - float(iou)) < 2e-3  # float32 beside float64 at a threshold


class Words(nn.Module):
    """Looks words up; its first unit is high for words of one kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(12, 3), nn.Linear(3, 2)
        with torch.no_grad():
            self.table.weight[:, 0] = (torch.arange(12) % 3 == 1).float() * 5

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.table(input_ids).mean(1))


def test_units_that_single_out_a_kind_of_word_are_found() -> None:
    ids = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(i)) for i in range(10)])
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = TensorLabels((ids % 3)[:, None] + 1, named(3))
    kinds = Scenes(as_examples(texts), labels, size=(12,), frame="input")
    found = Dissection(("table",), Protocol(0.4, union="all"), draws=0)(pb.ActivationStore(), Words().eval(), kinds)
    assert found.iou[0].tolist() == [0.0, 1.0, 0.0]
    padded = texts | {"attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([11]), 0)}
    with pytest.raises(DissectionError, match="text 0 has padding"):
        Dissection(("table",))(pb.ActivationStore(), Words().eval(), replace(kinds, examples=as_examples(padded)))


def test_labels_with_other_axes_than_the_units_are_refused() -> None:
    series, labels = torch.randn(4, 2, 24), random_labels(4, 1, 24)
    with pytest.raises(DissectionError, match="a grid of 6 x 4 cells, a unit's places on one of 24"):
        Dissection(("units",), PROTOCOL)(pb.ActivationStore(), Given(1, 2).eval(), scenes(series, random_labels(4, 1, 6, 4)))
    with pytest.raises(DissectionError, match="falls to zero is one of images"):
        Dissection(("units",), PNAS)(pb.ActivationStore(), Given(1, 2).eval(), scenes(series, labels))
    with pytest.raises(LabelError, match=r"of image 0 have shape \(24,\), and the grid is \(12,\)"):
        replace(scenes(series, labels), size=(12,)).labels(0)
    with pytest.raises(LabelError, match=r"size \(24,\) is no grid of rows and columns"):
        Scenes(as_examples(series), TensorLabels(labels, named(3)), size=(24,))
