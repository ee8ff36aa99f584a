"""Whole jobs on an accelerator: an audit, a scorecard, images, training; what they find is what the CPU finds."""

import json
from pathlib import Path

import audits
import pytest
import torch
from coloured import COLOUR, Coloured
from PIL import Image
from test_gpu import CPU, CUDA, gap, little_memory, pictures, pytestmark, trained_scale
from torch import Tensor, nn

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.run import audit
from concepts.cli import app
from concepts.scorecard_rows import Material, NetworkRows
from probing.attribution import METHODS
from probing.data.examples import TensorExamples
from probing.evaluation.scorecard.measure import Scoring
from probing.interpretable_cnn import FilterLoss, FilterMask
from probing.maximization import (
    Caricature,
    Channel,
    Direction,
    Diversity,
    FeatureInversion,
    Fourier,
    Layer,
    Logit,
    Maco,
    Maximize,
    Neuron,
    Pixels,
    Space,
)
from probing.maximization.objectives import Objective
from probing.models.gradients import input_gradient
from probing.models.precision import Precision
from probing.models.runner import Runner
from probing.models.scores import Score
from probing.store.store import ActivationStore

__all__ = ["little_memory", "pytestmark"]
DEVICES = (CPU, CUDA)
COSTS = {"time", "memory"}  # of the machine


def test_an_audit_finds_the_same(tmp_path: Path) -> None:
    analyses = ["tcav", "probes", "dissection", "atlas", "dreams", "heat_maps"]
    file = audits.audit_file(tmp_path, {"analyses": analyses})
    found = []
    for device in DEVICES:
        out = tmp_path / device.type
        audit(file, out, store_root=tmp_path / f"rows-{device.type}", progress=False, say=lambda _: None, device=device)
        assert (out / "report.html").stat().st_size > 10_000
        results = AuditResults.load(out)
        cells = [(c.tcav, c.effect, c.effect_low, c.effect_high) for c in results.cells]
        swaps = [(s.swap, s.low, s.high) for s in results.swaps]
        found.append(([(c.concept, c.layer, c.target) for c in results.cells], cells, swaps))
    assert found[0][0] == found[1][0]
    for expected, measured in zip(found[0][1:], found[1][1:], strict=True):
        numbers = [torch.tensor(x, dtype=torch.float64) for x in (measured, expected)]
        torch.testing.assert_close(*numbers, rtol=1e-3, atol=1e-3)


def test_rows_of_the_scorecard_are_those_of_the_cpu() -> None:
    quick = Scoring(steps=4, grid=4, draws=8, seeds=1, probed=2)
    methods = {name: METHODS[name]() for name in ("saliency", "gradcam", "ig", "lrp")}
    images = pictures(3, 48).double()
    scores = [Score(trained_scale(d).double(), torch.tensor([3, 5, 3])) for d in DEVICES]
    for own, other in zip(*(quick.rows(methods, s, images) for s in scores), strict=True):
        assert own.refused == other.refused == ""
        assert own.values.keys() == other.values.keys()
        for name in own.values.keys() - COSTS:
            mine, its = own.values[name], other.values[name]
            torch.testing.assert_close(its, mine, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_rows_of_whole_networks_are_those_of_the_cpu() -> None:
    drawn = Material.drawn(COLOUR, 9)
    material = Material(drawn.concepts[3:6], drawn.pool)
    colours = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = []
    for device in DEVICES:
        torch.manual_seed(0)
        score = Score(Coloured(linear=False).eval().to(device), torch.tensor([0, 1, 0]))
        rows.append(NetworkRows(scenes=8, draws=9)(score, colours, COLOUR, material))
    for own, other in zip(*rows, strict=True):
        for name in own.values.keys() - COSTS:
            mine, its = own.values[name], other.values[name]
            torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name)


GOALS: dict[str, Objective] = {
    "logit": Logit(3),
    "channel": Channel("layer2", 3),
    "neuron": Neuron("layer2", 3),
    "direction": Direction("layer2", torch.ones(128)),
    "layer": Layer("layer2"),
    "diversity": Diversity("layer2", 3),
    "caricature": Caricature("layer2", pictures(1)[0]),
    "inversion": FeatureInversion("layer2", pictures(1)[0]),
    "a sum": Channel("layer2", 1) + 2 * Channel("layer1", 2) - Layer("layer1"),
}


