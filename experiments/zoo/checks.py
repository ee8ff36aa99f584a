"""What is computed for the zoo, and what it is checked against: formulas written out, by plain PyTorch in float64."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
from subjects import Subject
from torch import Tensor, nn
from torch.nn import functional

from concepts.data.concept_sets import Concept
from concepts.data.segmentation.labels import Scenes, TensorLabels, Vocabulary
from concepts.dissection.dissection import Dissection
from concepts.dissection.protocols import Protocol
from concepts.tcav.tcav import Tcav
from probing.attribution.base import Attribution, LocalMethod
from probing.attribution.baselines import Samples
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GuidedBackprop
from probing.attribution.methods import ATTENTION_METHODS, METHODS
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.owen import OwenSampling
from probing.attribution.perturbation.surrogate import KernelShap, ShapleySampling
from probing.core.errors import ProbingError
from probing.core.inputs import Batch, Inputs
from probing.data.examples import as_examples
from probing.maximization import Channel, Space, maximize
from probing.models.geometry import Layout
from probing.models.precision import Precision
from probing.probes import LayerProbes, RidgeProbe
from probing.probes.split import Split
from probing.store.store import ActivationStore

SMOOTH, EXPECTED, COALITIONS, MASKS, STEPS, MANY = 10, 20, 200, 100, 12, 24

MOST_MISSED = {
    "ig": 0.01,
    "layer_ig": 0.01,
    "deeplift": 1e-3,
    "lrp": 1e-3,
    "cam": 1e-3,
    "rollout": 1e-5,
    "lime": 1e-3,
    "shapley": 1e-3,
    "owen": 1e-3,
}
"""The largest share of the score, or of its change, that a map's parts may miss."""
MOST_CHANNELS = 100
"""Of a layer whose channels are left out one by one by the check too."""
MOST_OFF = 1e-3
"""The largest distance of values from their definition, as a share of the largest of them."""


@dataclass(frozen=True)
class Outcome:
    """What one method gives on one model.

    Attributes:
        cell: a number, `map`, `zero`, `refused`, or `FAILS`.
        reason: of what is refused or fails.
        seconds: of the processor.
    """

    cell: str
    reason: str = ""
    seconds: float = 0.0


def shown(share: float, most: float) -> Outcome:
    """Return a share as a cell; it fails above the most."""
    if not share <= most:
        return Outcome("FAILS", f"it is off by {share:.2%}")
    return Outcome(f"{100 * share:.2f} %" if share >= 5e-5 else "< 0.01 %")


def off(found: Tensor, truth: Tensor) -> float:
    """Return the largest distance of values from the truth, as a share of its largest value."""
    if found.shape != truth.shape:
        return float("nan")
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


