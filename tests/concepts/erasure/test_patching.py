"""What layers carry of a swap: all, nothing, and parts of known size; first order against what is measured."""

from pathlib import Path

import pytest
import torch
from test_erasure import FEATURES, Maps, Planted, examples
from torch import Tensor, nn

from concepts.erasure.eraser import ErasureError
from concepts.erasure.patching import WHOLE, Part, Patching, PatchingResult, Places, Subspace, Units
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.data.examples import TensorExamples
from probing.models.scores import Score


def pairs(n: int = 24) -> MatchedConcept:
    """Return inputs with input 0 at 1, and the same with it at -1."""
    x, *_ = examples(2 * n)
    negative, positive = x[::2], x[1::2]
    return MatchedConcept("old", TensorExamples(positive), TensorExamples(negative))


def patched(net: nn.Module, how: Patching, part: Part = WHOLE) -> PatchingResult:
    return how({"score": Score(net, 1), "other": Score(net, 0)}, pairs(), part)


class Bent(nn.Module):
    """A network that is not linear, with a path around its middle layer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.middle, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.double()
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        logits: Tensor = self.head(hidden + torch.tanh(self.middle(hidden)))
        return logits


def test_everything_gives_the_other_score_and_nothing_ones_own() -> None:
    net = Bent().eval()
    concept = pairs()
    found = patched(net, Patching(("first", "middle", "head")))
    with torch.no_grad():
        other, own = (net(side.load(range(24))) for side in (concept.positive, concept.negative))
    swap = (other - own).mean(0).flip(0)
    torch.testing.assert_close(found.swap, swap)
    torch.testing.assert_close(found.carried[0], swap)
    torch.testing.assert_close(found.carried[2], swap)
    assert not torch.allclose(found.carried[1], swap)  # a path leads around the middle
    assert found.control.isnan().all()
    nothing = patched(net, Patching("first", controls=1), Units(()))
    torch.testing.assert_close(nothing.carried, torch.zeros(1, 2).double(), atol=1e-12, rtol=0)
    assert (nothing.p == 1).all()


def test_a_part_is_put_over_as_a_loop_does_it() -> None:
    net = Bent().eval()
    found = patched(net, Patching("middle", controls=0), Units((1, 5)))
    concept = pairs()
    expected = []
    for i in range(24):
        kept: list[Tensor] = []
        with torch.no_grad():
            hook = net.middle.register_forward_hook(lambda m, a, out, kept=kept: kept.append(out.clone()))
            net(concept.positive.load([i]))
            hook.remove()

            def put(m: nn.Module, a: object, out: Tensor, kept: list[Tensor] = kept) -> Tensor:
                out = out.clone()
                out[:, [1, 5]] = kept[0][:, [1, 5]]
                return out

            own = net(concept.negative.load([i]))
            hook = net.middle.register_forward_hook(put)
            expected.append(net(concept.negative.load([i])) - own)
            hook.remove()
    torch.testing.assert_close(found.carried[0], torch.cat(expected).mean(0).flip(0))


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_the_direction_of_the_attribute_carries_all_of_it_and_the_others_nothing(weight: float) -> None:
    net = Planted(weight)
    turned = net.first.weight.detach().mT  # row k is where input k lies behind the first layer
    own, rest = (patched(net, Patching("first", controls=20), Subspace(turned[k])) for k in (slice(0, 1), slice(1, None)))
    assert own.swap[0].item() == pytest.approx(2 * weight)
    assert own.carried[0, 0].item() == pytest.approx(2 * weight)
    assert rest.carried[0, 0].item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(own.first_order, own.carried, atol=1e-9, rtol=0)  # all is linear
    if weight:
        assert own.share[0, 0].item() == pytest.approx(1)
        assert own.beyond_low[0, 0].item() > 0
        # A random direction carries the square of its cosine, one of so many directions in the mean.
        assert 0 <= own.control[0, 0].item() / (2 * weight) < 4 / FEATURES
    else:
        assert own.share.isnan().all()
        assert "not shown to move score, other" in own.sentences()[1]


def test_first_order_is_the_gradient_times_the_difference() -> None:
    net = Bent().eval()
    concept = pairs()
    found = patched(net, Patching("first", controls=0))
    own = concept.negative.load(range(24))
    step = net.first(concept.positive.load(range(24))) - net.first(own)
    at = net.first(own).detach().requires_grad_()
    hidden = torch.tanh(at)
    (slope,) = torch.autograd.grad(net.head(hidden + torch.tanh(net.middle(hidden)))[:, 1].sum(), at)
    assert found.first_order[0, 0].item() == pytest.approx(float((slope * step.detach()).sum(1).mean()))
    assert abs(found.first_order[0, 0] - found.carried[0, 0]) > 1e-3


@pytest.mark.parametrize("tokens", [True, False])
def test_places_carry_in_proportion_to_what_lies_there(tokens: bool) -> None:
    """Places hold the inputs times 0.5, 0.83, 1.17 and 1.5, and the score is of their mean."""
    where = torch.tensor([True, False, False, True])
    net = Maps(tokens=tokens).eval()
    found = patched(net, Patching("places"), Places(where if tokens else where.view(2, 2)))
    assert found.share[0, 0].item() == pytest.approx((0.5 + 1.5) / 4)
    units = patched(net, Patching("places"), Units((0,)))
    assert units.share[0, 0].item() == pytest.approx(1)
    assert units.control[0, 0].item() < units.carried[0, 0].item()


def test_a_result_is_a_table_a_figure_and_a_folder(tmp_path: Path) -> None:
    found = patched(Planted(1.0), Patching(("first", "second"), controls=3), Units((0, 1)))
    again = PatchingResult.load(found.save(tmp_path / "patching"))
    assert again.to_pandas().equals(found.to_pandas())
    assert len(found.to_pandas()) == 4
    assert len(found.plot().axes) == 2
    assert len(repr(found).splitlines()) <= 10


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Units((9,)), r"units \(9,\) are not all among the layer's 6"),
        (Places(torch.ones(3, dtype=torch.bool)), r"places of shape \(3,\) are not those of the layer, \(\)"),
        (Subspace(torch.ones(1, 4)), "directions have 4 components, the layer 6"),
    ],
)
def test_parts_that_a_layer_has_not_are_refused(part: Part, message: str) -> None:
    with pytest.raises(ErasureError, match=message):
        patched(Planted(1.0), Patching("first"), part)
