"""Probes while a network trains: a callback that probes snapshots."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from torch import Tensor, nn

from probing.core.errors import ArgumentError
from probing.data.examples import Examples, as_examples
from probing.models.precision import frozen_copy
from probing.probes.layer_probes import LayerProbes
from probing.probes.result import ProbeResult
from probing.results.result import Result
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ProbeHistory(Result):
    """Probes of one network at several moments of its training."""

    moments: tuple[int, ...]
    """Steps or epochs, as the callback was told."""
    results: tuple[ProbeResult, ...]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per moment and layer."""
        import pandas as pd

        tables = [r.to_pandas().assign(moment=m) for m, r in zip(self.moments, self.results, strict=True)]
        return pd.concat(tables, ignore_index=True)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the error over layers, a line for each moment, later ones darker."""
        from matplotlib import colormaps

        from probing.results.figures import FAINT, new_figure, style

        if ax is None:
            with style():
                return self.plot(new_figure(*self.results[0].figure_size()).add_subplot())
        x, shades = np.arange(len(self.results[0].layers)), np.linspace(0.25, 1, len(self.moments))
        for moment, result, shade in zip(self.moments, self.results, shades, strict=True):
            ax.plot(x, result.error.numpy(), marker="o", color=colormaps["Blues"](shade), label=str(moment))
        ax.axhline(self.results[0].majority_error, color=FAINT, lw=0.8, ls="--")
        self.results[0].label_layers(ax)
        ax.legend(title="moment", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax

    def notebook_table(self) -> "pd.DataFrame":
        """Return the errors, a row for each moment and a column for each layer."""
        return self.to_pandas().pivot_table("error", "moment", "layer", sort=False)


@dataclass
class TrainingProbes:
    """Probes a network each time it is called, on one set of examples and one split; training goes on undisturbed.

    Each snapshot is read from a copy in evaluation mode, whose rows the store keeps under the snapshot's own weights.

    Attributes:
        method: random weights are the snapshot before training, so they are not read again.

    Example:
        >>> probes = TrainingProbes(LayerProbes("layer?"), ActivationStore(), images, labels)
        >>> for epoch in range(10):
        ...     probes(net, epoch)
        ...     train_one_epoch(net)
        >>> probes.history().plot()
    """

    method: LayerProbes
    store: ActivationStore
    examples: Examples
    labels: Sequence[object] | Int[Tensor, " n"] | None = None
    groups: Sequence[str] | None = None
    _found: dict[int, ProbeResult] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.examples = as_examples(self.examples)

    def __call__(self, model: nn.Module, moment: int) -> ProbeResult:
        """Probe the network as it is now; asked again for a moment, the newer reading counts."""
        method = replace(self.method, untrained=False)
        snapshot = frozen_copy(model).eval()
        result = method(self.store, snapshot, self.examples, self.labels, groups=self.groups)
        self._found[moment] = result
        return result

    def history(self) -> ProbeHistory:
        """Return what was found so far.

        Raises:
            ValueError: if nothing was.
        """
        if not self._found:
            raise ArgumentError("no snapshot was probed yet: call this with a model and a moment.")
        moments = tuple(sorted(self._found))
        results = tuple(self._found[m] for m in moments)
        return ProbeHistory(results[-1].provenance, moments, results)
