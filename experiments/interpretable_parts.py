"""Interpretable CNNs in miniature (Zhang, Wu & Zhu 2018): figures of parts, with mask, filter loss, both, or neither.

    python experiments/interpretable_parts.py --out results/interpretable [--tiny]

A small CNN tells figures (head over body over legs) from single shapes, as the paper tells one kind of animal from other
images; all filters stand for the figures. A convolution is trained plain, with the mask, with the filter loss, and with
both, from the same weights and batches. For each: accuracy and cross-entropy on new images, and on the figures among them
how often a filter hits its best part (higher is better) and how far its peak moves about the parts (location
instability, lower is better), both as means over filters that are not silent, of their maps before any mask. A filter is
active on 2 % of cells, about the share that a part covers here; at the paper's 0.5 % that would be one cell per image.
Task, net and settings were chosen on seeds 0 and 1; the table and the figure are of other seeds.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from probing.data.toy_images import figures, shapes
from probing.interpretable_cnn import (
    FilterLoss,
    FilterMask,
    balancing_weight,
    location_instability,
    part_interpretability,
)
from probing.models.geometry import Geometry
from probing.models.hooks import capture
from probing.results.figures import (
    FULL_WIDTH,
    INK,
    MARKERS,
    PALETTE,
    new_figure,
    save_figure,
    style,
)

SIZE, CELLS, FILTERS = 28, 14, 12
ACTIVE = 0.02
"""Share of cells where a filter counts as active."""
VARIANTS = {"plain": (False, False), "mask": (True, False), "loss": (False, True), "both": (True, True)}


@dataclass(frozen=True)
class Outcome:
    """What one training came to."""

    variant: str
    seed: int
    accuracy: float
    cross_entropy: float
    part_hits: float
    instability: float
    dead: int


@dataclass(frozen=True)
class Data:
    """Figures, and as many single shapes after them."""

    images: Tensor
    labels: Tensor
    parts: Tensor
    landmarks: Tensor
    """Of the figures."""

    @classmethod
    def draw(cls, n: int, seed: int) -> "Data":
        """Draw about `n` images."""
        drawn = figures(n, seed, SIZE)
        own = drawn.labels == 1
        others = shapes(int(own.sum()), seed, SIZE).images
        labels = torch.arange(2).flip(0).repeat_interleave(len(others))
        images = torch.cat([drawn.images[own], others])
        return cls(images, labels, drawn.parts[own], drawn.landmarks[own])


class PartsNet(nn.Module):
    """Three convolutions, of which the last is read and masked, and a head of one more and a linear layer."""

    def __init__(self, mask: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, FILTERS, 3, padding=1),
        )
        self.top, self.mask = nn.ReLU(), mask
        self.head = nn.Sequential(
            nn.Conv2d(FILTERS, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * (CELLS // 2) ** 2, 2),
        )

    def maps(self, images: Tensor) -> Tensor:
        """Return the filters' maps, before any mask."""
        found: Tensor = self.top(self.body(images))
        return found

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mask(self.maps(images)))
        return logits


def train(net: PartsNet, data: Data, epochs: int, seed: int, *, filter_loss: bool) -> None:
    """Train a net; the filter loss's weight starts at a tenth of the task's gradient and falls as one over the epoch."""
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    loss, weight = FilterLoss(FILTERS, CELLS), None
    categories = torch.ones(FILTERS, dtype=torch.long)
    for epoch in range(epochs):
        for part in torch.randperm(len(data.images), generator=generator).split(50):
            labels = data.labels[part]
            with capture(net, ["top"], graph=True) as kept:
                total = cross_entropy(net(data.images[part]), labels)
            if filter_loss:
                filters = loss(kept["top"], labels, categories).sum()
                if weight is None:
                    weight = balancing_weight(total, filters, kept["top"])
                total = total + weight / (epoch + 1) * filters
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    net.eval()


def judge(variant: str, seed: int, net: PartsNet, data: Data) -> Outcome:
    """Read a trained net on new images."""
    with torch.no_grad():
        logits, maps = net(data.images), net.maps(data.images)[data.labels == 1]
    geometry = Geometry.tiles((CELLS, CELLS), (SIZE, SIZE))
    living = maps.amax((0, 2, 3)) > 0
    hits = part_interpretability(maps[:, living], data.parts, geometry, q=ACTIVE)
    moves = location_instability(maps[:, living], data.landmarks, geometry)
    return Outcome(
        variant,
        seed,
        float((logits.argmax(1) == data.labels).double().mean()),
        float(cross_entropy(logits, data.labels)),
        float(hits.amax(1).mean()),
        float(moves.mean()),
        int((~living).sum()),
    )


