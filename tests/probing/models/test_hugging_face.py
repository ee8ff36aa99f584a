"""Models of transformers from a folder: what comes with them, what is refused, and the command line on them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import probing as pb
from concepts.cli import app
from probing.attribution.base import Attribution
from probing.core import packages
from probing.core.content_ids import content_id
from probing.core.inputs import Inputs
from probing.models.hugging_face import HubReferenceError, TextTokens
from probing.models.weights import WeightsError

WORDS = ["[PAD]", "[UNK]", "the", "film", "was", "dull", "bad", "good", "fine", "play"]
TEXTS = ["the film was dull", "the play was good and fine", "bad"]


def _bert() -> BertConfig:
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    config.id2label = {0: "blame", 1: "praise", 2: "neither"}
    return config


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny classifier of texts."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertForSequenceClassification(_bert()).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny classifier of pictures."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_a_folder_brings_model_tokeniser_and_classes(texts: Path, tmp_path: Path) -> None:
    loaded = pb.load(f"hf:{texts}")
    assert loaded.classes == ("blame", "praise", "neither")
    assert loaded.weights == f"safetensors of {texts}"
    assert not loaded.model.training
    examples = pb.examples(TEXTS, loaded.preprocess)
    batch = examples.load([0, 1, 2])
    assert isinstance(batch, Inputs)
    assert batch.tensors["attention_mask"].sum(1).tolist() == [4, 6, 1]
    assert batch.tokens[0] == ("the", " film", " was", " dull", "", "")
    assert batch.tokens[1][4] == " [UNK]"
    found = pb.IntegratedGradients()(loaded, batch, target="praise")
    assert found.values.shape == (3, 6, 8)
    own = BertForSequenceClassification.from_pretrained(texts).eval()
    with torch.no_grad():
        torch.testing.assert_close(found.score, own(**batch.tensors).logits[:, 1])
    assert "film" in found.text_html(0)
    assert "PAD" not in found.text_html(0)
    found.save(tmp_path / "map")
    again = Attribution.load(tmp_path / "map")
    assert again.tokens == found.tokens
    assert again.parts()["input_ids"].shape == found.values.shape


def test_preprocessing_is_named_by_its_content(texts: Path, tmp_path: Path) -> None:
    first = pb.load(f"hf:{texts}").preprocess
    moved = shutil.copytree(texts, tmp_path / "elsewhere")
    second = pb.load(f"hf:{moved}").preprocess
    assert content_id(first) == content_id(second)
    assert isinstance(first, TextTokens)
    first("the film")  # what it was asked is no part of it
    assert content_id(first) == content_id(second)
    made_again = TextTokens.__new__(TextTokens)
    made_again.__setstate__(first.__getstate__())
    assert content_id(made_again) == content_id(first)
    assert torch.equal(made_again("the film").tensors["input_ids"], first("the film").tensors["input_ids"])
    settings = json.loads((moved / "tokenizer.json").read_text())
    settings["model"]["vocab"] |= {"film": 9, "play": 3}
    (moved / "tokenizer.json").write_text(json.dumps(settings))
    assert content_id(pb.load(f"hf:{moved}").preprocess) != content_id(first)


def test_pictures_are_prepared_by_the_models_own_processor(pictures: Path) -> None:
    loaded = pb.load(f"hf:{pictures}")
    assert loaded.classes == ()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    own = ViTImageProcessor.from_pretrained(pictures)(picture, return_tensors="pt")["pixel_values"]
    batch = pb.examples([picture], loaded.preprocess).load([0])
    assert isinstance(batch, torch.Tensor)
    torch.testing.assert_close(batch, own)
    assert pb.GradCAM()(loaded, batch, target=1).layout.startswith("4 x 4 cells, tokens")
    names = [row.path for row in pb.summarize(loaded, batch)]
    [layer] = [n for n in names if n.endswith(("0.attention[1]", "0.attention.attention[1]"))][:1]
    shares = pb.ActivationStore(progress=False).activations(loaded, [layer], batch)[layer]
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2, 17))


def test_what_is_no_model_is_refused_in_a_sentence(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubReferenceError, match=r"hf:.*could not be loaded.*save_pretrained has written"):
        pb.load(f"hf:{tmp_path}")
    bare = tmp_path / "bare"
    torch.manual_seed(0)
    BertModel(_bert()).save_pretrained(bare)
    assert pb.load(f"hf:{bare}").transform is None
    config = json.loads((bare / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"lack 2 tensors.*'classifier\.bias', which would be random"):
        pb.load(f"hf:{bare}")
    assert pb.load(f"hf:{bare}", weights="random").weights == "random, seed 0"
    config["architectures"] = ["NovelForSequenceClassification"]
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(HubReferenceError, match=r"is a NovelFor.*code that comes with a model is not run"):
        pb.load(f"hf:{bare}")
    pickled = shutil.copytree(texts, tmp_path / "pickled")
    torch.save(BertForSequenceClassification(_bert()).state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights of hf:.*could not be loaded.*with safetensors"):
        pb.load(f"hf:{pickled}")

    def absent(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(packages.importlib, "import_module", absent)
    with pytest.raises(packages.PackageMissingError, match=r"^the package 'transformers' .*pip install 'probing-concepts\["):
        pb.load(f"hf:{texts}")


def test_the_command_line_reads_a_folder(
    texts: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app.main(["layers", f"hf:{texts}", "bert.encoder.layer.?"]) == 0
    assert "bert.encoder.layer.1" in capsys.readouterr().out
    out = tmp_path / "words"
    line = ["attribute", f"hf:{texts}", "--text", TEXTS[0], "--target", "praise", "--out", str(out), "--device", "cpu"]
    assert app.main([*line, "--method", "ig", "--method", "lrp"]) == 0
    said = capsys.readouterr().out
    assert "film" in said
    assert "praise, logit" in said
    assert (out / "ig.html").exists()
    assert (out / "lrp.png").exists()
    assert Attribution.load(out / "ig").tokens == (("the", " film", " was", " dull"),)
    assert app.main(["attribute", f"hf:{pictures}", "--text", "a", "--method", "ig", "--out", str(out)]) == 2
    assert "takes no texts" in capsys.readouterr().err

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, tone in (("dark", 60), ("light", 190), ("inputs", 120), ("random", 128)):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = rng.normal(tone, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    tcav = ["tcav", f"hf:{pictures}", "--concept", "dark=dark", "--layer", "vit.layernorm", "--device", "cpu"]
    assert app.main([*tcav, "--target", "1", "--inputs", "inputs", "--random", "random", "--out", "found"]) == 0
