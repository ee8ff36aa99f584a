"""Images that can be optimised: pixels, Fourier spectra, spectra of fixed magnitude, shared coarse parts.

A frozen dataclass says how images are made of parameters; `begin` returns a canvas, the parameters of so
many images in one run. Each image starts from a seed of its own, so that it does not depend on its
batch-mates.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from probing.core.errors import ProbingError
from probing.maximization.pixel_space import Space


class ImageOptionError(ProbingError, ValueError):
    """Images can't be made as asked for."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """The parameters of some images, and how images in model space are made of them."""

    parameters: tuple[Tensor, ...]
    """Leaves of the graph, which are changed in place."""
    render: Callable[[], Float[Tensor, "n c h w"]]
    levels: Float[Tensor, "n c h w"] | None = None
    """The parameters of images whose pixels are parameters: 8-bit levels relative to the mean."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run asks of a canvas.

    Attributes:
        seeds: one per image.
        groups: how many images each objective has, in their order; they may share parameters.
        size: height and width, in pixels.
        start: pixels in [0, 1] to start from, one picture per image; else images start from noise.
    """

    seeds: Sequence[int]
    groups: Sequence[int]
    size: tuple[int, int]
    space: Space
    device: torch.device
    start: Float[Tensor, "n c h w"] | None = None

    def noise(self, *shape: int, salt: int = 0) -> Tensor:
        """Return standard normal numbers for each image, from its own seed alone."""
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed((seed + salt) % 2**63)) for seed in self.seeds]
        return torch.stack(drawn).to(self.device)


@runtime_checkable
class ImageParameters(Protocol):
    """A frozen dataclass that says how images are made of parameters."""

    def begin(self, plan: Plan) -> Canvas:
        """Return the parameters of as many images as there are seeds."""
        ...


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves, in 8-bit levels relative to the preprocessing's mean (Yosinski et al. 2015).

    The paper's numbers (rate, noise, norms) are meant in these units; nothing keeps pixels in range but
    the regulariser `Box`.

    Attributes:
        noise: standard deviation of the start, in levels.
    """

    noise: float = 10.0

    def begin(self, plan: Plan) -> Canvas:
        """Return normal noise around the mean, or the start pictures."""
        space = plan.space
        if plan.start is None:
            z = self.noise * plan.noise(space.channels, *plan.size)
        else:
            z = space.encode(plan.start)
            z = z / space.levels(z)
        z = z.requires_grad_()
        return Canvas((z,), lambda: z * space.levels(z), z)


COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
"""Square root of the colour covariance of ImageNet's pixels (lucid, `optvis/param/color.py`)."""
_SHARPEST = max(math.hypot(*column) for column in zip(*COLOUR, strict=True))


