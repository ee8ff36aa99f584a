"""Results of an audit that never ran, with numbers from a seed, for figures and the report."""

from pathlib import Path

import numpy as np
from PIL import Image

from concepts.results import (
    AuditResults,
    Backdrop,
    CellRow,
    ConceptInfo,
    LayerRow,
    LikenessRow,
    PickedRow,
    PositionRow,
    SwapRow,
    TargetInfo,
)

LAYERS = ("blocks.2", "blocks.4", "blocks.5", "blocks.6")
TARGETS = ("bikini", "purse", "lipstick", "apron", "ballplayer", "power drill", "suit", "toaster")
# By layer: how closely the made-up effect follows the made-up swap.
_FOLLOWS = {"blocks.2": -0.3, "blocks.4": 0.5, "blocks.5": 0.9, "blocks.6": 0.97}


def contrast(name: str = "woman against man") -> ConceptInfo:
    positive, negative = name.split(" against ")
    return ConceptInfo(name, positive, negative, True, 150, 150, 25, 72, 78, 9999, False)


def control(name: str = "red") -> ConceptInfo:
    return ConceptInfo(name, name, "random images", False, 60, 160, 60, 40, 20, 0, False)


def results(targets: tuple[str, ...] = TARGETS, seed: int = 0) -> AuditResults:
    """Return results in which the swap is followed by deep layers and not by early ones."""
    rng = np.random.default_rng(seed)
    concepts = (contrast(), contrast("dark against light"), control())
    swap = {(c.name, t): float(rng.normal(0, 0.4)) for c in concepts for t in targets}
    cells, layers = [], []
    for c in concepts:
        for layer in LAYERS:
            found = [_cell(c, layer, t, swap[c.name, t], rng) for t in targets]
            cells += found
            layers.append(_layer(c, layer, found, [swap[c.name, t] for t in targets]))
    return AuditResults(
        name="made-up",
        title="A made-up audit",
        question="Do logits move with what is drawn?",
        model="timm:tf_efficientnet_lite0",
        weights="none",
        layers=LAYERS,
        level=0.95,
        alpha=0.05,
        trust=0.5,
        cluster_by="role",
        fitted_on=("pilot", "farmer"),
        judged_on=("cook", "student"),
        divisions=200,
        pseudo_concepts=199,
        inputs="neutral figures",
        input_count=75,
        judged_inputs=39,
        targets=tuple(_target(i, t) for i, t in enumerate(targets)),
        concepts=concepts,
        layer_rows=tuple(layers),
        cells=tuple(cells),
        swaps=tuple(_swap(c, t, swap[c.name, t]) for c in concepts if c.matched for t in targets),
        backdrops=tuple(Backdrop(c.name, 1000, -0.5, 0.0, 0.5) for c in concepts if c.matched),
        picked=(PickedRow(concepts[0].name, "whistle", 902, -1.1, -0.9, -1.2, -0.6, 0.001, 0.004),),
        likeness=tuple(row for c in concepts for row in _likeness(c.name)),
        positions=tuple(_positions(concepts[0].name, rng)),
        sources=(("Drawings", "made up"),),
        limits=("The drawings are made up.",),
    )


def _target(index: int, name: str) -> TargetInfo:
    group = "stereotype" if index % 2 == 0 else "control"
    expected = {"woman against man": "up"} if index == 0 else {}
    return TargetInfo(name, index, group, f"the reason for {name}", expected)


def _cell(
    c: ConceptInfo, layer: str, target: str, swap: float, rng: np.random.Generator
) -> CellRow:
    r = _FOLLOWS[layer]
    effect = r * swap + 0.4 * (1 - r * r) ** 0.5 * float(rng.normal())
    tcav = float(np.clip(0.5 + effect, 0, 1))
    p = float(np.clip(0.4 - abs(effect), 1e-4, 1))
    spread = (effect - 0.15, effect + 0.15, p / 8, p)
    return CellRow(
        c.name, layer, target, tcav, tcav - 0.1, tcav + 0.1, 0.2, 1.0, 0.0, effect, *spread
    )


def _layer(c: ConceptInfo, layer: str, cells: list[CellRow], swap: list[float]) -> LayerRow:
    accuracy = 0.7 + 0.1 * LAYERS.index(layer) - 0.02
    ends = (accuracy - 0.06, min(1.0, accuracy + 0.06))
    plain = (c.name, layer, accuracy, *ends, 0.001, 0.6, False)
    if not c.matched:
        return LayerRow(*plain)
    r = float(np.corrcoef([cell.effect for cell in cells], swap)[0, 1]) if len(swap) > 1 else None
    if r is None:
        return LayerRow(*plain)
    low, high = (float(np.tanh(np.arctanh(r) + side * 0.6)) for side in (-1, 1))
    return LayerRow(*plain, r, low, high, r - 0.2, r + 0.05, 0.9, len(swap) - 1, low >= 0.5)


def _swap(c: ConceptInfo, target: str, swap: float) -> SwapRow:
    p = 0.001 if abs(swap) > 0.2 else 0.4
    return SwapRow(c.name, target, swap, swap - 0.15, swap + 0.15, p, min(1.0, 8 * p), 0.1)


def _likeness(concept: str) -> list[LikenessRow]:
    return [
        LikenessRow(concept, "blocks.6", among, side, f"{k}.png", f"image {k}", 0.4 - 0.1 * k)
        for among in ("neutral figures", "other drawings")
        for side in ("most", "least")
        for k in range(6)
    ]


def _positions(concept: str, rng: np.random.Generator) -> list[PositionRow]:
    return [
        PositionRow(
            concept, "blocks.6", cluster, f"tone {k}", float(rng.normal(0.2 * i - 0.5, 0.2))
        )
        for i, cluster in enumerate(("cook", "student", "singer", "artist"))
        for k in range(6)
    ]


def save_pictures(folder: Path) -> None:
    """Write the pictures that the made-up rows name."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(6):
        Image.new("RGB", (24, 24), (40 * k, 120, 255 - 40 * k)).save(folder / f"{k}.png")
