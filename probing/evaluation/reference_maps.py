"""Maps that know nothing of the network: what a metric says of them is its zero."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.base import Attribution, Demand, Family, LocalMethod, attribution
from probing.core.content_ids import tensor_id
from probing.models.scores import Score
from probing.results.heatmaps import edges, pictures

if TYPE_CHECKING:
    from probing.attribution.base import AttributionMethod


@dataclass(frozen=True)
class EdgeDetector(LocalMethod):
    """The size of the grey values' slope (Sobel): looks like an explanation, is none (Adebayo et al. 2018, sec. 5)."""

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = ()
    demands: ClassVar[tuple[Demand, ...]] = ()

    def explain(self, score: Score, inputs: Float[Tensor, "n c h w"]) -> Attribution:
        maps = edges(pictures(inputs))[:, None].to(inputs)
        return _without_the_model(self, score, inputs, maps)


@dataclass(frozen=True)
class InputSize(LocalMethod):
    """The input's absolute values: what maps that are multiplied by the input look like."""

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = ()
    demands: ClassVar[tuple[Demand, ...]] = ()

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        return _without_the_model(self, score, inputs, inputs.abs())


@dataclass(frozen=True)
class RandomMap(LocalMethod):
    """Independent normal values, drawn from the seed, the input and the weights: another network, another map.

    Attributes:
        seed: of the draw.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = ()
    demands: ClassVar[tuple[Demand, ...]] = ()

    seed: int = 0

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        weights = [tensor_id(p) for p in score.model.parameters()]
        return _without_the_model(self, score, inputs, self.draw(inputs, "".join(weights)))

    def draw(self, inputs: Float[Tensor, "n *shape"], salt: str = "") -> Float[Tensor, "n *shape"]:
        """Return the maps of inputs."""
        drawn = []
        for row in inputs:
            own = int(tensor_id(row)[:15], 16) + sum(int(salt[i : i + 15], 16) for i in range(0, len(salt), 15))
            generator = torch.Generator().manual_seed((own + self.seed * 7919) % (1 << 63))
            drawn.append(torch.randn(row.shape, generator=generator, dtype=torch.float64))
        return torch.stack(drawn).to(inputs)


def _without_the_model(method: "AttributionMethod", score: Score, inputs: Tensor, maps: Tensor) -> Attribution:
    with torch.no_grad():
        value = score(inputs.clone())
    counts = {"n_forward": len(inputs), "n_backward": 0}
    return attribution(method, score, inputs, maps, value, **counts)
