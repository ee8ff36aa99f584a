"""Results of an audit that never ran, for figures and the report; and a small audit of a bias that was planted."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from concepts.auditing.measurement.results import (
    AuditResults,
    Backdrop,
    CellRow,
    ConceptInfo,
    LayerRow,
    LikenessRow,
    PairRow,
    PickedRow,
    PositionRow,
    SwapRow,
    TargetInfo,
)
from probing.data.images import Preprocess
from probing.models.loading import LoadedModel
from probing.results.html_report import Finding

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
        pairs=tuple(PairRow(c.name, "cook", "0.png", "1.png") for c in concepts if c.matched),
    )


def _target(index: int, name: str) -> TargetInfo:
    group = "stereotype" if index % 2 == 0 else "control"
    expected = {"woman against man": "up"} if index == 0 else {}
    return TargetInfo(name, index, group, f"the reason for {name}", expected)


def _cell(c: ConceptInfo, layer: str, target: str, swap: float, rng: np.random.Generator) -> CellRow:
    r = _FOLLOWS[layer]
    effect = r * swap + 0.4 * (1 - r * r) ** 0.5 * float(rng.normal())
    tcav = float(np.clip(0.5 + effect, 0, 1))
    p = float(np.clip(0.4 - abs(effect), 1e-4, 1))
    spread = (effect - 0.15, effect + 0.15, p / 8, p)
    return CellRow(c.name, layer, target, tcav, tcav - 0.1, tcav + 0.1, 0.2, 1.0, 0.0, effect, *spread)


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
        PositionRow(concept, "blocks.6", cluster, f"tone {k}", float(rng.normal(0.2 * i - 0.5, 0.2)))
        for i, cluster in enumerate(("cook", "student", "singer", "artist"))
        for k in range(6)
    ]


def save_pictures(folder: Path) -> None:
    """Write the pictures that the made-up rows name."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(6):
        Image.new("RGB", (24, 24), (40 * k, 120, 255 - 40 * k)).save(folder / f"{k}.png")


def said(found: Sequence[Finding]) -> list[Finding]:
    """Return findings and all that they sum up."""
    return [f for finding in found for f in (finding, *said(finding.parts))]


class PlantedNet(nn.Module):
    """Logits of which some read what a swap changes and others do not.

    `features` copies red, green and blue; `mix` keeps their positive parts. Class `purse` rises with red, `drill` falls
    with it, `laptop` rises half as much, and `vase`, `kettle` and `clock` read green and blue alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.mix = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 6, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None])
            weights = [[4, 0, 0], [-4, 0, 1], [2, 1, 0], [0, 3, 0], [0, 0, 3], [0, 2, 2]]
            self.head.weight.copy_(torch.tensor(weights, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.mix(self.features(x))).flatten(1))


CLASSES = ("purse", "drill", "laptop", "vase", "kettle", "clock")


def planted() -> LoadedModel:
    """Return the planted net, by the reference `audits:planted`."""
    plain = Preprocess(size=8, resize=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return LoadedModel(PlantedNet().eval(), transform=plain, classes=CLASSES)


def hostile() -> LoadedModel:
    """Return the planted net with classes called so as to break a page."""
    return replace(planted(), classes=("<script>alert(1)</script>", "$x_1$ & </svg>", *CLASSES[2:]))


def write_drawings(folder: Path, roles: int = 10, seed: int = 0) -> None:
    """Write `data.yaml` and `others.yaml`: figures in which gender shows in red and nothing else, and random pictures."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for role in range(roles):
        base = rng.uniform(60, 180, 3)
        for tone, shade in (("light", 12), ("dark", -12)):
            ground = base + shade * np.array([0, 1, 0]) + rng.normal(0, 2, 3)
            for gender, red in (("woman", 30), ("man", -30), ("person", 0)):
                colour = ground + np.array([red + rng.normal(0, 6), 0, 0])
                name = f"{role}-{tone}-{gender}.png"
                rows.append([name, _write(folder / name, colour, rng), f"role {role}", gender, tone])
    matched = [
        {"vary": "gender", "within": ["role", "tone"], "cluster": "role"},
        {"vary": "tone", "within": ["role", "gender"], "cluster": "role"},
    ]
    _manifest(folder / "data.yaml", ["file", "sha256", "role", "gender", "tone"], rows, matched)
    others = [f"other-{i}.png" for i in range(45)]
    drawn = [[name, _write(folder / name, rng.uniform(0, 255, 3), rng), name] for name in others]
    _manifest(folder / "others.yaml", ["file", "sha256", "name"], drawn, [])


