"""An audit of so many drawn images in a process of its own: `python memory_worker.py COUNT FOLDER` prints its peak in MB."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import audits
import nets
import numpy as np
import torch
from torch import nn

from concepts.auditing.run import audit
from probing.data.images import Preprocess
from probing.models.loading import LoadedModel

_ROLES, _A_TAKE = 40, 6  # images of a take: three figures in two tones


def wide() -> LoadedModel:
    """Return a network whose maps are much larger than its images."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, len(audits.CLASSES)),
    )
    plain = Preprocess(size=16, resize=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return LoadedModel(nets.seeded(net), transform=plain, classes=audits.CLASSES)


def draw(folder: Path, count: int) -> None:
    """Write figures as `audits.write_drawings` does, of a fixed number of roles, each drawn so many times more."""
    rng, rows = np.random.default_rng(0), []
    audits.write_drawings(folder, roles=1)  # for the random pictures
    for i in range(-(-count // (_ROLES * _A_TAKE)) * _ROLES):
        base = rng.uniform(60, 180, 3)
        for tone, green in (("light", 12), ("dark", -12)):
            for gender, red in (("woman", 30), ("man", -30), ("person", 0)):
                colour = base + np.array([red + rng.normal(0, 6), green, 0])
                name = f"{i}-{tone}-{gender}.png"
                digest = audits._write(folder / name, colour, rng)
                rows.append([name, digest, f"role {i % _ROLES}", str(i // _ROLES), gender, tone])
    within = {"gender": "tone", "tone": "gender"}
    matched = [{"vary": vary, "within": ["role", "take", other], "cluster": "role"} for vary, other in within.items()]
    columns = ["file", "sha256", "role", "take", "gender", "tone"]
    audits._manifest(folder / "data.yaml", columns, rows, matched)


def main(count: int, folder: Path) -> None:
    """Draw the images, audit them and print what it took at its peak."""
    torch.set_num_threads(1)
    draw(folder, count)
    model = {"reference": "memory_worker:wide", "layers": ["1", "3"]}
    file = audits.audit_file(folder, {"model": model, "analyses": ["probes"]})
    audit(file, folder / "out", store_root=folder / "cache", say=lambda _: None)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
