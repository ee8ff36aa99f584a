"""Pictures of things that come and go, and a network that sees each of them along one direction."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

THINGS = 3
UNITS = 8


class SeesThings(nn.Module):
    """Channel t of a picture becomes the direction `things[t]` at the layer `relu`; the one class hangs on thing 0 alone."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Conv2d(THINGS, UNITS, 1, bias=False)
        self.relu = nn.ReLU()
        self.head = nn.Linear(UNITS, 1)
        directions = torch.rand(THINGS, UNITS, generator=generator) ** 2
        directions[:, :THINGS] = torch.eye(THINGS) / 2  # a unit of its own, so that parts of 0 or more are unique
        self.things = functional.normalize(directions)
        with torch.no_grad():
            self.conv.weight.copy_(self.things.mT[:, :, None, None])
            self.head.weight.copy_(5 * torch.linalg.pinv(self.things)[:, :1].mT)
            self.head.bias.fill_(0.5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.head(self.relu(self.conv(x)).mean((2, 3)))
        return logit


@dataclass(frozen=True)
class World:
    """Pictures, which things are in each, and pairs that differ in thing 0 alone."""

    pictures: Float[Tensor, "n things 6 6"]
    there: Bool[Tensor, "n things"]
    without: Float[Tensor, "n things 6 6"]
    """The same pictures without thing 0."""
    with_it: Float[Tensor, "n things 6 6"]
    """The same with it."""


def world(n: int, strength: float = 1.0, seed: int = 0) -> World:
    """Return pictures of things, squares of 2 by 2 at random places, on a ground of a little noise.

    Args:
        n: pictures.
        strength: of thing 0, where others have 1.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(n, THINGS, generator=generator) < 0.5
    ground = 0.02 * torch.rand(n, THINGS, 6, 6, generator=generator)
    rows, columns = torch.randint(0, 5, (2, n, THINGS), generator=generator)
    brightness = torch.rand(n, THINGS, generator=generator) + 0.5
    squares = torch.zeros(n, THINGS, 6, 6)
    for i in range(n):
        for t in range(THINGS):
            row, column = int(rows[i, t]), int(columns[i, t])
            squares[i, t, row : row + 2, column : column + 2] = brightness[i, t] * (strength if t == 0 else 1)
    shown = there.float()
    none, all_ = shown.clone(), shown.clone()
    none[:, 0], all_[:, 0] = 0.0, 1.0
    drawn = [ground + squares * mask[..., None, None] for mask in (shown, none, all_)]
    return World(drawn[0], there, drawn[1], drawn[2])