# --- by plain PyTorch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """A float64 copy of a model, passed and differentiated without the suite; of one with other numbers, a copy as it is."""

    subject: Subject
    net: nn.Module

    @classmethod
    def of(cls, subject: Subject) -> "Truth":
        """Copy a model."""
        net = copy.deepcopy(subject.model)
        for module in net.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False
        return cls(subject, net.double() if subject.exact else net)

    def of_inputs(self, batch: Batch) -> Batch:
        """Return a batch in the copy's numbers."""
        if not self.subject.exact:
            return batch
        return batch.map(_double) if isinstance(batch, Inputs) else _double(batch)

    def number(self, batch: Batch) -> Tensor:
        """Return what is explained of each example."""
        given = self.of_inputs(batch)
        output = self.net(**given.tensors) if isinstance(given, Inputs) else self.net(given)
        return self.subject.number(output)

    def at(self, layer: str, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the number explained, what a layer returns, and the number's gradient there."""
        kept: list[Tensor] = []
        path, _, part = layer.partition("[")

        def keep(module: nn.Module, before: object, output: Any) -> Any:
            one = output if isinstance(output, Tensor) else output[int(part[:-1] or 0) if part else 0]
            if kept:
                return None
            kept.append(one if one.requires_grad else one.detach().requires_grad_())
            new = kept[0].clone()  # which the next layer may overwrite
            return new if isinstance(output, Tensor) else tuple(new if part is one else part for part in output)

        handle = self.net.get_submodule(path).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                value = self.number(batch)
                (slope,) = torch.autograd.grad(value.sum(), kept[0])
        finally:
            handle.remove()
        return value.detach(), kept[0].detach(), slope

    def slopes(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return each explained input's values, those of its embedding for token ids, and the number's gradient there."""
        given = self.of_inputs(batch)
        if isinstance(given, Tensor) and given.is_floating_point():
            leaf = given.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.number(leaf).sum(), leaf)
            return {"": (given, slope)}
        found = {}
        named = given.tensors if isinstance(given, Inputs) else {"": given}
        floats = {n: t.clone().requires_grad_() for n, t in named.items() if t.is_floating_point() and "mask" not in n}
        if floats:
            slopes = torch.autograd.grad(self.number(Inputs({**named, **floats})).sum(), list(floats.values()))
            found = {n: (t.detach(), s) for (n, t), s in zip(floats.items(), slopes, strict=True)}
        if self.subject.embedding:
            words = "input_ids" if "input_ids" in named else ""
            found[words] = self.at(self.subject.embedding, batch)[1:]
        return found


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


class _Gate(torch.autograd.Function):
    """A rectifier with an upper end, through which only positive gradients pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, both: bool) -> Tensor:
        ctx.open = (x > 0) & (x < top) if both else None
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        passed = slope.clamp(min=0)
        return passed if ctx.open is None else passed * ctx.open, None, None


@contextmanager
def gated(*, both: bool) -> Iterator[None]:
    """Let only positive gradients through rectifiers, of those and what they have let through where `both`.

    Guided backpropagation (Springenberg et al. 2015) is both, deconvolution (Zeiler & Fergus 2014) is not.
    """

    def rectify(x: Tensor, inplace: bool = False, top: float = torch.inf) -> Tensor:
        return cast("Tensor", _Gate.apply(x, top, both))

    with ExitStack() as stack:
        for place in (functional, torch, Tensor):
            stack.enter_context(mock.patch.object(place, "relu", rectify))
        stack.enter_context(mock.patch.object(functional, "relu6", lambda x, inplace=False: rectify(x, top=6.0)))
        stack.enter_context(mock.patch.object(nn.ReLU6, "forward", lambda self, x: rectify(x, top=6.0)))
        yield


# --- local methods ----------------------------------------------------------------------------------------------------


def method(name: str, truth: Truth) -> LocalMethod:
    """Return a method as the table says; what has a definition is computed in float64, if the model allows it."""
    subject = truth.subject
    precision = {"precision": Precision("float64")} if name in DEFINITIONS and subject.exact else {}
    arguments: dict[str, dict[str, Any]] = {
        "ig": {"steps": "auto"},
        "guided_ig": {"steps": 10},
        "blur_ig": {"steps": 10},
        "layer_ig": {"path": IntegratedGradients(steps="auto")},
        "expected_gradients": {"samples": EXPECTED},
        "smoothgrad": {"samples": SMOOTH},
        "lime": {"surrogate": KernelShap(max(COALITIONS, 2 * subject.parts))},
        "rise": {"masks": MASKS},
        "shapley": {"by": ShapleySampling(4, exact=6)},
        "owen": {"by": OwenSampling(4, exact=False)},
        "sobol": {"masks": 2},
    }
    if name == "layer_ig" and subject.embedding:
        arguments["layer_ig"] |= {"layer": subject.layer, "space": "input"}
    if name == "expected_gradients" and not subject.exact:
        arguments[name]["background"] = Samples.of(cast("Tensor", subject.inputs(8, 1)))
    elif name == "expected_gradients":
        parts = [values for values, _ in truth.slopes(subject.inputs(8, 1)).values()]
        whole = parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)
        arguments[name]["background"] = Samples.of(whole.float())
    if name == "guided_gradcam":
        return METHODS[name](cam=GradCAM(layer=subject.cam, **precision), backprop=GuidedBackprop(**precision))
    if subject.cam and name in LAYERED:
        arguments[name] = {"layer": subject.cam, **arguments.get(name, {})}
    return {**METHODS, **ATTENTION_METHODS}[name](**arguments.get(name, {}), **precision)


