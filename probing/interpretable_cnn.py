"""Filters that stand for one part of an object: the filter loss and mask of interpretable CNNs, and how to judge them.

Zhang, Wu & Zhu 2018 ("Interpretable Convolutional Neural Networks"). A filter's maps should have one peak, or be
silent: they are compared with templates, a peak at each place and one that is negative everywhere, and the filter loss
is minus the mutual information of maps and templates. The released code computes something else (a centroid in place of
the peak, batch means in place of sums, a learnt width); here are the paper's formulas.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.models.geometry import Geometry
from probing.statistics.streaming import UpperQuantile

SCALE_MEMORY = 0.9
"""Share of the running mean of peak heights that each batch leaves in place."""


class FilterMapError(ProbingError, ValueError):
    """Maps that filter loss, mask or metrics are not defined for."""


@dataclass(frozen=True)
class Templates:
    """The shapes that a filter's map may take (sec. 3): a peak at each of n² places, and none.

    Attributes:
        size: n, cells on a side of the map.
        beta: how fast a template falls with the distance from its peak.
    """

    size: int
    beta: float = 4.0

    def __post_init__(self) -> None:
        if self.size < 2 or self.beta <= 0:
            raise FilterMapError(
                f"templates need a map of 2 cells or more on a side and beta above 0, got {self.size} and {self.beta}."
            )

    @property
    def tau(self) -> float:
        """Height of a peak, `0.5 / n²`."""
        return 0.5 / self.size**2

    @property
    def negative(self) -> int:
        """Index of the template without a peak."""
        return self.size**2

    def shapes(self) -> Float[Tensor, "templates cells"]:
        """Return the templates over `tau`, peaks in reading order and the negative one last, as float64."""
        n = self.size
        cells = torch.cartesian_prod(torch.arange(n), torch.arange(n)).double()
        distance = torch.cdist(cells, cells, p=1)
        peaks = (1 - self.beta * distance / n).clamp_min(-1)
        return torch.cat([peaks, -torch.ones(1, n * n, dtype=torch.float64)])

    def log_prior(self) -> Float[Tensor, " templates"]:
        """Return the log of `p(T)`: `alpha / n²` for each peak and `1 - alpha` for none, `alpha = n² / (1 + n²)`."""
        count = self.size**2 + 1
        return torch.full((count,), -math.log(count), dtype=torch.float64)


def template_information(
    scores: Float[Tensor, "*filters maps templates"], log_prior: Float[Tensor, " templates"]
) -> Float[Tensor, "*filters"]:
    """Return the mutual information of maps and templates, in nats (eq. 2 and 3).

    `p(x|T)` is the softmax over maps of the score of map x with template T, `p(x)` its mean over templates.

    Args:
        scores: `tr(x · T)`; minus infinity where a map has no part in a template.
        log_prior: of the templates.
    """
    given = scores.log_softmax(-2)
    overall = (given + log_prior).logsumexp(-1, keepdim=True)
    share = given.exp()
    # A map without a part in a template has a log of minus infinity, which times 0 would be NaN.
    gain = share * (given.masked_fill(share == 0, 0) - overall)
    return gain.sum(-2) @ log_prior.exp()


def information_gradient(
    scores: Float[Tensor, "*filters maps templates"],
    log_prior: Float[Tensor, " templates"],
    templates: Float[Tensor, "templates cells"],
) -> Float[Tensor, "*filters maps cells"]:
    """Return the derivative of `template_information` with respect to the maps, in closed form.

    `Σ_T T p(T) p(x|T) (r - Σ_x' p(x'|T) r)`, r being `log p(x|T) / p(x)`.
    """
    given = scores.log_softmax(-2)
    ratio = given - (given + log_prior).logsumexp(-1, keepdim=True)
    share = given.exp()
    centred = ratio - (share * ratio).sum(-2, keepdim=True)
    return (log_prior.exp() * share * centred) @ templates


class FilterMask(nn.Module):
    """Multiplies each map by the positive part of the template at its peak (sec. 3, forward pass); no weights.

    Gradients take the mask as constant.

    Args:
        size: n, cells on a side of the map.
        beta: see `Templates`.
        peak: where the mask is centred: at the highest cell, as in the paper, or at the rounded centre of mass, as in the
            released code.
    """

    shapes: Tensor

    def __init__(self, size: int, beta: float = 4.0, peak: str = "max") -> None:
        super().__init__()
        if peak not in {"max", "centroid"}:
            raise FilterMapError(f"peak must be 'max' or 'centroid', got {peak!r}.")
        self.size, self.peak = size, peak
        shapes = Templates(size, beta).shapes()[:-1].clamp_min(0).float()
        self.shapes = nn.Buffer(shapes, persistent=False)

    def forward(self, maps: Float[Tensor, "n filters h w"]) -> Float[Tensor, "n filters h w"]:
        """Mask maps, which are square and not negative."""
        check_maps(maps, self.size)
        peaks = highest(maps) if self.peak == "max" else centroid(maps)
        return maps * self.shapes[peaks].to(maps).view_as(maps)


def highest(maps: Float[Tensor, "n filters h w"]) -> Int[Tensor, "n filters"]:
    """Return each map's highest cell in reading order; of equal ones the first."""
    return maps.detach().flatten(2).argmax(2)


