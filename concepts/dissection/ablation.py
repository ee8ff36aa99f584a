"""What a network loses without some of a layer's units, and what it can still do with them alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import Batch
from probing.data.examples import Examples, ExampleSet, as_examples
from probing.models.calling import run
from probing.models.geometry import Layout
from probing.models.hooks import edit
from probing.models.loading import Model, module_of
from probing.models.precision import device_of
from probing.models.scores import class_scores, refuse_training
from probing.results.figures import FAINT, INK, PALETTE, new_figure, style
from probing.results.result import Provenance, Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_ROWS = 8


class AblationError(ProbingError, ValueError):
    """Units that can't be left out as asked for."""


@dataclass(frozen=True)
class AblationResult(Result):
    """Balanced accuracy (0-1) and mean score of the true class, by number of units."""

    layer: str
    counts: tuple[int, ...]
    accuracy: float
    """Of the whole network."""
    score: float
    """Mean score of the true class in the whole network, in logits."""
    without: Float[Tensor, " counts"]
    """Accuracy without the first so many units of the order."""
    alone: Float[Tensor, " counts"]
    """Accuracy with these units alone."""
    without_random: Float[Tensor, "counts draws"]
    """Accuracy without as many units at random: what any units would cost."""
    score_without: Float[Tensor, " counts"]
    """Mean score of the true class without the first so many units."""
    score_without_random: Float[Tensor, "counts draws"]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per number of units."""
        import pandas as pd

        return pd.DataFrame(
            {
                "units": self.counts,
                "without": self.without.tolist(),
                "alone": self.alone.tolist(),
                "without_random": self.without_random.mean(1).tolist(),
                "score_change": (self.score_without - self.score).tolist(),
                "score_change_random": (self.score_without_random.mean(1) - self.score).tolist(),
            }
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw accuracy without the units, with them alone, and without as many units at random."""
        if ax is None:
            with style():
                return self.plot(new_figure(4.6, 2.3).add_subplot())
        for drawn in self.without_random.T:
            ax.plot(self.counts, drawn, color=FAINT, lw=0.6, alpha=0.6)
        ax.plot([], [], color=FAINT, lw=0.6, label="without as many at random")
        ax.plot(self.counts, self.without, "o-", color=PALETTE[0], label="without these units")
        ax.plot(self.counts, self.alone, "s-", color=PALETTE[1], label="these units alone")
        ax.axhline(self.accuracy, color=INK, lw=0.7, ls=(0, (4, 3)), label="whole network")
        ax.set(
            xscale="log",
            ylim=(0, 1.02),
            xlabel=f"units of {self.layer}",
            ylabel="balanced accuracy",
        )
        ax.set_xticks(self.counts, [str(count) for count in self.counts])
        ax.minorticks_off()
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax


@dataclass(frozen=True)
class Ablation:
    """Sets the output of units to 0 at every place and measures the network (Bau et al. 2020, sec. 3.3).

    Judge on other images than the order was made on: units that were chosen by their effect on some images lose part
    of it on others.

    Attributes:
        layer: that returns a map, or tokens of patches.
        counts: how many units are left out, or left; those beyond the layer's units are dropped.
        draws: random sets of each size.
        seed: of the random sets.

    Raises:
        AblationError: for units that the layer has not, or classes that do not fit the examples.

    Example:
        >>> order = result.rows_of("layer4")[result.iou[result.rows_of("layer4"), cat].argsort(descending=True)]
        >>> Ablation("layer4")(loaded.model, images, classes, result.unit[order])
    """

    layer: str
    counts: tuple[int, ...] = (1, 2, 3, 4, 5, 20, 64, 128, 256)
    draws: int = 5
    seed: int = 0

    def __call__(
        self,
        model: Model,
        examples: Examples,
        classes: Int[Tensor, " n"],
        order: Int[Tensor, " ranked"],
    ) -> AblationResult:
        """Measure a model.

        Args:
            model: a classifier in evaluation mode.
            examples: to judge it on.
            classes: the true class of each.
            order: units, those to be left out first in front.
        """
        model = module_of(model)
        refuse_training(model)
        examples = as_examples(examples)
        if len(classes) != len(examples):
            raise AblationError(f"{len(examples)} examples need as many classes, got {len(classes)}.")
        one = examples.load([0])
        layout = Layout.of(model, one, self.layer)
        units = self._units(model, layout, one)
        ranked = order.tolist()
        if len(set(ranked)) < len(ranked) or not all(0 <= u < units for u in ranked):
            raise AblationError(
                f"order must name units of {self.layer!r} from 0 to {units - 1}, each once, got {ranked[:8]}."
            )
        counts = tuple(c for c in self.counts if c <= len(ranked))
        if not counts:
            raise AblationError(f"counts {self.counts} are more than the {len(ranked)} units of the order.")
        rng = np.random.default_rng(self.seed)
        everything = set(range(units))
        sets: list[set[int]] = [set()]
        for count in counts:
            first = set(ranked[:count])
            sets += [first, everything - first]
            sets += [set(rng.permutation(units)[:count].tolist()) for _ in range(self.draws)]
        found = [self._measured(model, layout, examples, classes, sorted(s)) for s in sets]
        accuracy, score = (torch.tensor([pair[i] for pair in found[1:]]).double().reshape(len(counts), -1) for i in (0, 1))
        return AblationResult(
            provenance=Provenance.collect(model=model, examples="\0".join(examples.ids), method=self),
            layer=self.layer,
            counts=counts,
            accuracy=found[0][0],
            score=found[0][1],
            without=accuracy[:, 0],
            alone=accuracy[:, 1],
            without_random=accuracy[:, 2:],
            score_without=score[:, 0],
            score_without_random=score[:, 2:],
        )

    def _units(self, model: nn.Module, layout: Layout, one: Batch) -> int:
        found: list[int] = []

        def count(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
            found.append(layout.maps(output).shape[1])
            return output

        with torch.no_grad(), edit(model, {self.layer: count}):
            run(model, one.to(device_of(model)))
        return found[0]

    def _measured(
        self,
        model: nn.Module,
        layout: Layout,
        examples: ExampleSet,
        classes: Tensor,
        left_out: Sequence[int],
    ) -> tuple[float, float]:
        """Return balanced accuracy and the mean score of the true class without some units."""
        outputs = torch.cat(list(self._outputs(model, layout, examples, left_out)))
        hits = (outputs.argmax(1) == classes).double()
        recalls = [hits[classes == c].mean() for c in set(classes.tolist())]
        scores = outputs.gather(1, classes[:, None].long())[:, 0]
        return float(torch.stack(recalls).mean()), float(scores.double().mean())

    def _outputs(
        self, model: nn.Module, layout: Layout, examples: ExampleSet, left_out: Sequence[int]
    ) -> Iterator[Float[Tensor, "n classes"]]:
        units = torch.tensor(left_out, dtype=torch.long)

        def silence(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
            return output.index_fill(layout.axis, units.to(output.device), 0)

        for start in range(0, len(examples), _ROWS):
            rows = range(start, min(start + _ROWS, len(examples)))
            with torch.no_grad(), edit(model, {self.layer: silence}):
                output = run(model, examples.load(rows).to(device_of(model)))
            yield class_scores(output).cpu()