def recoloured(planes: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return decorrelated colour planes as red, green and blue; one plane stays as it is."""
    if planes.shape[1] == 1:
        return planes
    return _mixed(planes, planes.new_tensor(COLOUR) / _SHARPEST)


def decorrelated(colours: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Return what `recoloured` makes these colours of."""
    if colours.shape[1] == 1:
        return colours
    inverse = torch.linalg.inv(torch.tensor(COLOUR, dtype=torch.float64) / _SHARPEST)
    return _mixed(colours, inverse.to(colours))


def _mixed(planes: Tensor, matrix: Float[Tensor, "to from"]) -> Tensor:
    mixed: Tensor = matrix @ planes.flatten(2)  # a convolution would take ten times as long
    return mixed.view(len(planes), len(matrix), *planes.shape[2:])


def frequencies(height: int, width: int) -> Float[Tensor, "h half"]:
    """Return the spatial frequency of each coefficient of `rfft2`, in cycles per pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])


def envelope(height: int, width: int, power: float) -> Float[Tensor, "h half"]:
    """Return `max(f, 1 / longer side)^-power`, the amplitude that natural images have at power 1."""
    return frequencies(height, width).clamp(min=1 / max(height, width)) ** -power


@dataclass(frozen=True)
class Fourier:
    """A spectrum scaled as natural images' are, in decorrelated colours, squashed into [0, 1].

    Olah et al. 2017 ("Feature visualization", preconditioning), with the constants of lucid's
    `optvis/param/spatial.py`.

    Attributes:
        sd: standard deviation of the start's coefficients.
        decay_power: how amplitude falls with frequency.
    """

    sd: float = 0.01
    decay_power: float = 1.0

    def begin(self, plan: Plan) -> Canvas:
        """Return spectra of noise, or of the start pictures."""
        height, width = plan.size
        scale = envelope(height, width, self.decay_power).to(plan.device) / 4
        if plan.start is None:
            z = self.sd * plan.noise(plan.space.channels, *scale.shape, 2)
        else:
            planes = decorrelated(torch.logit(plan.start.clamp(0.01, 0.99)))
            z = torch.view_as_real(torch.fft.rfft2(planes, norm="ortho") / scale).contiguous()
        z.requires_grad_()

        def render() -> Tensor:
            planes = torch.fft.irfft2(torch.view_as_complex(z) * scale, plan.size, norm="ortho")
            return plan.space.encode(recoloured(planes).sigmoid())

        return Canvas((z,), render)


@dataclass(frozen=True)
class Maco:
    """Only the phase of a spectrum is optimised; its magnitude stays that of natural images.

    Fel et al. 2023 ("Unlocking feature visualization for deeper networks with magnitude constrained
    optimization", sec. 3). Their magnitude is a mean over ImageNet; here it is `contrast / f^decay_power`,
    or that of the start pictures where these are given, with the phase drawn all the same.

    Attributes:
        contrast: standard deviation of the planes before squashing.
        decay_power: how amplitude falls with frequency.
    """

    contrast: float = 1.0
    decay_power: float = 1.0

    def begin(self, plan: Plan) -> Canvas:
        """Return random phases, of the spectra of real noise."""
        magnitude = self._magnitude(plan)
        noise = torch.fft.rfft2(plan.noise(plan.space.channels, *plan.size))
        phase = noise.angle().requires_grad_()

        def render() -> Tensor:
            spectrum = torch.polar(magnitude.expand_as(phase), phase)
            planes = torch.fft.irfft2(spectrum, plan.size, norm="ortho")
            return plan.space.encode(recoloured(planes).sigmoid())

        return Canvas((phase,), render)

    def _magnitude(self, plan: Plan) -> Tensor:
        if plan.start is not None:
            planes = decorrelated(torch.logit(plan.start.clamp(0.01, 0.99)))
            own: Tensor = torch.fft.rfft2(planes, norm="ortho").abs()
            return own
        magnitude: Tensor = envelope(*plan.size, self.decay_power)
        magnitude[0, 0] = 0  # mean grey
        spread: Tensor = torch.fft.irfft2(magnitude.to(torch.complex64), plan.size, norm="ortho").std()
        return (magnitude * (self.contrast / spread)).to(plan.device)


@dataclass(frozen=True)
class Shared:
    """Images of one objective share a coarse part, so that they stay alike and comparable.

    Mordvintsev et al. 2018 ("Differentiable image parameterizations", aligned interpolation). Each
    image is its own spectrum plus a coarse grid that all images of its objective have in common.

    Attributes:
        own: of each image.
        cell: side of the coarse grid's cells, in pixels.
        sd: standard deviation of the grid's start.
    """

    own: Fourier = field(default_factory=Fourier)
    cell: int = 8
    sd: float = 0.01

    def begin(self, plan: Plan) -> Canvas:
        """Return spectra and one grid for each objective."""
        canvas = self.own.begin(plan)
        rows, columns = (math.ceil(side / self.cell) for side in plan.size)
        drawn = self.sd * plan.noise(plan.space.channels, rows, columns, salt=1)
        counts = torch.tensor(plan.groups, device=plan.device)
        grid = drawn[counts.cumsum(0) - counts].requires_grad_()

        def render() -> Tensor:
            fine = plan.space.decode(canvas.render()).logit(eps=1e-6)
            planes = functional.interpolate(grid, plan.size, mode="bilinear", align_corners=False)
            coarse = recoloured(planes).repeat_interleave(counts, 0)
            return plan.space.encode((fine + coarse).sigmoid())

        return Canvas((*canvas.parameters, grid), render)


def spectrum_slope(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the slope of log power against log frequency: near -2 for photographs, 0 for white noise.

    Power is the mean over channels and over coefficients of about equal frequency; the line is fitted
    between two cycles per image and half a cycle per pixel. NaN for an image without contrast.
    """
    height, width = pixels.shape[2:]
    grey = pixels.double() - pixels.double().mean((2, 3), keepdim=True)
    power = torch.fft.rfft2(grey, norm="ortho").abs().square().mean(1)
    f = frequencies(height, width).double()
    edges = torch.logspace(math.log10(2 / min(height, width)), math.log10(0.5), 13)
    rings = [(f >= low) & (f < high) for low, high in itertools.pairwise(edges)]
    rings = [ring for ring in rings if ring.any()]
    x = torch.stack([f[ring].log().mean() for ring in rings])
    y = torch.stack([power[:, ring].mean(1) for ring in rings], 1).log()
    x = x - x.mean()
    slope = (y * x).sum(1) / x.square().sum()
    return torch.where(torch.isfinite(slope), slope, torch.nan)
