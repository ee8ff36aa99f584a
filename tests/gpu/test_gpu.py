"""What an accelerator computes is what the CPU computes; skipped where there is none."""

from collections.abc import Iterator
from pathlib import Path

import nets
import pytest
import torch
import torchvision
from dissection_nets import named, scenes_of
from methods import TARGETS, made
from torch import Tensor, nn

from concepts.data.concept_sets import Concept
from concepts.data.synthetic import SyntheticImages
from concepts.dissection.dissection import Dissection
from concepts.tcav.sampling import Relabelled
from concepts.tcav.tcav import Tcav
from probing.attribution import METHODS
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.surrogate import Local
from probing.data.examples import TensorExamples
from probing.evaluation.curves import Deletion
from probing.evaluation.randomisation import CascadingRandomisation
from probing.maximization import Channel, Space, maximize
from probing.models import loading
from probing.models.precision import Kind, Precision
from probing.models.runner import Runner
from probing.models.scores import Score
from probing.probes import LayerProbes, SoftmaxProbe
from probing.store.store import ActivationStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS = ["layer2", "layer4"]
KINDS: dict[Kind, float] = {"float32": 1e-4, "tf32": 2e-2, "float64": 1e-9, "fast": 5e-2, "reference": 2e-2}


def trained_scale(device: torch.device = CPU) -> nn.Module:
    """A ResNet-18 at its own initial weights, so that activations keep the size they have in real networks."""
    generator = torch.Generator().manual_seed(0)
    net = torchvision.models.resnet18(weights=None)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                scale = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return net.to(device).eval()


def pictures(count: int, size: int = 64, pattern: str = "plain", seed: int = 0) -> Tensor:
    return SyntheticImages(pattern, count, size, seed).tensor().float() / 127.5 - 1


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.cpu().double()).norm() / expected.double().norm())


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave this process 600 MB of the accelerator's memory."""
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(600e6 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_gradients_are_those_of_the_cpu(kind: Kind) -> None:
    examples = TensorExamples(pictures(12))
    stores = [ActivationStore(device=d, precision=Precision(k), progress=False) for d, k in ((CPU, "float64"), (CUDA, kind))]
    for pool in ("none", "mean"):
        expected, found = (store.read([Score(trained_scale(), 7)], LAYERS, examples, pool=pool) for store in stores)
        for layer in LAYERS:
            assert found.activations[layer].device.type == "cuda"
            assert gap(found.activations[layer], expected.activations[layer]) < KINDS[kind]
            slack = {"fast": KINDS["float32"]}.get(kind, KINDS[kind])  # gradients are exact there
            assert gap(found.gradients[0][layer], expected.gradients[0][layer]) < 30 * slack


def test_float32_is_not_rounded_to_tf32_and_folding_is_kept() -> None:
    precision, images = Precision(), pictures(4)
    runner = Runner.of(trained_scale(CUDA), LAYERS, precision, CUDA)
    [rows] = runner.run(images, LAYERS, "none")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in runner.model.modules())
    wide = Precision("float64")
    [expected] = Runner.of(trained_scale(), LAYERS, wide, CPU).run(images, LAYERS, "none")
    assert gap(rows["layer4"], expected["layer4"]) < 1e-5
    assert torch.backends.cudnn.allow_tf32  # as found


def test_rows_written_on_an_accelerator_are_read_on_the_cpu_and_the_other_way(
    tmp_path: Path,
) -> None:
    examples, net = TensorExamples(pictures(12)), trained_scale()
    for first, second in ((CUDA, CPU), (CPU, CUDA)):
        root = tmp_path / first.type
        rows = ActivationStore(root, device=first, progress=False).activations(net, LAYERS, examples)
        store = ActivationStore(root, device=second, progress=False)
        again = store.activations(net, LAYERS, examples)
        assert store.stats.forward_rows == 0
        assert store.stats.canary_rows > 0
        assert all(torch.equal(rows[n].cpu(), again[n].cpu()) for n in LAYERS)


def test_rows_beyond_the_device_tier_come_from_the_host_or_the_disk(tmp_path: Path) -> None:
    examples, net = TensorExamples(pictures(40)), trained_scale()
    store = ActivationStore(tmp_path, device=CUDA, budget_bytes=400_000, progress=False)
    first = store.activations(net, LAYERS, examples)
    again = store.activations(net, LAYERS, examples)
    assert store.stats.forward_rows == 40
    assert store.stats.reused_rows == 40
    assert all(torch.equal(first[n], again[n]) for n in LAYERS)