@pytest.mark.parametrize("name", GOALS)
def test_every_objective_is_raised(name: str) -> None:
    found = Maximize(steps=16, size=64)(trained_scale(CUDA), GOALS[name], space=Space())
    assert float(found.trace[0, -1]) > float(found.trace[0, 0])
    assert bool(found.images.isfinite().all())


@pytest.mark.parametrize("image", [Pixels(), Fourier(), Maco()], ids=lambda i: type(i).__name__)
def test_every_kind_of_image_is_made_in_both_precisions(image: Pixels | Fourier | Maco) -> None:
    for precision in (Precision(), Precision("fast")):
        settings = Maximize(image, transforms=(), steps=16, size=64, precision=precision)
        found = settings(trained_scale(CUDA), [Channel("layer2", k) for k in range(3)], space=Space())
        assert bool((found.trace[:, -1] > found.trace[:, 0]).all())


def test_images_beyond_the_memory_are_made_in_smaller_batches(little_memory: None) -> None:
    settings = Maximize(steps=2, size=224, batch=64)
    found = settings(trained_scale(CUDA), [Channel("layer2", k) for k in range(64)], space=Space())
    assert found.batch < 64
    assert any("Out of memory" in note for note in found.notes)
    assert len(found.images) == 64


def test_the_filter_loss_and_its_gradient_are_those_of_the_cpu() -> None:
    maps = torch.rand(8, 4, 7, 7, generator=torch.Generator().manual_seed(0)).double()
    results: list[list[Tensor]] = []
    for device in DEVICES:
        own = maps.to(device, copy=True).requires_grad_()
        loss = FilterLoss(4, 7).to(device)(own)
        (gradient,) = torch.autograd.grad(loss.sum(), own)
        masked = FilterMask(7).to(device)(own.detach())
        results.append([loss.detach().cpu(), gradient.cpu(), masked.cpu()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-12)


def test_what_a_user_allows_to_be_rounded_is_exact_inside_and_allowed_again_after() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 64), nn.Linear(64, 8)).eval()
    images, wide = pictures(16), Precision("float64")
    [expected] = Runner.of(net, ["1"], wide, CPU).run(images, ["1"], "none")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        [rows] = Runner.of(net.to(CUDA), ["1"], Precision(), CUDA).run(images, ["1"], "none")
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert gap(rows["1"], expected["1"]) < 1e-6


@pytest.mark.filterwarnings("default")  # the compiler itself warns
def test_a_model_compiled_in_place_gives_the_rows_of_the_one_that_is_not() -> None:
    examples, net = TensorExamples(pictures(12)), trained_scale(CUDA)
    plain = ActivationStore(device=CUDA, progress=False).activations(net, ["layer4"], examples)
    net.compile()
    net(pictures(2).to(CUDA))
    store = ActivationStore(device=CUDA, progress=False)
    again = store.activations(net, ["layer4"], examples)
    assert torch.equal(again["layer4"], plain["layer4"])
    _, gradient = input_gradient(Score(net, 3), pictures(2).to(CUDA))
    assert bool(gradient.isfinite().all())


def test_the_commands_take_the_accelerator(tmp_path: Path) -> None:
    file = tmp_path / "a picture.png"
    Image.fromarray(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()).save(file)
    net, weights = "torchvision:resnet18", ("--weights", "random", "--device", "cuda")
    jobs = {
        "maps": ["attribute", net, str(file), "--method", "saliency", "--method", "gradcam", *weights],
        "images": [
            "maximize",
            net,
            "--layer",
            "layer1",
            "--unit",
            "0:3",
            "--steps",
            "4",
            "--cache",
            str(tmp_path),
            *weights,
        ],
    }
    for name, words in jobs.items():
        assert app.main([*words, "--out", str(tmp_path / name)]) == 0
        assert list((tmp_path / name).rglob("*.png"))
    assert torch.cuda.max_memory_allocated() > 0
    assert json.loads(next((tmp_path / "images").rglob("*.json")).read_text())