def local(subject: Subject, names: Sequence[str]) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Yield what computes and checks each local method."""
    truth, one = Truth.of(subject), subject.inputs(1, 0)
    for name in names:
        yield name, lambda name=name: judged(name, truth, one)  # type: ignore[misc]


def judged(name: str, truth: Truth, one: Batch) -> Outcome:
    """Compute a map and check it: against its definition, by its parts' sum where they must add up, else that it is one."""
    subject = truth.subject
    found = method(name, truth)(subject.score, one)
    flat = found.values.flatten(1).double()
    if not torch.isfinite(flat).all():
        return Outcome("FAILS", "the map is not finite")
    constant = flat.amax(1) == flat.amin(1)
    dark = found.diagnostics.get("nothing_positive", torch.zeros_like(constant))
    if bool((constant & ~dark).any()):
        return Outcome("FAILS", "a map is constant")
    if not bool(found.diagnostics.get("converged", torch.ones(1)).all()):
        gap = float(found.diagnostics["relative_gap"].abs().max())
        return Outcome(
            "jumps", f"the method says itself that its steps do not converge, {gap:.0%} are missing: the score jumps."
        )
    if name in MOST_MISSED:
        return shown(missed(name, found, truth, one), MOST_MISSED[name] * subject.rounding)
    if bool(constant.any()):
        return Outcome("zero")
    distance = DEFINITIONS[name](found, truth, one) if name in DEFINITIONS else None
    return Outcome("map") if distance is None else shown(distance, MOST_OFF * subject.rounding)


def missed(name: str, found: Attribution, truth: Truth, one: Batch) -> float:
    """Return the largest share that the parts of an example's map miss."""
    facts = found.diagnostics
    if name == "lrp":
        absorbed = [facts[f"absorbed_by_{what}"] for what in ("bias", "epsilon", "softmax")]
        gap, whole = facts["input"] + sum(absorbed) - found.score, found.score
    elif name == "cam":
        gap, whole = facts["completeness_gap"], found.score
    elif name == "rollout":
        gap, whole = found.values.flatten(1).sum(1) + facts.get("prefix", 0.0) - 1, torch.ones(1)
    elif name in {"lime", "shapley", "owen"}:
        parts = facts["parts"].flatten().expand(found.values.numel())
        values = found.values.flatten()
        own = sum(float(values[parts == p].double()[0]) for p in parts.unique())
        whole = truth.number(one).detach() - facts["intercept"]
        gap = whole - own
    else:
        assert found.baseline_score is not None
        gap, whole = facts["completeness_gap"], found.score - found.baseline_score
    return float((gap.abs() / whole.abs()).max())


def _whole(parts: dict[str, Tensor], found: Attribution) -> Tensor:
    """Return what is known of each explained input in the shape of a map's values."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return torch.cat([parts[name].flatten(1) for name in found.input_names], 1)


def _saliency(found: Attribution, truth: Truth, one: Batch) -> float:
    return off(found.values, _whole({n: s for n, (_, s) in truth.slopes(one).items()}, found))


def _gradient_times_input(found: Attribution, truth: Truth, one: Batch) -> float:
    return off(found.values, _whole({n: x * s for n, (x, s) in truth.slopes(one).items()}, found))


def _guided(found: Attribution, truth: Truth, one: Batch) -> float:
    with gated(both=True):
        return _saliency(found, truth, one)


def _deconvolution(found: Attribution, truth: Truth, one: Batch) -> float:
    with gated(both=False):
        return _saliency(found, truth, one)


Weighing = Callable[[Tensor, Tensor], Tensor]
"""From a layer's maps and the gradients there to a map."""


