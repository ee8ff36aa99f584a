"""The part of a network after a layer, to be run alone."""

from collections.abc import Callable, Sequence

from torch import Tensor, fx, nn

from probing.core.inputs import Inputs
from probing.models.calling import run
from probing.models.hooks import edit
from probing.models.precision import frozen_copy
from probing.models.scores import Score


def tail_of(model: nn.Module, layer: str) -> fx.GraphModule | None:
    """Return what follows a layer, as a module from its output to the model's; it shares the model's weights.

    None where tracing can't tell it, or where the layer's output is not all that the rest needs.
    """
    tracer = _StopsAt(layer)
    try:
        graph = tracer.trace(frozen_copy(model))  # a copy: a pass may leave proxies behind
    except Exception:  # tracing runs the model's own code, which may raise anything
        return None
    cuts = [n for n in graph.nodes if n.op == "call_module" and n.target == layer]
    after = _after(graph, cuts[0]) if len(cuts) == 1 else None
    try:
        return None if after is None else fx.GraphModule(model, after).eval()
    except AttributeError:  # a constant that tracing has put on its copy
        return None


def given(tail: nn.Module, points: Tensor) -> object:
    """Return what a tail makes of a layer's output; None if it does not run, as traced shapes may not fit."""
    try:
        return tail(points)
    except (RuntimeError, ValueError, IndexError):
        return None


def is_affine(tail: fx.GraphModule) -> bool:
    """Whether a tail is known to be an affine function of its input: pooling by means, reshaping, linear layers."""
    modules = dict(tail.named_modules())
    for node in tail.graph.nodes:
        if node.op == "call_module" and not isinstance(modules[str(node.target)], _AFFINE_MODULES):
            return False
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        if node.op in {"call_method", "call_function"} and name not in _AFFINE_CALLS:
            return False
    return True


def rerun(score: Score, layer: str, tail: nn.Module | None, inputs: Tensor) -> Callable[[Tensor, Tensor | None], object]:
    """Return what gives the model's output from outputs of a layer: the tail, or the whole model with them put in.

    Args:
        score: of a model in evaluation mode.
        layer: whose output is given.
        tail: what follows it, if that could be told.
        inputs: of the examples that rows name.
    """
    if tail is not None:
        return lambda points, rows: tail(points)

    def whole(points: Tensor, rows: Tensor | None) -> object:
        given = inputs if rows is None else inputs[rows.to(inputs.device)]

        def place(tensor: Tensor) -> Tensor:
            """Bring what is no token id to the model's number format, at the precision asked for."""
            return tensor.to(points.dtype) if tensor.is_floating_point() else tensor

        with edit(score.model, {layer: lambda module, before, output: points}):
            entering = score.given(given.to(points.device, copy=True), rows)  # token ids are whole numbers from here on
            return run(score.model, entering.map(place) if isinstance(entering, Inputs) else place(entering))

    return whole


_AFFINE_MODULES = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Dropout,
    nn.Flatten,
    nn.Identity,
    nn.Linear,
)
_AFFINE_CALLS = {
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "contiguous",
    "dropout",
    "flatten",
    "mean",
    "permute",
    "reshape",
    "squeeze",
    "view",
}


class _StopsAt(fx.Tracer):
    """Sees one layer as a whole, and records how weights enter."""

    proxy_buffer_attributes = True

    def __init__(self, layer: str) -> None:
        super().__init__()
        self._layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = module_qualified_name == self._layer
        return own or super().is_leaf_module(m, module_qualified_name)


def _after(graph: fx.Graph, cut: fx.Node) -> fx.Graph | None:
    """Return the graph from a node to the output; None where that needs more than the node and constants."""
    kept = fx.Graph()
    known: dict[fx.Node, fx.Node] = {cut: kept.placeholder("activation")}
    depends = {cut}
    nodes: Sequence[fx.Node] = list(graph.nodes)
    for node in nodes[nodes.index(cut) + 1 :]:
        if not depends.intersection(node.all_input_nodes):
            continue
        depends.add(node)
        for before in node.all_input_nodes:
            if before not in known and not _copy_constant(before, kept, known):
                return None
        known[node] = kept.node_copy(node, lambda n: known[n])
    return kept if any(n.op == "output" for n in kept.nodes) else None


def _copy_constant(node: fx.Node, kept: fx.Graph, known: dict[fx.Node, fx.Node]) -> bool:
    """Copy a node that depends on weights only; False if it depends on the input."""
    if node in known:
        return True
    if node.op in {"placeholder", "call_module"}:
        return False
    if not all(_copy_constant(before, kept, known) for before in node.all_input_nodes):
        return False
    known[node] = kept.node_copy(node, lambda n: known[n])
    return True