def centroid(maps: Float[Tensor, "n filters h w"]) -> Int[Tensor, "n filters"]:
    """Return the cell nearest to each map's centre of mass; the middle where a map is all zero."""
    weights = maps.detach().clamp_min(0).double()
    height, width = maps.shape[2:]
    total = weights.sum((2, 3))
    rows = (weights.sum(3) @ torch.arange(height).to(weights)) / total
    columns = (weights.sum(2) @ torch.arange(width).to(weights)) / total
    rows = torch.where(total > 0, rows, (height - 1) / 2)
    columns = torch.where(total > 0, columns, (width - 1) / 2)
    return rows.round().long() * width + columns.round().long()


class FilterLoss(nn.Module):
    """Minus the mutual information of each filter's maps and the templates (eq. 1).

    Recent maps are kept, so that probabilities over maps do not rest on one small batch; gradients reach the current
    maps only. Maps are divided by a running mean of their peaks, with which scores do not grow with a layer's scale, and
    multiplied by `sharpness`. A filter that is silent on every map has information 0.

    Args:
        filters: of the layer.
        size: n, cells on a side of the map.
        beta: see `Templates`.
        memory: maps that are kept.
        sharpness: height of a typical peak in template scores, in nats.
        gradient: `exact`; or `paper`, the paper's simplification, in which a map is pulled to one template: that of its
            peak if it shows the filter's category, else the negative one.

    Example:
        >>> loss = FilterLoss(filters=32, size=7)
        >>> with capture(net, ["relu5"], graph=True) as kept:
        ...     logits = net(images)
        >>> total = cross_entropy(logits, labels) + 0.1 * loss(kept["relu5"], labels, categories).sum()
    """

    shapes: Tensor
    prior: Tensor
    recent: Tensor
    shown: Tensor
    scale: Tensor

    def __init__(
        self,
        filters: int,
        size: int,
        beta: float = 4.0,
        *,
        memory: int = 256,
        sharpness: float = 10.0,
        gradient: str = "exact",
    ) -> None:
        super().__init__()
        if gradient not in {"exact", "paper"}:
            raise FilterMapError(f"gradient must be 'exact' or 'paper', got {gradient!r}.")
        self.filters, self.size, self.memory = filters, size, memory
        self.sharpness, self.gradient = sharpness, gradient
        templates = Templates(size, beta)
        self.shapes = nn.Buffer(templates.shapes().float(), persistent=False)
        self.prior = nn.Buffer(templates.log_prior().float(), persistent=False)
        self.recent = nn.Buffer(torch.zeros(0, filters, size, size), persistent=False)
        self.shown = nn.Buffer(torch.zeros(0, filters, dtype=torch.bool), persistent=False)
        self.scale = nn.Buffer(torch.zeros(filters), persistent=False)

    def forward(
        self,
        maps: Float[Tensor, "n filters h w"],
        labels: Int[Tensor, " n"] | None = None,
        categories: Int[Tensor, " filters"] | None = None,
    ) -> Float[Tensor, " filters"]:
        """Return each filter's loss on maps, and remember them.

        Args:
            maps: after a ReLU, square.
            labels: classes of the images; with `categories`, images of other classes have a part in the negative template
                only.
            categories: the class that each filter stands for, by `filter_categories`.
        """
        check_maps(maps, self.size)
        n = len(maps)
        if (labels is None) != (categories is None):
            raise FilterMapError("labels and categories are given together, or neither.")
        own = torch.ones(n, self.filters, dtype=torch.bool, device=maps.device)
        if labels is not None and categories is not None:
            own = labels[:, None] == categories[None, :]
        scaled = maps * (self.sharpness / self._scale(maps))[:, None, None]
        every, shown = torch.cat([scaled, self.recent]), torch.cat([own, self.shown])
        self.recent, self.shown = every.detach()[: self.memory], shown[: self.memory]
        scores = torch.einsum("xfc,tc->fxt", every.flatten(2), self.shapes.to(every))
        peaks = torch.arange(scores.shape[2], device=maps.device) < self.size**2
        scores = scores.masked_fill(~shown.mT[:, :, None] & peaks, -torch.inf)
        # Templates that no map has a part in would be 0 over 0; nothing is known of them.
        present = shown.any(0)[:, None, None] | ~peaks
        scores = torch.where(present, scores, 0)
        if self.gradient == "paper":
            return self._pulled(scaled, scores, own)
        return -template_information(scores, self.prior.to(scores))

    def _scale(self, maps: Tensor) -> Tensor:
        now = maps.detach().amax((2, 3)).mean(0)
        self.scale = torch.where(self.scale > 0, SCALE_MEMORY * self.scale + (1 - SCALE_MEMORY) * now, now)
        return torch.where(self.scale > 0, self.scale, 1)

    def _pulled(self, scaled: Tensor, scores: Tensor, own: Tensor) -> Tensor:
        """Return a loss of the right value whose gradient is the paper's (its eq. 4)."""
        with torch.no_grad():
            prior = self.prior.to(scores)
            given = scores.log_softmax(1)
            ratio = given - (given + prior).logsumexp(2, keepdim=True)
            n = len(scaled)
            matching = torch.where(own, highest(scaled), self.size**2).mT.unsqueeze(2)
            pull = (prior.exp() * given.exp() * ratio)[:, :n].gather(2, matching)
            direction = (pull * self.shapes.to(pull)[matching.squeeze(2)]).transpose(0, 1)
            value = -template_information(scores, prior)
        steered = -(scaled * direction.reshape(scaled.shape)).sum((0, 2, 3))
        return value + steered - steered.detach()


