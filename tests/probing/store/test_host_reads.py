"""A host that reads values waits for its accelerator: it does so at most twice a chunk, and twice a call of a method.

No accelerator is needed to count: tensors of the CPU stand for it, and whatever is computed from them.
"""

import nets
import pytest
import torch
from host_reads import host_reads
from methods import made
from torch import Tensor, nn

from probing.attribution import METHODS
from probing.attribution.score_passes import Passes
from probing.core import model_identity
from probing.core.checksums import on_device
from probing.data.examples import TensorExamples
from probing.models import runner
from probing.models.scores import Score
from probing.store.store import ActivationStore

LAYERS = ("features.0", "features.1", "features.2", "pool")
X = nets.images(256)
MOST = 2


@pytest.fixture
def net() -> nn.Module:
    return nets.seeded(nets.ConvNet(inplace=False))


def weights(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def reads_of_store(net: nn.Module, pool: str, scores: list[Score]) -> list[str]:
    """Return what is read while two chunks of 128 rows are computed."""
    examples = TensorExamples(X)

    def read() -> None:
        store = ActivationStore(batch_size=128)
        if scores:
            store.read(scores, LAYERS, examples, pool=pool)
        else:
            store.activations(net, LAYERS, examples, pool=pool)

    read()  # prepares the model
    with host_reads(weights(net)) as found:
        read()
    return found


@pytest.mark.parametrize("pool", ["none", "mean"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_store_reads_twice_a_chunk_at_most(net: nn.Module, pool: str, count: int) -> None:
    found = reads_of_store(net, pool, [Score(net, k) for k in range(count)])
    assert 0 < len(found) <= 2 * MOST, found  # finiteness is told to the host


def test_a_read_for_each_layer_is_counted(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = runner.pooled

    def reading(values: Tensor, *args: object, **named: object) -> Tensor:
        assert float(values.sum()) < torch.inf
        return whole(values, *args, **named)  # type: ignore[arg-type]

    before = len(reads_of_store(net, "mean", []))
    monkeypatch.setattr(runner, "pooled", reading)
    assert len(reads_of_store(net, "mean", [])) == before + 2 * len(LAYERS) > 2 * MOST


# What is read besides, as what is done next hangs on it: whether the tail of a network that tracing found is its own,
# whether a background holds anything but the input, which channels are silent or constant, which layers get nothing below
# zero, whether relevance adds up, or multipliers do. LIME and values by Shapley, Owen and Sobol cut two inputs into parts,
# and reckon on the host; feature ablation cuts them. XRAI cuts each image four times, and ranks regions on the host.
MORE = {
    "layer_ig": 3,
    "deeplift": 4,
    "xrai": 7,
    "expected_gradients": 3,
    "cam": 3,
    "ablationcam": 4,
    "scorecam": 3,
    "lrp": 4,
    "lime": 3 + 2 * 6,
    "feature_ablation": 5,
    "shapley": 3 + 2 * 6,
    "owen": 3 + 2 * 6,
    "sobol": 3 + 2 * 6,
}


def reads_of_method(net: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(model_identity, "checksum", lambda tensors: on_device(tensors, torch.device("cpu")))
    method, x, score = made(name), X[:2].clone(), Score(net, torch.tensor([0, 2]))
    method(score, x)
    with host_reads([*weights(net), x]) as found:
        method(score, x)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_method_reads_twice_a_call_at_most(net: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its inputs are finite, and whether the model is what it was."""
    found = reads_of_method(net, name, monkeypatch)
    assert "tolist" in found  # the checksum of the weights
    assert len(found) <= MORE.get(name, MOST), found


@pytest.mark.parametrize("name", ["lrp", "ablationcam"])
@pytest.mark.parametrize("deep", [1, 6])
def test_a_deeper_network_is_read_no_more_often(name: str, deep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    for _ in range(deep):
        layers += [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert len(reads_of_method(nets.seeded(net), name, monkeypatch)) <= MORE[name]


@pytest.mark.parametrize("name", ["saliency", "gradcam", "ig"])
def test_one_more_read_in_a_method_is_counted(net: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Passes.output

    def reading(self: Passes, *args: Tensor) -> object:
        found = output(self, *args)
        assert isinstance(found, Tensor)
        assert found.argmax() >= 0
        return found

    monkeypatch.setattr(Passes, "output", reading)
    assert len(reads_of_method(net, name, monkeypatch)) > MOST


def test_what_stalls_is_told_from_what_does_not() -> None:
    on_it, elsewhere = torch.arange(4.0), torch.arange(4.0)
    with host_reads([on_it]) as found:
        on_it.sum().add(1)
        elsewhere[elsewhere > 1].tolist()
        assert not found
        derived = on_it[:2] * 2
        float(derived[0])
        derived.tolist()
        derived[derived > 1].cpu()
        bool((derived == elsewhere[:2]).all())
    assert found == ["_local_scalar_dense", "tolist", "index", "cpu", "_local_scalar_dense"]
