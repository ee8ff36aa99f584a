"""Several changes of one layer in one pass: the same as passes of their own, or these where a network admits no others."""

import pytest
import torch
from torch import Tensor, nn

from concepts.erasure.passes import Variants
from probing.models.hooks import Edit
from probing.models.scores import Score


class Behind(nn.Module):
    """A layer and what is behind it, which may hold on to the number of examples."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.head, self.how = nn.Conv2d(2, 3, 1), nn.Linear(3, 2), how
        self.passes: list[int] = []
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        maps = self.layer(x)
        if self.how == "mixes":  # as many rows as examples went in, each made of several
            pooled = maps.view(len(x), -1, 3, 4).mean((1, 3)).repeat(len(maps) // len(x), 1)
        elif self.how == "skips":
            pooled = (maps + x.mean(1, keepdim=True)).mean((2, 3))
        else:
            pooled = maps.mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


def edits() -> list[Edit]:
    return [lambda m, x, y: y, lambda m, x, y: y * 2, lambda m, x, y: y + 3]


@pytest.mark.parametrize(("how", "together"), [("plain", True), ("skips", False), ("mixes", False)])
def test_every_way_gives_what_a_pass_of_its_own_gives(how: str, together: bool) -> None:
    net = Behind(how)
    batch = torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    variants = Variants(net, {"a": Score(net, 0), "b": Score(net, 1)}, "layer")
    found = variants(batch, edits())
    assert variants.together is together
    for way, change in zip(found, edits(), strict=True):
        hook = net.layer.register_forward_hook(lambda m, x, y, change=change: change(m, x[0], y))
        with torch.no_grad():
            torch.testing.assert_close(way, net(batch))
        hook.remove()
    net.passes.clear()
    again = variants(batch, edits())
    torch.testing.assert_close(again, found)
    assert len(net.passes) == (1 if together else 3)


def test_one_example_decides_nothing() -> None:
    net = Behind("skips")
    variants = Variants(net, {"a": Score(net, 0)}, "layer")
    one = torch.ones(1, 2, 2, 2).double()
    assert variants(one, edits()).shape == (3, 1, 1)
    assert variants.together is None
