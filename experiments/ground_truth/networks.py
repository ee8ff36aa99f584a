"""The nets of the experiments: small, trained in seconds, the same from the same seed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

LAYERS = ("block1", "block2", "block3", "block4")
READ_AT = "block3"
"""Where concepts are read, fixed before any net was trained: the deepest layer behind which the score bends."""
BATCH = 50


class Net(nn.Module):
    """Four blocks of convolution, BatchNorm and ReLU, the first with steps of two, the mean over places, a linear head."""

    def __init__(self, classes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.block1 = _block(3, width, stride=2)
        self.block2 = _block(width, 2 * width)
        self.block3 = _block(2 * width, 3 * width)
        self.block4 = _block(3 * width, 4 * width)
        self.shrink = nn.MaxPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Return logits."""
        x = self.shrink(self.block2(self.block1(x)))
        x = self.shrink(self.block3(x))
        return self.head(self.pool(self.block4(x)).flatten(1))


def _block(before: int, after: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


def train(images: Float[Tensor, "n 3 h w"], classes: Int[Tensor, " n"], seed: int, epochs: int) -> Net:
    """Return a trained net in evaluation mode: Adam, a rate that falls to zero, no augmentation, last state taken."""
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        net = Net().train()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 2))
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=order).split(BATCH):
            if len(rows) < BATCH:
                continue
            loss = nn.functional.cross_entropy(net(images[rows]), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(requires_grad=False)


def logits(net: nn.Module, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
    """Return what a net says of images."""
    with torch.no_grad():
        return torch.cat([net(part) for part in images.split(128)])
