"""What probes found, layer by layer, with the controls that it must be read beside."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from probing.results.figures import FAINT, FULL_WIDTH, MARKERS, PALETTE
from probing.results.result import Result

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PerLayer = Float[Tensor, " layers"]
_TOLD = (
    "layer",
    "features",
    "error",
    "low",
    "high",
    "train_error",
    "untrained_error",
    "control_error",
    "selectivity",
    "compression",
    "converged",
)


@dataclass(frozen=True)
class ProbeResult(Result):
    """How well each layer's features predict labels by a linear classifier. NaN marks what was not asked for.

    Errors are shares (0-1) of test examples, which took no part in fitting or in the choice of the penalty.
    """

    layers: tuple[str, ...]
    """In the model's order; `(input)` is the examples themselves."""
    reductions: tuple[str, ...]
    """How each layer's output became features."""
    classes: tuple[str, ...]
    examples: tuple[int, int, int]
    """How many to fit on, to choose the penalty on, and to judge on."""
    groups: int
    """Independent groups of test examples: clusters where groups were given, else examples."""
    grouped: bool
    typed: bool
    """Whether the control task had types of input; else its labels can't be learnt for other examples."""
    level: float
    tolerance: float

    features: PerLayer
    """Length of a feature vector."""
    error: PerLayer
    low: PerLayer
    high: PerLayer
    """Interval of the error, over groups where there are any."""
    train_error: PerLayer
    cross_entropy: PerLayer
    """On test examples, in nats."""
    train_cross_entropy: PerLayer
    penalty: PerLayer
    """Chosen on the validation side."""
    certificate: PerLayer
    """Largest entry of the objective's gradient at the fit, in nats per standardised unit; 0 at the optimum."""
    control_error: PerLayer
    """Of the control task's probes on test examples."""
    control_train_error: PerLayer
    """The same on training examples: 0 where features are so many that any labels can be learnt by heart."""
    untrained_error: PerLayer
    untrained_low: PerLayer
    untrained_high: PerLayer
    """Error and interval with the same architecture at random weights."""
    bits: PerLayer
    """Online code of the training labels, in bits."""
    uniform_bits: float
    """Code of the same labels without features."""
    majority_error: float
    """Of always answering the class most frequent in training."""
    step: Float[Tensor, " steps"]
    """Error of each layer less that of the one before it, on the same test examples."""
    step_p: Float[Tensor, " steps"]
    step_p_holm: Float[Tensor, " steps"]
    """Two-sided p of a paired t-test over groups, as it is and corrected for all neighbours."""

    @property
    def gap(self) -> PerLayer:
        """Generalisation gap: test error less training error."""
        return self.error - self.train_error

    @property
    def selectivity(self) -> PerLayer:
        """Accuracy less accuracy on the control task (Hewitt & Liang 2019)."""
        return self.control_error - self.error

    @property
    def compression(self) -> PerLayer:
        """Uniform code over online code: how much shorter labels become to one who knows the features."""
        return self.uniform_bits / self.bits

    @property
    def converged(self) -> tuple[bool, ...]:
        """Whether each fit's gradient came below the tolerance."""
        return tuple(bool(c <= self.tolerance) for c in self.certificate)

    def sentences(self) -> tuple[str, ...]:
        """Return what must be said beside the numbers, in plain words."""
        found = []
        for layer, certificate, done in zip(self.layers, self.certificate.tolist(), self.converged, strict=True):
            if not done:
                found.append(
                    f"The fit at {layer!r} stopped short of its optimum (largest slope {certificate:.1e} of an allowed "
                    f"{self.tolerance:.0e}): read its numbers as a bound, or raise max_steps or the penalties."
                )
        if not self.control_error.isnan().all() and not self.typed:
            found.append(
                "Without types of input the control task has random labels for every example: on other examples it can "
                "only be at chance, and selectivity is accuracy above chance. Its training error tells where features "
                "suffice to learn labels by heart."
            )
        if not self.grouped:
            found.append(
                "Intervals and tests take examples as independent: where several show the same person or role, give groups."
            )
        return tuple(found)

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per layer; `step` and its p compare a layer with the one before it."""
        import pandas as pd

        table: dict[str, object] = {"layer": self.layers, "reduction": self.reductions}
        table["features"] = self.features.long().numpy()
        names = [f.name for f in fields(self) if f.type is PerLayer and f.name != "features"]
        for name in (*names, "gap", "selectivity", "compression"):
            table[name] = getattr(self, name).numpy()
        table["converged"] = self.converged
        for name in ("step", "step_p", "step_p_holm"):
            table[name] = np.concatenate([[np.nan], getattr(self, name).numpy()])
        return pd.DataFrame(table)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the error over layers, with intervals, beside random weights, the control task and the majority."""
        if ax is None:
            from probing.results.figures import new_figure, style

            with style():
                return self.plot(new_figure(*self.figure_size()).add_subplot())
        x = np.arange(len(self.layers))
        self._curve(ax, x, "", "trained", PALETTE[0], MARKERS[0])
        if not self.untrained_error.isnan().all():
            self._curve(ax, x, "untrained_", "random weights", PALETTE[1], MARKERS[1])
        if not self.control_error.isnan().all():
            ax.plot(x, self.control_error.numpy(), color=PALETTE[2], ls=":", marker=MARKERS[2], label="control task")
        ax.axhline(self.majority_error, color=FAINT, lw=0.8, ls="--", label="majority class")
        self.label_layers(ax)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax

    def label_layers(self, ax: "Axes") -> None:
        """Put the layers on the horizontal axis, turned where they would run into each other."""
        turned = sum(map(len, self.layers)) * 0.06 > 0.8 * self.figure_size()[0]
        ax.set_xticks(
            range(len(self.layers)),
            self.layers,
            rotation=45 if turned else 0,
            ha="right" if turned else "center",
            rotation_mode="anchor",
        )
        ax.set(ylim=(0, None), ylabel="error on test examples", xlabel="layer")

    def figure_size(self) -> tuple[float, float]:
        """Return inches that give each layer room, up to a page's width."""
        return min(FULL_WIDTH, 3.0 + 0.32 * len(self.layers)), 2.6

    def _curve(self, ax: "Axes", x: "np.ndarray", kind: str, label: str, colour: str, marker: str) -> None:
        error, low, high = (getattr(self, f"{kind}{name}").numpy() for name in ("error", "low", "high"))
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        ax.plot(x, error, color=colour, marker=marker, label=label, clip_on=False, zorder=3)

    def notebook_table(self) -> "pd.DataFrame":
        """Return the error beside what it is to be compared with."""
        return self.to_pandas()[list(_TOLD)].dropna(axis=1, how="all")