def _write(path: Path, colour: np.ndarray, rng: np.random.Generator) -> str:
    pixels = colour + rng.normal(0, 3, (8, 8, 3))
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _manifest(path: Path, columns: list[str], rows: list[list[str]], matched: list[object]) -> None:
    images = {"kind": "files", "columns": columns, "rows": rows}
    parts = {
        "name": path.stem,
        "licence": "none",
        "source": "drawn by a test",
        "images": images,
        "matched": matched,
    }
    path.write_text(yaml.safe_dump(parts))


def audit_file(folder: Path, changes: dict[str, object] | None = None, file: str = "audit.yaml") -> Path:
    """Write the drawings and a small audit of them, with some parts changed, and return its file."""
    if not (folder / "data.yaml").exists():
        write_drawings(folder)
    expect = {"purse": "up", "drill": "down"}
    parts: dict[str, object] = {
        "name": "planted",
        "title": "A planted bias",
        "question": "Is it found?",
        "data": "data.yaml",
        "model": {"reference": "audits:planted", "layers": ["features", "mix"]},
        "inputs": {"about": "neutral figures", "where": {"gender": "person"}, "caption": ["role"]},
        "contrasts": [
            {"positive": "woman", "negative": "man", "vary": "gender", "swaps": [["man", "woman"]], "place": True},
            {"positive": "dark", "negative": "light", "vary": "tone", "swaps": [["light", "dark"]]},
        ],
        "concepts": [
            {"kind": "images", "name": "woman", "where": {"gender": "woman"}},
            {"kind": "synthetic", "name": "red", "pattern": "red"},
        ],
        "random": {"data": "others.yaml", "about": "other pictures", "caption": "name", "images": 40, "size": 10},
        "targets": [
            {
                "name": name,
                "group": "stereotype" if name in expect else "control",
                "reason": "planted",
                "expect": {"woman against man": expect[name]} if name in expect else {},
            }
            for name in CLASSES
        ],
        "statistics": {
            "relabellings": 199,
            "bootstraps": 100,
            "pseudo_concepts": 39,
            "runs": 2,
            "divisions": 20,
            "picked": 0,
        },
    }
    path = folder / file
    path.write_text(yaml.safe_dump(parts | (changes or {})))
    return path


def write_folders(folder: Path, reds: dict[str, float], count: int = 24, seed: int = 0) -> None:
    """Write `data.yaml` and a folder of pictures for each concept, which differ by how much red is added."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, red in reds.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            colour = rng.normal(110, 12, 3) + np.array([red, 0, 0])
            file = f"{name}/{i}.png"
            rows.append([file, _write(folder / file, colour, rng), name, f"{name} {i // 2}"])
    _manifest(folder / "data.yaml", ["file", "sha256", "concept", "day"], rows, [])


def unmatched_file(folder: Path, concepts: list[str], changes: dict[str, object] | None = None) -> Path:
    """Write a small audit of concepts that are folders of pictures, with some parts changed, and return its file."""
    parts: dict[str, object] = {
        "name": "folders",
        "title": "Folders of pictures",
        "question": "Which classes lean on which folder?",
        "data": "data.yaml",
        "model": {"reference": "audits:planted", "layers": ["features", "mix"]},
        "inputs": {"about": "pictures", "caption": ["concept"]},
        "concepts": [{"kind": "images", "name": name, "where": {"concept": name}} for name in concepts],
        "targets": [{"name": name, "group": "asked about", "reason": "planted"} for name in CLASSES],
        "statistics": {"relabellings": 199, "bootstraps": 100, "pseudo_concepts": 99, "runs": 2},
    }
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(parts | (changes or {})))
    return path