def filter_categories(
    maps: Float[Tensor, "n filters h w"], labels: Int[Tensor, " n"], classes: int
) -> Int[Tensor, " filters"]:
    """Return the class on whose images each filter is most active on average (sec. 3)."""
    mean = maps.detach().mean((2, 3))
    total = mean.new_zeros(classes, mean.shape[1]).index_add_(0, labels, mean)
    return (total / labels.bincount(minlength=classes).clamp_min(1)[:, None]).argmax(0)


def balancing_weight(task_loss: Tensor, filter_loss: Tensor, maps: Tensor, share: float = 0.1) -> float:
    """Return the weight at which the filter loss's gradient at the maps is a share of the task's, by length.

    Taken once, at the start of training; then it falls as one over the epoch. 0 where the filter loss has no gradient.
    """
    lengths = [float(torch.autograd.grad(loss, maps, retain_graph=True)[0].norm()) for loss in (task_loss, filter_loss)]
    return share * lengths[0] / lengths[1] if lengths[1] > 0 else 0.0


def part_interpretability(
    maps: Float[Tensor, "n filters h w"],
    parts: Bool[Tensor, "n parts height width"],
    geometry: Geometry,
    *,
    q: float = 0.005,
    hit: float = 0.2,
) -> Float[Tensor, "filters parts"]:
    """Return how often each filter hits each part, among images that hold the part (sec. 4.2); NaN if none does.

    A map is thresholded at the value that a share q of all cells exceeds, enlarged to the image, and hits where its
    intersection over union with the part is above `hit`. Both rules differ from network dissection's on purpose. The
    paper reports the mean over filters of the largest share over parts.

    Args:
        maps: of one layer.
        parts: masks, in pixels.
        geometry: where cells lie in the image.
        q: share of cells above the threshold.
        hit: intersection over union.
    """
    quantile = UpperQuantile(q, total=maps.shape[0] * maps.shape[2] * maps.shape[3])
    quantile.add(maps)
    threshold = quantile.value().threshold
    rows, columns = (geometry.weights(a, maps.shape[2 + a]).to(maps) for a in (0, 1))
    hits = torch.zeros(maps.shape[1], parts.shape[1], dtype=torch.float64)
    for image, masks in zip(maps, parts, strict=True):
        active = ((rows @ image @ columns.mT) > threshold[:, None, None]).flatten(1).double()
        known = masks.flatten(1).double()
        shared = active @ known.mT
        union = active.sum(1)[:, None] + known.sum(1) - shared
        hits += (shared / union.clamp_min(1) > hit).double()
    return hits / parts.flatten(2).any(2).sum(0)