def _places(maps: Tensor) -> tuple[int, ...]:
    return tuple(range(2, maps.ndim))


def _plus_plus(maps: Tensor, slopes: Tensor) -> Tensor:
    total = maps.sum(_places(maps), keepdim=True)
    share = slopes.square() / (2 * slopes.square() + total * slopes**3)
    weights = (share.nan_to_num(0, 0, 0) * slopes.relu()).sum(_places(maps), keepdim=True)
    return (weights * maps).sum(1).relu()


def _x_grad(maps: Tensor, slopes: Tensor) -> Tensor:
    weights = (slopes * maps).sum(_places(maps), keepdim=True) / maps.sum(_places(maps), keepdim=True)
    return (weights.nan_to_num(0, 0, 0) * maps).sum(1).relu()


WEIGHINGS: dict[str, Weighing] = {
    "gradcam": lambda maps, slopes: (slopes.mean(_places(maps), keepdim=True) * maps).sum(1).relu(),
    "gradcam++": _plus_plus,
    "hirescam": lambda maps, slopes: (slopes * maps).sum(1),
    "xgradcam": _x_grad,
    "layercam": lambda maps, slopes: (slopes.relu() * maps).sum(1).relu(),
}
LAYERED = {
    "layer_ig",
    "layer_conductance",
    "internal_influence",
    "ablationcam",
    "scorecam",
    "eigencam",
    "finercam",
    *WEIGHINGS,
}
"""Methods that are read at a layer."""


def _weighed(weighing: Weighing) -> Callable[[Attribution, Truth, Batch], float]:
    def check(found: Attribution, truth: Truth, one: Batch) -> float:
        alone = _alone(one, 0)
        _, output, slope = truth.at(found.layer, alone)
        layout = Layout.of(truth.subject.model, alone, found.layer)
        maps, slopes = layout.maps(output), layout.maps(slope)
        expected = weighing(maps, slopes)
        most = torch.maximum((maps * slopes).abs().sum(1).max(), expected.abs().max())  # terms of both signs cancel
        return float((_map(found, expected).double() - expected).abs().max() / most)

    return check


def _map(found: Attribution, like: Tensor) -> Tensor:
    """Return a map without its axis of one channel, of a text without its padding."""
    return found.values.squeeze(1) if found.geometry else found.values.squeeze(-1)[:, : like.shape[1]]


def _guided_gradcam(found: Attribution, truth: Truth, one: Batch) -> float:
    where = GradCAM(layer=truth.subject.cam, precision=Precision("float64"))(truth.subject.score, one).upsampled()
    with gated(both=True):
        return off(found.values, _whole({n: s for n, (_, s) in truth.slopes(one).items()}, found) * where)


def _ablationcam(found: Attribution, truth: Truth, one: Batch) -> float | None:
    one = _alone(one, 0)
    value, output, _ = truth.at(found.layer, one)
    layout = Layout.of(truth.subject.model, one, found.layer)
    if output.shape[layout.axis] > MOST_CHANNELS:
        return None
    falls = torch.zeros(output.shape[layout.axis], dtype=output.dtype)
    for part in torch.arange(len(falls)).split(32):

        def without(module: nn.Module, before: object, result: Any, part: Tensor = part) -> Any:
            whole = result if isinstance(result, Tensor) else result[0]
            copies = whole.clone().movedim(layout.axis, 1)
            copies[torch.arange(len(part)), part] = 0
            copies = copies.movedim(1, layout.axis)
            return copies if isinstance(result, Tensor) else (copies, *result[1:])

        of = found.layer.partition("[")[0]  # of an address as `lstm[0]`, whose first part is replaced
        handle = truth.net.get_submodule(of).register_forward_hook(without)
        try:
            with torch.no_grad():
                rows = [0] * len(part)
                falls[part] = value - truth.number(one[rows])
        finally:
            handle.remove()
    maps = layout.maps(output)
    expected = (falls.view(1, -1, *[1] * (maps.ndim - 2)) * maps).sum(1).relu()
    return off(_map(found, expected), expected)


