"""A network that reads means of colours."""

from torch import Tensor, nn

from probing.data.images import Preprocess

COLOUR = Preprocess(size=16, resize=None, mean=(0.5,) * 3, std=(0.5,) * 3)


class Coloured(nn.Module):
    """Means of colours at two resolutions, and a head that is linear or squares its input."""

    def __init__(self, *, linear: bool) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 1)
        self.coarse = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.avg_pool2d(self.fine(x), 4)
        h = self.coarse(h).mean((2, 3))
        return self.head(h if self.linear else 3 * h**2)
