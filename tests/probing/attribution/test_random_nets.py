"""Every method and the store against plain autograd and loops, on random nets, in float64, or a refusal by name."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from random_nets import HEADS, LAYERS, SIDE, RandomNet, expected, laws, random_net
from torch import Tensor

from probing.attribution import METHODS
from probing.attribution.base import AttributionMethod
from probing.attribution.baselines import Constant, Samples
from probing.attribution.curved_paths import BlurIG, GuidedIG
from probing.attribution.path import (
    ExpectedGradients,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.superpixels import Grid
from probing.attribution.perturbation.surrogate import ExactShapley
from probing.attribution.xrai import XRAI
from probing.core.errors import ProbingError
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

MADE: dict[str, object] = {
    "ig": lambda _: IntegratedGradients(steps=4),
    "guided_ig": lambda _: GuidedIG(steps=4),
    "blur_ig": lambda _: BlurIG(steps=4),
    "xrai": lambda _: XRAI(IntegratedGradients(Constant(), steps=4)),
    "layer_ig": lambda _: LayerIntegratedGradients("body", IntegratedGradients(steps=4)),
    "expected_gradients": lambda b: ExpectedGradients(Samples.of(b[None]), samples=5),
    "lime": lambda _: LIME(Grid(2, 2), Constant(), ExactShapley()),
}
AT_BODY = {"gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "ablationcam", "scorecam", "eigencam", "finercam"}
LAWFUL = {"cam", "deeplift", "lrp"}
MAY_REFUSE = {"guided_backprop", "deconvolution", "guided_gradcam", "cam", "deeplift", "lrp"}
"""Other gates than rectifiers, another head than a global average, operations without a rule of relevance."""
BATCHES = (1, 2, 7)
TRIALS = int(os.environ.get("FUZZ", "1")) * 6


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Nets this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def method(name: str, background: Tensor) -> AttributionMethod:
    if name in MADE:
        return MADE[name](background)  # type: ignore[operator, no-any-return]
    return METHODS[name]("body") if name in AT_BODY else METHODS[name]()  # type: ignore[call-arg]


def close(found: Tensor, wanted: Tensor, name: str) -> None:
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) <= 1e-7 * (scale + 1e-3), name


def check(layers: list[str], head: str, seed: int, batches: tuple[int, ...]) -> None:
    net = random_net(layers, head, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(max(batches), 2, SIDE, SIDE, dtype=torch.float64, generator=generator)
    background = torch.randn(2, SIDE, SIDE, dtype=torch.float64, generator=generator)
    target = seed % 3
    references = [expected(net, one, target, background) for one in x]
    for count in batches:
        check_store(net, x[:count], target)
        for name in sorted({*references[0], *LAWFUL}):
            try:
                found = method(name, background)(Score(net, target), x[:count])
            except ProbingError:
                assert name in MAY_REFUSE, name
                continue
            if name in LAWFUL:
                assert float(laws(name, found, found.score).abs().max()) < 1e-5, name
                continue
            assert torch.equal(found.score, net(x[:count])[:, target].detach()) or torch.allclose(
                found.score, net(x[:count])[:, target].detach(), rtol=1e-9, atol=1e-12
            )
            for row in range(count):
                wanted = references[row][name]
                close(found.values[row].reshape(wanted.shape), wanted, name)


def check_store(net: RandomNet, x: Tensor, target: int) -> None:
    store, examples = ActivationStore(batch_size=3), TensorExamples(x)
    rows = store.activations(net, ["body"], examples)["body"]
    slopes = store.gradients(Score(net, target), ["body"], examples)["body"]
    for i, one in enumerate(x):
        maps = net.body(one[None]).detach().requires_grad_()
        net.head(maps.clone())[0, target].backward()
        close(rows[i], maps[0].detach(), "rows")
        assert maps.grad is not None
        close(slopes[i], maps.grad[0], "gradients")


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_the_grammar_is_read_as_autograd_reads_it(name: str) -> None:
    heads, seed = list(HEADS), list(LAYERS).index(name)
    check([name, "relu"], heads[seed % len(heads)], seed, BATCHES[seed % 3 :][:1])


@given(
    layers=st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5),
    head=st.sampled_from(sorted(HEADS)),
    seed=st.integers(0, 2**16),
)
@settings(
    max_examples=TRIALS,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_method_and_the_store_agree_with_loops_on_random_nets_or_refuse(
    layers: list[str], head: str, seed: int
) -> None:
    check(layers, head, seed, BATCHES)