Check = Callable[[Attribution, Truth, Batch], float | None]
DEFINITIONS: dict[str, Check] = {
    "saliency": _saliency,
    "gradient_times_input": _gradient_times_input,
    "guided_backprop": _guided,
    "deconvolution": _deconvolution,
    "guided_gradcam": _guided_gradcam,
    "ablationcam": _ablationcam,
    **{name: _weighed(weighing) for name, weighing in WEIGHINGS.items()},
}


# --- of a network -----------------------------------------------------------------------------------------------------


def network(subject: Subject) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Yield what computes and checks each reading of the network as a whole."""
    truth = Truth.of(subject)
    yield "store", lambda: _store(truth)
    yield "probes", lambda: _probes(truth)
    yield "tcav", lambda: _tcav(truth)
    yield "dissection", lambda: _dissection(truth)
    yield "maximization", lambda: _maximization(truth)


def _alone(batch: Batch, row: int) -> Batch:
    """Return one example, a text without its padding."""
    one = batch[row : row + 1]
    if isinstance(one, Tensor) or one.read is None:
        return one
    length = int(one.read.sum())
    return one.map(lambda t: t[:, :length])


def _rows(truth: Truth, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return means over places of a layer, and gradients with respect to them, each example by itself."""
    outputs, slopes = [], []
    for row in range(len(batch)):
        _, output, slope = truth.at(truth.subject.layer, _alone(batch, row))
        outputs.append(_units(output, truth.subject).mean(2))
        slopes.append(_units(slope, truth.subject).sum(2))
    return torch.cat(outputs), torch.cat(slopes)


def _units(output: Tensor, subject: Subject) -> Tensor:
    """Return an output by unit and place."""
    first = output.movedim(subject.channels, 1)
    return first.flatten(2) if first.ndim > 2 else first[:, :, None]


def _fresh(subject: Subject) -> ActivationStore:
    """Return an empty store, of float64 rows where the model allows it."""
    return ActivationStore(precision=Precision("float64" if subject.exact else "float32"), progress=False)


def _store(truth: Truth) -> Outcome:
    subject, batch = truth.subject, truth.subject.inputs(6, 2)
    score, layer, examples = subject.score, subject.layer, as_examples(batch)
    outputs = _fresh(subject).activations(subject.model, [layer], examples, pool="mean")[layer]
    slopes = _fresh(subject).gradients(score, [layer], examples, pool="mean")[layer]
    expected = _rows(truth, batch)
    return shown(max(off(outputs, expected[0]), off(slopes, expected[1])), MOST_OFF * subject.rounding)


def _probes(truth: Truth) -> Outcome:
    """Fit a ridge classifier; the truth is one normal equation in float64 on rows of plain PyTorch."""
    subject, batch = truth.subject, truth.subject.inputs(MANY, 3)
    _fresh(subject).activations(subject.model, [subject.layer], as_examples(batch[:2]))  # what is refused is refused here
    rows, slopes = _rows(truth, batch)
    labels = (rows @ slopes.mean(0) > (rows @ slopes.mean(0)).median()).long()
    order = torch.arange(MANY)
    split = Split(order[order % 4 < 2], order[order % 4 == 2], order[order % 4 == 3])
    plain = {"inputs": False, "untrained": False, "controls": 0, "description_length": False}
    probes = LayerProbes(subject.layer, RidgeProbe((0.1,)), **plain)
    found = probes(_fresh(subject), subject.model, as_examples(batch), labels, split=split)
    fitted = rows[split.train]
    scaled = (rows - fitted.mean(0)) / (fitted.std(0, correction=0) + 1e-6)
    x, signs = scaled[split.train], 2.0 * labels[split.train].double() - 1
    gram = x.mT @ x / len(x) + 0.1 * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.mT @ (signs - signs.mean()) / len(x))
    said = scaled[split.test] @ weights + signs.mean() > 0
    wrong = float((said != labels[split.test].bool()).double().mean())
    return shown(abs(float(found.error) - wrong), 0.0)


