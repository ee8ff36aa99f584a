"""Models of open_clip out of a folder: the picture tower as the model, and texts in the same space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.packages import require
from probing.data.examples import Transform
from probing.data.images import Preprocess
from probing.models.weights import WeightsError

_CONFIG = "open_clip_config.json"
_WEIGHTS = {"open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"}
_TOWERS = {"CLIP", "CustomTextCLIP"}  # of which a picture's embedding is what the picture tower returns


class ClipFolderError(ProbingError, LookupError):
    """A folder holds no model of open_clip that can be loaded."""


@dataclass(frozen=True, eq=False)
class ClipTexts:
    """From texts into the space that pictures are in: `[n, features]`, not normalised, as the text tower has them."""

    clip: nn.Module
    tokenizer: Callable[[list[str]], Tensor]

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n features"]:
        """Return the embedding of each text."""
        tower: Any = self.clip
        where = next(tower.parameters()).device
        with torch.no_grad():
            found: Tensor = tower.encode_text(self.tokenizer(list(texts)).to(where))
        return found


@dataclass(frozen=True, eq=False)
class FromFolder:
    """A picture tower with what came with it."""

    model: nn.Module
    preprocess: Transform
    texts: ClipTexts
    weights: str


def from_folder(folder: str, *, random: bool = False) -> FromFolder:
    """Return a model of open_clip from a folder that holds `open_clip_config.json` and safetensors; no network is used.

    Args:
        folder: as downloaded from a hub, or written by open_clip's `push_to_hf_hub` and `save_for_hf`.
        random: whether the weights are drawn, and none are read.

    Raises:
        ClipFolderError: if there is no such folder, or its configuration is unfit.
        WeightsError: if there are no safetensors, or they do not fit.
        PackageMissingError: without open_clip.
    """
    library = require("open_clip")
    place = Path(folder)
    if not (place / _CONFIG).is_file():
        raise ClipFolderError(f"'open_clip:{folder}' must be a folder that holds {_CONFIG} and safetensors.")
    files = sorted(place.glob("*.safetensors"), key=lambda file: (file.name not in _WEIGHTS, file.name))
    if not random and not files:
        raise WeightsError(f"'open_clip:{folder}' holds no safetensors: other files of weights may run code.")
    name = f"local-dir:{place}"
    try:
        # Weights are read here, since the library would prefer some files that are no safetensors.
        clip = library.create_model(name, load_weights=False, pretrained_text=False).eval()
        tokenizer = library.get_tokenizer(name)
        if not random:
            library.load_checkpoint(clip, str(files[0]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ClipFolderError(f"'open_clip:{folder}' could not be loaded: {reason}.") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise WeightsError(f"the weights of 'open_clip:{folder}' could not be loaded: {reason}.") from error
    if type(clip).__name__ not in _TOWERS:
        raise ClipFolderError(
            f"'open_clip:{folder}' is a {type(clip).__name__}, whose picture tower does not return the embedding alone: "
            "wrap what you want to explain in a function, and name that as package.module:function."
        )
    said = "random" if random else f"{files[0].name} of {folder}"
    return FromFolder(clip.visual, _preprocess(library, clip.visual.preprocess_cfg), ClipTexts(clip, tokenizer), said)


def _preprocess(library: Any, config: dict[str, Any]) -> Transform:
    size, how = config["size"], config["interpolation"]
    height, width = (size, size) if isinstance(size, int) else size
    plain = height == width and how in {"bilinear", "bicubic", "nearest"} and config["mode"] == "RGB"
    if not plain or config["resize_mode"] not in {"shortest", "squash"}:
        settings = library.transform.PreprocessCfg(**config)
        made: Transform = library.transform.image_transform_v2(settings, is_train=False)
        return made
    return Preprocess(
        size=height,
        resize=height if config["resize_mode"] == "shortest" else None,
        interpolation=how,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