def test_a_batch_too_large_for_the_accelerator_is_halved(little_memory: None) -> None:
    examples = TensorExamples(pictures(256, 128))
    net = trained_scale(CUDA)
    store = ActivationStore(batch_size=256, progress=False)
    found = store.gradients(Score(net, 3), ["layer4"], examples, pool="mean")["layer4"]
    some = ActivationStore(batch_size=4, progress=False)
    few = TensorExamples(examples.load(range(8)))
    assert gap(found[:8], some.gradients(Score(net, 3), ["layer4"], few, pool="mean")["layer4"]) < 1e-3


def test_tcav_is_that_of_the_cpu() -> None:
    def found(device: torch.device) -> Tensor:
        net, drawn = trained_scale(device), TensorExamples(pictures(40, seed=3))
        method = Tcav(runs=4, null=Relabelled(19), bootstraps=20, relabellings=39)
        store = ActivationStore(precision=Precision("float64"), progress=False)
        striped = Concept("striped", TensorExamples(pictures(12, pattern="stripes")))
        inputs = TensorExamples(pictures(12, seed=5))
        result = method(store, {"class 7": Score(net, 7)}, LAYERS, [striped], inputs, drawn)
        return torch.stack([result.mean, result.magnitude, result.p, result.effect]).flatten()

    torch.testing.assert_close(found(CUDA), found(CPU), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "expected_gradients"])
def test_local_methods_are_those_of_the_cpu(name: str) -> None:
    maps = []
    for device in (CPU, CUDA):
        net = nets.seeded(nets.ConvNet()).double().to(device)
        found = made(name)(Score(net, TARGETS), nets.images().double())
        assert found.values.device.type == "cpu"  # where the inputs are
        maps.append(found.values)
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["saliency", "guided_backprop", "gradcam", "lrp", "ig", "lime"])
def test_local_methods_take_inputs_on_the_accelerator(name: str) -> None:
    method = LIME(surrogate=Local(samples=200)) if name == "lime" else made(name)
    images = pictures(2).to(CUDA)
    found = method(Score(trained_scale(CUDA), 3), images)
    assert found.values.device.type == "cuda"
    expected = method(Score(trained_scale().double(), 3), images.cpu().double())
    # A rectifier at zero may fall on either side; a wrong multiplication format shows as 0.01 and more.
    assert gap(found.values, expected.values) < 5e-3


def test_probes_dissection_curves_and_randomisation_are_those_of_the_cpu() -> None:
    images = pictures(60, 48)
    labels = torch.arange(60) % 3
    images[:, 0] += labels[:, None, None]
    scenes = scenes_of(images[:30], (images[:30, :1] > 0.5).long(), named(1))
    probes = LayerProbes(("layer1", "layer3"), SoftmaxProbe((1e-2,)), untrained=False, description_length=False)
    results = []
    for device in (CPU, CUDA):
        net = trained_scale(device)
        store = ActivationStore(device=device, precision=Precision("float64"), progress=False)
        read = probes(store, net, TensorExamples(images), labels)
        units = Dissection(("layer1",), draws=9)(store, net, scenes)
        score = Score(net.double(), 3)
        maps = METHODS["saliency"]()(score, images[:2].double()).values
        curve = Deletion()(maps, score, images[:2].double())
        drawn = CascadingRandomisation(seeds=2, steps=3)(METHODS["saliency"](), score, images[:2].double())
        results.append([read.error, read.cross_entropy, units.iou, curve.values, drawn.values])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.cpu(), expected.cpu(), rtol=1e-5, atol=1e-6)


def test_maximisation_repeats_itself_and_raises_its_channels() -> None:
    net, goals = trained_scale(CUDA), [Channel("layer2", k) for k in range(8)]
    first, again = (maximize(net, goals, steps=20, space=Space(size=64)) for _ in range(2))
    # Gradients of resampling add up atomically, in no fixed order, and Adam magnifies the smallest.
    assert float(torch.cosine_similarity(*(f.images.flatten() for f in (first, again)), 0)) > 0.99
    assert bool((first.trace[:, -1] > first.trace[:, 0]).all())


def test_a_model_is_loaded_onto_the_accelerator() -> None:
    loaded = loading.load("torchvision:resnet18", weights="random", device="auto")
    assert next(loaded.model.parameters()).device.type == "cuda"
    other = loading.load("torchvision:resnet18", weights="random")
    assert torch.equal(loaded.model.fc.weight.cpu(), other.model.fc.weight)  # type: ignore[union-attr,operator,arg-type]