def _tcav(truth: Truth) -> Outcome:
    """Measure a concept's effect; the truth is the mean gradient times the difference of means."""
    subject = truth.subject
    sets = [subject.inputs(12, seed) for seed in (4, 5, 6)]
    concept, pool, inputs = (as_examples(part) for part in sets)
    found = Tcav(null=None, runs=2, bootstraps=0, relabellings=9)(
        _fresh(subject), {"it": subject.score}, [subject.layer], [Concept("c", concept)], inputs, pool
    )
    (one, _), (other, _), (_, slopes) = (_rows(truth, part) for part in sets)
    per_input = slopes @ (one.mean(0) - other.mean(0))
    return shown(
        abs(float(found.effect) - float(per_input.mean())) / float(per_input.abs().mean()), MOST_OFF * subject.rounding
    )


def _dissection(truth: Truth) -> Outcome:
    """Count where units and labels overlap; the truth is a loop over units and labels on the layer's own cells."""
    subject = truth.subject
    batch = (subject.whole or subject.inputs)(6, 7)
    layout = Layout.of(subject.model, batch[:1], subject.layer)
    cells = layout.cells
    planes = torch.randint(0, 4, (6, 1, *cells), generator=torch.Generator().manual_seed(8))
    words = Vocabulary(("a", "b", "c"), ("object",) * 3)
    scenes = Scenes(as_examples(batch), TensorLabels(planes, words), size=cells, frame="input")
    found = Dissection((subject.layer,), Protocol(0.1, anchors="tiles", union="all"), draws=0)(
        _fresh(subject), subject.model, scenes
    )
    maps = torch.cat([layout.maps(truth.at(subject.layer, batch[i : i + 1])[1]) for i in range(6)])
    values = maps.float().movedim(1, 0).flatten(1)
    number = int(0.1 * values.shape[1])
    level = values.sort(1, descending=True).values[:, number : number + 1]
    active, labels = values > level, planes.flatten()
    expected = [[float((a & (labels == c)).sum() / (a | (labels == c)).sum()) for c in (1, 2, 3)] for a in active]
    return shown(float((found.iou - torch.tensor(expected)).abs().max()), 0.02)


def _maximization(truth: Truth) -> Outcome:
    """Raise a unit; the truth is what plain PyTorch says of the image, which must exceed what noise gives."""
    subject = truth.subject
    one = subject.inputs(1, 0)
    size = tuple(one.shape[2:]) or 16
    found = maximize(
        subject.model, Channel(subject.layer, subject.unit), steps=STEPS, size=size, space=Space.plain(), transforms=()
    )
    batch = found.images.to(one.dtype)
    value = _units(truth.at(subject.layer, batch)[1], subject).mean(2)[:, subject.unit]
    if not float(found.activation) > float(found.trace[0, 0]):
        return Outcome("FAILS", "the unit was not raised")
    return shown(off(found.activation, value), MOST_OFF * subject.rounding)


OPERATIONS = ("store", "probes", "tcav", "dissection", "maximization")
ROWS = (*METHODS, *ATTENTION_METHODS, *OPERATIONS)


def attempt(work: Callable[[], Outcome]) -> Outcome:
    """Return what comes of it, or why it is refused; what breaks without a sentence fails."""
    try:
        return work()
    except ProbingError as error:
        return Outcome("refused", " ".join(str(error).split()))
    except Exception as error:
        return Outcome("FAILS", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