def run(examples: int, epochs: int, seeds: int) -> tuple[list[Outcome], dict[str, PartsNet], Data]:
    """Train and judge every variant from the same start, for some seeds; the nets are those of the last."""
    found, nets = [], {}
    for seed in range(2, seeds + 2):
        old, new = Data.draw(examples, 2 * seed), Data.draw(examples, 2 * seed + 1)
        torch.manual_seed(seed)
        start = PartsNet(nn.Identity()).state_dict()
        for variant, (masked, filter_loss) in VARIANTS.items():
            net = PartsNet(FilterMask(CELLS) if masked else nn.Identity())
            net.load_state_dict(start)
            train(net, old, epochs, seed, filter_loss=filter_loss)
            found.append(judge(variant, seed, net, new))
            nets[variant] = net
    return found, nets, new


def draw(found: list[Outcome], nets: dict[str, PartsNet], data: Data, stem: Path) -> None:
    """Draw the two metrics for each seed, and where a filter peaks in some figures, plain and with mask and loss."""
    shown, filters = 6, {}
    with torch.no_grad():
        for variant in ("plain", "both"):
            maps = nets[variant].maps(data.images[data.labels == 1])
            strongest = maps.amax((2, 3)).mean(0).argmax()
            filters[variant] = maps[:shown, strongest]
    with style():
        figure = new_figure(FULL_WIDTH, 2.9)
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
        axes = left.subplots(1, 2)
        metrics = (
            ("part_hits", "share of figures in which\na filter hits its part"),
            ("instability", "location instability\n(share of the diagonal)"),
        )
        for ax, (name, label) in zip(axes, metrics, strict=True):
            for k, variant in enumerate(VARIANTS):
                values = [getattr(o, name) for o in found if o.variant == variant]
                ax.plot([k] * len(values), values, MARKERS[k], color=PALETTE[k], ms=4, alpha=0.7)
                ax.plot([k - 0.25, k + 0.25], [fmean(values)] * 2, color=INK, lw=1)
            ax.set_xticks(range(len(VARIANTS)), list(VARIANTS), rotation=45)
            ax.set(
                ylim=(0, 1.1 * max(getattr(o, name) for o in found)),
                xlim=(-0.5, len(VARIANTS) - 0.5),
            )
            ax.set_title(label, loc="left", fontsize=7)
        pictures = data.images[data.labels == 1]
        for part, (variant, maps) in zip(right.subfigures(2, 1), filters.items(), strict=True):
            name = "mask and loss" if variant == "both" else variant
            part.suptitle(f"{name}: where its strongest filter peaks", x=0.02, ha="left", fontsize=7)
            for i, ax in enumerate(part.subplots(1, shown)):
                ax.imshow(pictures[i, 0].numpy(), cmap="gray", vmin=0, vmax=1)
                place = np.unravel_index(int(maps[i].argmax()), (CELLS, CELLS))
                y, x = ((p + 0.5) * SIZE / CELLS - 0.5 for p in place)
                ax.plot(x, y, "o", mfc="none", mec=PALETTE[1], mew=1.2, ms=8)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_anchor("N")
        save_figure(figure, stem)


def main(arguments: list[str] | None = None) -> list[Outcome]:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for outcomes.json and the figure")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    parsed = parser.parse_args(arguments)
    found, nets, data = run(100, 2, 1) if parsed.tiny else run(800, 8, 3)
    names = ("accuracy", "cross_entropy", "part_hits", "instability", "dead")
    table = Table("variant", *(name.replace("_", " ") for name in names))
    for variant in VARIANTS:
        mine = [o for o in found if o.variant == variant]
        table.add_row(variant, *(cell([float(getattr(o, n)) for o in mine]) for n in names))
    Console(width=120).print(table)
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps([asdict(o) for o in found], indent=1)
        (parsed.out / "outcomes.json").write_text(text + "\n", encoding="utf-8")
        draw(found, nets, data, parsed.out / "interpretable")
    return found


def cell(values: list[float]) -> str:
    """Return mean and standard deviation over seeds."""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
