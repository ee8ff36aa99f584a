"""What is asked of the activation store, what it answers, and what that cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from probing.core.content_ids import is_sharded
from probing.core.errors import ProbingError
from probing.core.inputs import Batch, Inputs, not_one_tensor, row_ids
from probing.data.examples import Examples, ExampleSet, as_examples, refuse_random
from probing.models.geometry import units_axis
from probing.models.layers import expand
from probing.models.loading import Model, module_of
from probing.models.model_cache import unchanged
from probing.models.precision import Precision
from probing.models.readings import Reading
from probing.models.runner import Pool, PoolError
from probing.models.scores import Score, refuse_training
from probing.models.summary import calls
from probing.store.shards import Space


class RequestError(ProbingError, ValueError):
    """A request that no rows could answer."""


class ShardedModelError(ProbingError, RuntimeError):
    """A model that no process can run alone."""


@dataclass
class StoreStats:
    """What a store did, counted in examples; damaged shards are counted as shards.

    Attributes:
        forward_rows: passed forward to fill rows.
        backward_rows: passed backward to fill rows, once per score.
        reused_rows: served without a pass.
        canary_rows: passed again to check stored rows.
        estimate_rows: passed forward for an estimate.
        dropped_shards: shards found damaged, and their rows computed again.
        prepared: how the copies of models that computed rows ran, such as `channels_last, 20 BatchNorm folded`.
    """

    forward_rows: int = 0
    backward_rows: int = 0
    reused_rows: int = 0
    canary_rows: int = 0
    estimate_rows: int = 0
    dropped_shards: int = 0
    prepared: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Estimate:
    """What a request would cost: examples to compute of those asked for, and bytes of rows to keep."""

    missing: int
    examples: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.missing} of {self.examples} examples to compute, {self.bytes / 1e6:,.1f} MB of rows"


@dataclass(frozen=True)
class Rows:
    """Rows of a request: positions in the example set, outputs by layer, and gradients by score and layer."""

    positions: list[int]
    activations: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]


@dataclass(frozen=True)
class Request:
    """Rows to be there before they are asked for: as of `activations`, or with scores as of `gradients_of`.

    What it holds can be sent to another process, if the model and the examples can.
    """

    model: Model
    layers: tuple[str, ...]
    examples: Examples
    pool: Pool = "none"
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Job:
    """One request: which rows of which spaces, and how to compute them."""

    model: nn.Module
    layers: tuple[str, ...]
    scores: tuple[Score, ...]
    pools: dict[str, Pool]
    outputs: dict[str, Space]
    slopes: tuple[dict[str, Space], ...]
    examples: ExampleSet
    positions: dict[str, list[int]]

    @property
    def spaces(self) -> list[Space]:
        """All spaces that rows are asked of, each once."""
        return list(dict.fromkeys(space for by_layer in (self.outputs, *self.slopes) for space in by_layer.values()))

    @property
    def weights(self) -> str:
        """The content id of the model."""
        return self.spaces[0].weights

    def load(self, ids: Sequence[str]) -> Batch:
        """Return examples by id."""
        batch: object = self.examples.load([self.positions[e][0] for e in ids])
        if isinstance(batch, Mapping):
            raise RequestError(
                f"what {type(self.examples).__name__} loads is a {type(batch).__name__} of {[str(key) for key in batch]}: "
                "have it return probing.Inputs(…) of that."
            )
        if not isinstance(batch, Tensor | Inputs):
            raise RequestError(not_one_tensor(batch, f"what {type(self.examples).__name__} loads"))
        return batch

    def load_with_ids(self, ids: Sequence[str]) -> tuple[Batch, list[str]]:
        """Return examples by id, and the content ids of what the model is given."""
        inputs = self.load(ids)
        return inputs, row_ids(inputs)

    @classmethod
    def of(
        cls,
        model: Model,
        layers: Sequence[str],
        examples: Examples,
        pool: Pool,
        precision: Precision,
        scores: Sequence[Score] = (),
    ) -> "Job":
        """Name the rows of a request by what they depend on.

        Raises:
            RequestError: for an empty example set, or scores of another model or with a class per example.
            LayerNotFoundError, ModelModeError, ForeignHookError: for a model or layers that can't be read.
            ShardedModelError: for a model that lies in pieces in several processes.
            ChangedExampleError: for examples that are loaded otherwise each time.
        """
        model = module_of(model)
        refuse_training(model)
        _refuse_sharded(model)
        examples = as_examples(examples)
        if not len(examples):
            raise RequestError("the example set is empty: there is nothing to read.")
        refuse_random(examples)
        with unchanged(model) as weights:
            names = expand(model, layers, lambda: calls(model, examples.load([0])))
            pools = _pools(model, names, examples, pool)

        def spaces(quantity: str, how: Precision) -> dict[str, Space]:
            return {n: Space(weights, type(model).__name__, n, quantity, pools[n], how.kind) for n in names}

        slopes = tuple(spaces(_quantity(score), precision.gradients) for score in scores)
        positions: dict[str, list[int]] = {}
        for i, example in enumerate(examples.ids):
            positions.setdefault(example, []).append(i)
        outputs = spaces("activation", precision)
        return cls(model, names, tuple(scores), pools, outputs, slopes, examples, positions)


def _pools(model: nn.Module, layers: Sequence[str], examples: ExampleSet, pool: Pool) -> dict[str, Pool]:
    """Return what a pooling means at each layer: a mean is one over places, whichever axes these are."""
    pools = dict.fromkeys(layers, pool)
    if pool != "mean":
        return pools
    one = examples.load([0])
    return {layer: pool_of(model, one, layer) for layer in layers}


def pool_of(model: nn.Module, one: Batch, layer: str) -> Pool:
    """Return how a layer's outputs are averaged over places, given an example.

    Raises:
        PoolError: if its axes don't tell which of them are places.
    """
    axes, axis = units_axis(model, one, layer)
    if axis is None:
        raise PoolError(
            f"of what layer {layer!r} returns it can't be told which axes are places: say whether units come last or first, "
            "by pool='mean_last' or 'mean_first'."
        )
    if axes == 3:
        return "mean" if axis == -1 else "mean_first"
    return "mean_last" if axis == -1 and axes > 3 else "mean"


def _refuse_sharded(model: nn.Module) -> None:
    if any(is_sharded(module) for module in model.modules()):
        raise ShardedModelError(
            f"{type(model).__name__} lies in pieces in several processes, which must pass every batch together, and a "
            "store's workers pass batches alone: read it by capture() in all processes at once, or give each the whole "
            "weights (get_model_state_dict of torch.distributed.checkpoint.state_dict, with full_state_dict=True)."
        )


def model_of(scores: Sequence[Score]) -> nn.Module:
    """Return the one model of some scores."""
    if not scores or any(score.model is not scores[0].model for score in scores):
        raise RequestError("scores must be one or more scores of the same model.")
    return scores[0].model


def _quantity(score: Score) -> str:
    part = "" if score.output is None else f" of output {score.output!r}"
    if isinstance(score.target, Reading) and score.count is None and not score.is_open:
        return f"gradient of {score.target.key}{part}"
    if not isinstance(score.target, int):
        raise RequestError(
            "several scores must name one class each; use gradients(score, …) for one class per example, or for the top "
            "class of each."
        )
    return f"gradient of {score.unit} {score.target}{part}"
