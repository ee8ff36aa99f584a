"""Models of open_clip: the towers equal the library's own, a picture's map is of its likeness to a text."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import probing as pb
from concepts.discovery.naming import Strengths
from probing.core import packages
from probing.data.images import Preprocess
from probing.models import Similarity
from probing.models.open_clip import ClipFolderError
from probing.models.weights import WeightsError

open_clip = pytest.importorskip("open_clip")

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"},
}
WORDS = ["a photo of a cat", "two dogs", "snow"]


def written(folder: Path, **preprocess: object) -> nn.Module:
    """Write a folder of open_clip with random weights, and return the model."""
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, "preprocess_cfg": {**CONFIG["preprocess_cfg"], **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    made: nn.Module = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file({name: tensor.contiguous() for name, tensor in made.state_dict().items()}, folder / "model.safetensors")
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    written(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Any:
    return written(folder)


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_towers_and_preprocessing_are_the_librarys(folder: Path, clip: Any) -> None:
    loaded = pb.load(f"open_clip:{folder}")
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image = picture((50, 40))
    ours = loaded.preprocess(image)
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-6)
    batch = torch.randn(2, 3, 32, 32)
    assert loaded.text_embeddings is not None
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(batch), clip.encode_image(batch))
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(WORDS)
        torch.testing.assert_close(loaded.text_embeddings(WORDS), clip.encode_text(tokens))
    assert loaded.weights == f"model.safetensors of {folder}"


@pytest.mark.parametrize(("mode", "plain"), [("shortest", True), ("squash", True), ("longest", False)])
def test_each_way_of_resizing_is_the_librarys(tmp_path: Path, mode: str, plain: bool) -> None:
    written(tmp_path, resize_mode=mode)
    ours = pb.load(f"open_clip:{tmp_path}").preprocess
    _, theirs = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path}")
    image = picture((61, 40))
    assert isinstance(ours, Preprocess) == plain
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-6)


def test_a_map_is_of_the_likeness_to_a_text(folder: Path, clip: Any) -> None:
    loaded = pb.load(f"open_clip:{folder}")
    assert loaded.text_embeddings is not None
    cat = Similarity(loaded.text_embeddings(WORDS)[0], label=WORDS[0])
    batch = torch.randn(2, 3, 32, 32)
    gradients = pb.GradientTimesInput()(loaded, batch, cat)
    at = batch.clone().requires_grad_()
    text = clip.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(WORDS[:1])).detach()
    likeness = torch.nn.functional.cosine_similarity(clip.encode_image(at), text)
    (slope,) = torch.autograd.grad(likeness.sum(), at)
    torch.testing.assert_close(gradients.score, likeness.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients.values, slope * batch, rtol=0, atol=1e-5)
    assert gradients.unit == "cosine"


def test_names_of_atoms_are_held_against_its_space(folder: Path, clip: Any) -> None:
    loaded = pb.load(f"open_clip:{folder}")
    assert loaded.text_embeddings is not None
    pictures = torch.randn(5, 3, 32, 32)
    found = Strengths.of_texts(pictures, WORDS, loaded.model, loaded.text_embeddings)
    with torch.no_grad():
        unit = [nn.functional.normalize(x, dim=1) for x in (clip.encode_image(pictures), loaded.text_embeddings(WORDS))]
    torch.testing.assert_close(found.values.float(), unit[0] @ unit[1].mT, rtol=0, atol=1e-5)


def test_what_can_not_be_loaded_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClipFolderError, match=r"must be a folder that holds open_clip_config\.json"):
        pb.load("open_clip:ViT-B-32")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds no safetensors"):
        pb.load(f"open_clip:{tmp_path}")
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="could not be loaded"):
        pb.load(f"open_clip:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ClipFolderError, match="could not be loaded: "):
        pb.load(f"open_clip:{tmp_path}")
    first, second = (pb.load(f"open_clip:{folder}", weights="random", seed=seed) for seed in (1, 2))
    batch = torch.randn(1, 3, 32, 32)
    assert not torch.equal(first.model(batch), second.model(batch))

    def missing(module: str) -> object:
        raise ModuleNotFoundError(module, name=module)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(packages.PackageMissingError, match=r"pip install 'probing-concepts\[clip\]'$"):
        pb.load(f"open_clip:{folder}")
