"""Network dissection: exact thresholds and tallies of 512 units against 200 concepts.

    python experiments/benchmarks/dissection.py --out dissection.json [--tiny]

Peers are written from their definitions: `torch.quantile` on all values at once; a quantile sketch of compactors (Karnin,
Lang & Liberty 2016) of NetDissect's resolution; and NetDissect-Lite's loops over images and units, which resize each
map as a picture and count labels under it. `floor` of the tally is the forward pass that the maps come from (ResNet-18
at 224 px), of the same number of images. Compiling takes place before the clock starts; how long it took is printed,
and is paid once per machine, since the machine code is kept on disk.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision
from harness import Row, arguments, race, report
from PIL import Image
from torch import Tensor, nn

from concepts.data.segmentation.labels import ImageLabels, Vocabulary
from concepts.dissection.protocols import LITE
from concepts.dissection.soft_scores import Moments
from concepts.dissection.tally import Tally
from concepts.dissection.unit_masks import Upsampling
from probing.models.geometry import Geometry, Layout
from probing.statistics.streaming import UpperQuantile

Q = 0.005
Q_WHOLE = 1 - Q
CELLS, LABELS, INPUT = 14, 112, 224


@dataclass
class Data:
    """Maps of a layer and label maps on three planes, both smooth as of pictures."""

    maps: Tensor
    labels: list[ImageLabels]
    words: Vocabulary

    @classmethod
    def drawn(cls, images: int, units: int, concepts: int) -> "Data":
        """Draw everything from one seed."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(images, units, CELLS // 2, CELLS // 2, generator=generator)
        maps = nn.functional.interpolate(coarse, size=(CELLS, CELLS), mode="bicubic").relu()
        thirds = [concepts // 2, concepts // 4, concepts - concepts // 2 - concepts // 4]
        kinds = [k for k, n in zip(("object", "part", "colour"), thirds, strict=True) for _ in range(n)]
        words = Vocabulary(tuple(f"c{i}" for i in range(concepts)), tuple(kinds))
        rng, labels = np.random.default_rng(0), []
        starts = np.cumsum([1, *thirds])
        for _ in range(images):
            planes = [
                np.kron(rng.integers(low, high, (4, 4)), np.ones((LABELS // 4, LABELS // 4), int))
                * (rng.random((LABELS, LABELS)) < 0.9)
                for low, high in itertools.pairwise(starts)
            ]
            labels.append(ImageLabels(np.stack(planes).astype(np.int32)))
        return cls(maps, labels, words)


def exact(maps: Tensor) -> Tensor:
    """Return our thresholds."""
    quantile = UpperQuantile(Q, len(maps) * CELLS * CELLS)
    for part in maps.split(8):
        quantile.add(part)
    return quantile.value().threshold


def by_torch(maps: Tensor) -> Tensor:
    """Return `torch.quantile`'s, unit by unit, since it takes no more than 16 million values."""
    rows = maps.transpose(0, 1).flatten(1)
    return torch.stack([torch.quantile(row, Q_WHOLE, interpolation="lower") for row in rows])


def by_sketch(maps: Tensor, resolution: int = 4096) -> Tensor:
    """Return a sketch's: full compactors are sorted, and every other value moves up with twice its weight."""
    units = maps.shape[1]
    levels: list[list[Tensor]] = [[]]
    generator = torch.Generator().manual_seed(0)
    for part in maps.split(8):
        levels[0].append(part.transpose(0, 1).flatten(1))
        level = 0
        while sum(p.shape[1] for p in levels[level]) >= resolution:
            values = torch.cat(levels[level], 1).sort(1).values
            offset = int(torch.randint(2, (1,), generator=generator))
            if level + 1 == len(levels):
                levels.append([])
            levels[level + 1].append(values[:, offset::2])
            levels[level] = []
            level += 1
    values = torch.cat([p for parts in levels for p in parts], 1)
    weights = torch.cat([torch.full((p.shape[1],), 2.0**k) for k, parts in enumerate(levels) for p in parts])
    order = values.argsort(1)
    share = weights[order].cumsum(1) / weights.sum()
    at = (share < Q_WHOLE).sum(1).clamp(max=values.shape[1] - 1)
    return values[torch.arange(units), order[torch.arange(units), at]]


def tail(maps: Tensor) -> Callable[[object, object], str]:
    """Return what says how much lies above a peer's thresholds."""

    def said(_: object, theirs: object) -> str:
        assert isinstance(theirs, Tensor)
        above = (maps > theirs[:, None, None]).double().mean((0, 2, 3))
        return f"share above {float(above.min()):.5f} to {float(above.max()):.5f}"

    return said


@dataclass
class Counted:
    """What a tally counts, [units, concepts]."""

    shared: np.ndarray
    area: np.ndarray


def ours(data: Data, thresholds: Tensor, upsampling: Upsampling, *, sums: bool = False) -> Counted:
    """Count by active cells; with `sums`, for correlation too."""
    tally = Tally(data.maps.shape[1], data.words, LITE.union)
    moments = Moments(data.maps.shape[1], data.words, upsampling)
    for start in range(0, len(data.labels), 8):
        ready = upsampling.ready(data.maps[start : start + 8])
        labels = data.labels[start : start + 8]
        if sums:
            moments.add(ready, labels)
        for one, found in zip(ready, labels, strict=True):
            tally.add(upsampling.active(one, thresholds), found)
    counts = tally.value()
    return Counted(counts.shared.numpy(), counts.unit_area.numpy())


def lite(data: Data, thresholds: Tensor, resize: Callable[[np.ndarray], np.ndarray]) -> Counted:
    """Count as NetDissect-Lite does: unit by unit, over maps resized as pictures."""
    units, concepts = data.maps.shape[1], len(data.words)
    shared = np.zeros((units, concepts + 1))
    by_kind = np.zeros((units, len(data.words.kinds)))
    kind_of = np.zeros((concepts + 1, len(data.words.kinds)))
    kind_of[np.arange(1, concepts + 1), data.words.kind_of] = 1
    limits = thresholds.numpy()
    for maps, labels in zip(data.maps.numpy(), data.labels, strict=True):
        for unit in range(units):
            if maps[unit].max() <= limits[unit]:
                continue
            rows, columns = np.nonzero(resize(maps[unit]) > limits[unit])
            found = np.bincount(labels.planes[:, rows, columns].ravel(), minlength=concepts + 1)
            found[0] = 0
            shared[unit] += found
            by_kind[unit] += len(rows) * (found @ kind_of > 0)
    return Counted(shared[:, 1:], by_kind[:, data.words.kind_of])


def as_picture(one: np.ndarray) -> np.ndarray:
    """Resize a map as the original does, in float32."""
    return np.asarray(Image.fromarray(one).resize((LABELS, LABELS), Image.Resampling.BILINEAR))


def exactly(upsampling: Upsampling) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same resizing as a product of matrices, in float64."""
    rows, columns = upsampling.rows.matrix().numpy(), upsampling.columns.matrix().numpy()
    return lambda one: rows @ one.astype(np.float64) @ columns.T


def compare(mine: object, theirs: object) -> str:
    """Say in how many cells two tallies differ."""
    assert isinstance(mine, Counted)
    assert isinstance(theirs, Counted)
    differ = int((mine.shared != theirs.shared).sum() + (mine.area != theirs.area).sum())
    return f"{differ} of {mine.shared.size + mine.area.size} cells differ"


def main() -> list[Row]:
    """Run all cases."""
    args = arguments("Network dissection of 512 units and 200 concepts.", on_device=False)
    images, units, concepts = (24, 32, 20) if args.tiny else (500, 512, 200)
    data = Data.drawn(images, units, concepts)
    layout = Layout("channels_first", (CELLS, CELLS), Geometry.tiles((CELLS, CELLS), (INPUT, INPUT)))
    upsampling = Upsampling.of(layout, (LABELS, LABELS), LITE)
    start = time.perf_counter()
    ours(
        Data(data.maps[:1], data.labels[:1], data.words),
        exact(data.maps[:8]),
        upsampling,
        sums=True,
    )
    print(f"compiled, or read from disk, in {time.perf_counter() - start:.1f} s")
    name = f"{units} units, {images} images"
    rows = race(
        f"thresholds: {name}",
        {
            "ours": lambda: exact(data.maps),
            "torch.quantile": lambda: by_torch(data.maps),
            "quantile sketch": lambda: by_sketch(data.maps),
        },
        args.rounds,
        dict.fromkeys(("ours", "torch.quantile", "quantile sketch"), tail(data.maps)),
    )
    limits = exact(data.maps)
    net = torchvision.models.resnet18(weights=None).eval()
    pictures = torch.randn(8, 3, INPUT, INPUT, generator=torch.Generator().manual_seed(1))

    def forward() -> None:
        with torch.no_grad():
            for first in range(0, images, 8):
                net(pictures[: min(8, images - first)])

    rows += race(
        f"tally: {name}, {concepts} concepts",
        {
            "floor": forward,
            "ours": lambda: ours(data, limits, upsampling),
            "ours, with correlation": lambda: ours(data, limits, upsampling, sums=True),
            "NetDissect-Lite": lambda: lite(data, limits, as_picture),
            "NetDissect-Lite, resized in float64": lambda: lite(data, limits, exactly(upsampling)),
        },
        args.rounds,
        dict.fromkeys(("NetDissect-Lite", "NetDissect-Lite, resized in float64"), compare),
    )
    rows += race(
        f"thresholds and tally: {name}, {concepts} concepts",
        {
            "ours": lambda: ours(data, exact(data.maps), upsampling),
            "NetDissect-Lite": lambda: lite(data, percentiles(data.maps), as_picture),
        },
        args.rounds,
    )
    for share in (4, 2, 1):
        part = Data(data.maps[: images // share], data.labels[: images // share], data.words)
        case = {"ours": lambda part=part: ours(part, limits, upsampling)}
        rows += race(f"tally: {images // share} images", case, args.rounds)
    report(rows, args.out)
    seconds = [row.cpu_seconds for row in rows[-3:]]
    print(f"CPU seconds of a quarter, a half and all of the images: {seconds}")
    return rows


def percentiles(maps: Tensor) -> Tensor:
    """Return thresholds as NetDissect-Lite's last version does, from all values at once."""
    values = maps.numpy().astype(np.float64)
    return torch.from_numpy(np.percentile(values, 100 * Q_WHOLE, axis=(0, 2, 3)))


if __name__ == "__main__":
    main()