def location_instability(
    maps: Float[Tensor, "n filters h w"],
    landmarks: Float[Tensor, "n parts 2"],
    geometry: Geometry,
    *,
    top: int = 100,
) -> Float[Tensor, "filters parts"]:
    """Return how much the distance from a filter's peak to a landmark varies over images (sec. 4.2); lower is better.

    The standard deviation of the distance between the landmark and the centre of the peak's cell, over the image's
    diagonal, on the images where the filter is highest. NaN where fewer than two have the landmark.

    Args:
        maps: of one layer.
        landmarks: row and column in pixels; NaN where an image has none.
        geometry: where cells lie in the image.
        top: images that count for each filter.
    """
    flat = maps.flatten(2)
    peaks = flat.argmax(2)
    width = maps.shape[3]
    start, stride = torch.tensor(geometry.start), torch.tensor(geometry.stride)
    place = torch.stack([peaks // width, peaks % width], 2) * stride + start
    distance = (place[:, :, None].double() - landmarks[:, None].double()).norm(dim=3)
    distance = distance / math.hypot(*geometry.size)
    first = flat.amax(2).topk(min(top, len(maps)), 0).indices
    chosen = distance.gather(0, first[:, :, None].expand(-1, -1, landmarks.shape[1]))
    known = ~chosen.isnan()
    count = known.sum(0)
    mean = torch.where(known, chosen, 0).sum(0) / count
    square = torch.where(known, (chosen - mean).square(), 0).sum(0) / (count - 1)
    return torch.where(count > 1, square.clamp_min(0).sqrt(), torch.nan)


def check_maps(maps: Tensor, size: int) -> None:
    """Refuse maps that are not squares of so many cells on a side.

    Raises:
        FilterMapError: if they are not.
    """
    if maps.ndim != 4 or tuple(maps.shape[2:]) != (size, size):
        raise FilterMapError(
            f"maps must be [n, filters, {size}, {size}], got {tuple(maps.shape)}: give the layer's own size, and square "
            "maps only."
        )
