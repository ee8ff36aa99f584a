"""Models of transformers, by their name on the hub or from a folder: weights, preprocessing, and names of classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import MASK, Inputs
from probing.core.packages import require
from probing.models.weights import WeightsError

_MOST_TOKENS = 100_000  # what the library calls no limit is larger


class HubReferenceError(ProbingError, LookupError):
    """A name or folder holds no model of transformers that can be loaded."""


@dataclass(frozen=True, eq=False)
class TextTokens:
    """From a text to its token ids and a mask, one row, as a model's own tokeniser makes them; named by its content.

    Attributes:
        tokenizer: of transformers.
        names: of what the model takes of it.
        most: tokens that are kept of a text; None for all.
    """

    tokenizer: Any  # the library's classes have no common type
    names: tuple[str, ...]
    most: int | None = None

    @property
    def pad_token_id(self) -> int:
        """The token id that stands for padding."""
        return int(self.tokenizer.pad_token_id or 0)

    def __call__(self, text: str) -> Inputs:
        """Return the token ids of a text."""
        cut = {} if self.most is None else {"truncation": True, "max_length": self.most}
        found = self.tokenizer(text, return_tensors="pt", **cut)
        ids = found["input_ids"]
        tensors = {MASK: torch.ones_like(ids), **found}
        return Inputs(
            {n: tensors[n] for n in self.names if n in tensors}, tokens=(self._shown(text, found, ids[0].tolist()),)
        )

    def _shown(self, text: str, found: Any, ids: list[int]) -> tuple[str, ...]:
        """Return tokens as they stand in the text, with the gap before each; what stands for none there by its own name."""
        names = self.tokenizer.convert_ids_to_tokens(ids)
        if not getattr(self.tokenizer, "is_fast", False):
            return tuple(names)
        own, shown, end, apart = set(self.tokenizer.all_special_ids), list[str](), 0, False
        for i, (token, name) in enumerate(zip(ids, names, strict=True)):
            span = found.token_to_chars(0, i)
            start, stop = (end, end) if span is None else (span.start, span.end)
            gap = text[end:start] or (" " if shown and (apart or token in own) else "")
            shown.append(gap + (name if token in own or stop == start else text[start:stop]))
            end, apart = max(end, stop), token in own
        return tuple(shown)

    def __getstate__(self) -> dict[str, object]:
        """Return what it does, by which it is named; not where its files lie."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = self.tokenizer if backend is None else _without_limits(backend.to_str())
        special = {name: str(token) for name, token in self.tokenizer.special_tokens_map.items() if isinstance(token, str)}
        sides = {name: getattr(self.tokenizer, name) for name in ("padding_side", "truncation_side")}
        return {"content": content, "special": {**special, **sides}, "names": self.names, "most": self.most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        content = state["content"]
        if isinstance(content, str):
            backend = require("tokenizers").Tokenizer.from_str(content)
            content = require("transformers").PreTrainedTokenizerFast(tokenizer_object=backend, **state["special"])
        for name, value in (("tokenizer", content), ("names", state["names"]), ("most", state["most"])):
            object.__setattr__(self, name, value)


def _without_limits(content: str) -> str:
    """Return a tokeniser's own description without what the last call has asked of it."""
    settings = {name: value for name, value in json.loads(content).items() if name not in {"truncation", "padding"}}
    return json.dumps(settings)


@dataclass(frozen=True, eq=False)
class PictureProcessor:
    """From a picture to model space, as a model's own image processor does it; named by its content.

    Attributes:
        processor: of transformers.
    """

    processor: Any

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return the pixels of a picture, `[c, h, w]`."""
        return cast("Tensor", self.processor(picture, return_tensors="pt")["pixel_values"][0])

    def __getstate__(self) -> dict[str, object]:
        """Return what it does, by which it is named; not where its files lie."""
        return {"kind": type(self.processor).__name__, "settings": self.processor.to_json_string()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kind = getattr(require("transformers"), state["kind"])
        object.__setattr__(self, "processor", kind.from_dict(json.loads(state["settings"])))


@dataclass(frozen=True)
class FromHub:
    """A model with what came with it."""

    model: nn.Module
    preprocess: TextTokens | PictureProcessor | None
    classes: tuple[str, ...]
    weights: str


def from_hub(name: str, *, random: bool = False) -> FromHub:
    """Return a model of transformers, of the class that its configuration names.

    Weights are safetensors, in float32; no code is run that comes with a model; a folder is read without the network.
    Attention is computed by plain operations, so that its probabilities can be read. A GGUF file is read by the library's
    own loader, which needs gguf and accelerate: what was quantised is brought to float32, and rows of queries and keys,
    which such files permute, to the library's order.

    Args:
        name: a folder that `save_pretrained` has written, a name on the hub, or a file that ends in `.gguf`.
        random: whether the weights are drawn, and none are read.

    Raises:
        HubReferenceError: if there is no such model, or it needs code of its own.
        WeightsError: if weights are missing, or are no safetensors.
        PackageMissingError: without transformers.
    """
    library = require("transformers")
    place, file = Path(name), {}
    if place.suffix == ".gguf":
        for package in ("gguf", "accelerate"):
            require(package)
        place, file = place.parent, {"gguf_file": place.name}
    whole, name = name, str(place) if file else name
    local = {**file, **({"local_files_only": True} if place.is_dir() else {})}
    with _told(library, f"hf:{name}", HubReferenceError):
        config = library.AutoConfig.from_pretrained(name, trust_remote_code=False, **local)
    kind = _language_model(library, whole, config) if file else _class_of(library, name, config)
    config.use_cache = False  # keys and values of earlier tokens are nothing that is read
    how = {"attn_implementation": "eager", "dtype": torch.float32}
    with _told(library, f"the weights of hf:{name}", WeightsError):
        if random:
            model = kind._from_config(config, **how)
            missing: list[str] = []
        else:
            model, told = kind.from_pretrained(
                name, config=config, use_safetensors=not file, output_loading_info=True, **how, **local
            )
            missing = sorted(told["missing_keys"])
    if missing:
        raise WeightsError(
            f"the weights of 'hf:{name}' lack {len(missing)} tensors of {kind.__name__}, such as {missing[0]!r}, which "
            "would be random: name a model that was trained for its task, or give weights='random'."
        )
    commit = getattr(config, "_commit_hash", None)
    said = f"{'GGUF' if file else 'safetensors'} of {whole}" + (f" at {commit}" if commit else "")
    return FromHub(model, _preprocess(library, name, model, local), _classes(kind, config), said)


def _class_of(library: Any, name: str, config: Any) -> Any:
    """Return the class that a configuration names."""
    [architecture] = (config.architectures or [""])[:1]
    kind = getattr(library, architecture, None) if architecture else library.AutoModel
    if kind is None:
        raise HubReferenceError(
            f"'hf:{name}' is a {architecture}, which transformers {library.__version__} does not know, and code that comes "
            "with a model is not run: import it yourself in a function, and name that as package.module:function."
        )
    if kind is library.AutoModel:
        kind = library.MODEL_MAPPING.get(type(config), None)
        if kind is None:
            raise HubReferenceError(f"'hf:{name}' is of the type {config.model_type!r}, of which there is no plain model.")
    return kind


def _language_model(library: Any, name: str, config: Any) -> Any:
    """Return the class that continues texts, which is what GGUF files hold; they name none."""
    kind = library.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise HubReferenceError(f"'hf:{name}' is of the type {config.model_type!r}, of which no model continues texts.")
    return kind


def _classes(kind: Any, config: Any) -> tuple[str, ...]:
    """Return the names of a classifier's classes, unless they are mere numbers."""
    labels = dict(getattr(config, "id2label", None) or {})
    if "Classification" not in kind.__name__ or not labels:
        return ()
    names = tuple(str(labels[i]) for i in sorted(labels))
    return () if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _preprocess(library: Any, name: str, model: nn.Module, local: dict[str, Any]) -> TextTokens | PictureProcessor | None:
    """Return how a model's inputs are made, if its files tell; None where there are none, or several kinds of input."""
    taken = signature(model.forward).parameters
    tokenizer = processor = None
    if "input_ids" in taken:
        tokenizer = _or_none(library.AutoTokenizer, name, local)
        if tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_tokens):
            tokenizer = None  # the library makes one without words where there is no file
    if "pixel_values" in taken:
        processor = _or_none(library.AutoImageProcessor, name, local)
    if (tokenizer is None) == (processor is None):
        return None
    if processor is not None:
        return PictureProcessor(processor)
    assert tokenizer is not None
    names = tuple(
        n for n in ("input_ids", MASK, "token_type_ids") if n in taken and n in {*tokenizer.model_input_names, MASK}
    )
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS]
    most = min(limits)
    return TextTokens(tokenizer, names, most if most < _MOST_TOKENS else None)


def _or_none(maker: Any, name: str, local: dict[str, Any]) -> Any:
    try:
        return maker.from_pretrained(name, trust_remote_code=False, **local)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError):  # what a model came without
        return None


@contextmanager
def _told(library: Any, what: str, kind: type[ProbingError]) -> Iterator[None]:
    """Turn what the library says of a missing or unfit file into one sentence, without its bars and notes."""
    logs = library.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, ProbingError):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise kind(
            f"{what} could not be loaded: {reason}. A folder must be one that save_pretrained has written, with safetensors."
        ) from error
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
