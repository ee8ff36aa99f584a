"""Layers are found by dotted path, and what is not found is named with its neighbours."""

from collections import OrderedDict
from collections.abc import Mapping

import pytest
import torch
from nets import ConvNet, SharedReluNet, TupleNet, images, seeded
from torch import Tensor, nn

from concepts.data.concept_sets import Concept
from concepts.data.segmentation.labels import Scenes, TensorLabels, Vocabulary
from concepts.dissection.dissection import Dissection
from concepts.tcav.tcav import Tcav
from probing.atlas import Atlas
from probing.attribution.cam.grad_cam import GradCAM
from probing.data.examples import TensorExamples
from probing.models.layers import LayerNotFoundError, expand, matches, matching, resolve, split_call
from probing.models.scores import Score
from probing.models.summary import calls
from probing.probes import LayerProbes, RidgeProbe
from probing.store.store import ActivationStore


def test_a_dotted_path_is_the_submodule_that_it_names() -> None:
    net = ConvNet()
    assert resolve(net, "features.2") is net.features[2]
    assert resolve(net, "head") is net.head


def test_the_empty_path_is_the_model_itself() -> None:
    net = ConvNet()
    assert resolve(net, "") is net


def test_an_unknown_path_names_the_model_the_path_and_its_near_names() -> None:
    with pytest.raises(LayerNotFoundError, match=r"ConvNet has no layer 'featres\.2'.*'features\.2'") as caught:
        resolve(ConvNet(), "featres.2")
    assert isinstance(caught.value, LookupError)
    assert caught.value.__suppress_context__


def test_a_path_near_to_none_shows_the_first_layers() -> None:
    with pytest.raises(LayerNotFoundError, match=r"Close names: \['features', 'features\.0'"):
        resolve(ConvNet(), "zzzzzz")


@pytest.mark.parametrize(
    "path",
    ["forward", "training", "head.weight", "head.", ".head", "features.9", "features.-1", "head:0"],
)
def test_what_is_no_module_is_no_layer(path: str) -> None:
    with pytest.raises(LayerNotFoundError, match="ConvNet has no layer"):
        resolve(ConvNet(), path)


def of(model: nn.Module, *patterns: str, shape: tuple[int, ...] = (1, 6, 6)) -> tuple[str, ...]:
    return expand(model, patterns, lambda: calls(model, torch.zeros(1, *shape)))


def test_a_glob_gives_its_matches_in_the_order_in_which_they_end_and_never_the_model() -> None:
    assert of(ConvNet(), "*") == (
        "features.0",
        "features.1",
        "features.2",
        "features.3",
        "features",
        "pool",
        "head",
    )
    assert of(ConvNet(), "features.?") == ("features.0", "features.1", "features.2", "features.3")
    assert of(ConvNet(), "features.[13]") == ("features.1", "features.3")

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    assert of(Backwards(), "*", shape=(2,)) == ("first", "second")


def test_a_star_matches_dots() -> None:
    nested = nn.Sequential(ConvNet())
    assert "0.features.0" in of(nested, "0.*")
    assert of(nested, "*.[02]") == ("0.features.0", "0.features.2")


def test_patterns_keep_the_order_given_and_repeats_are_dropped() -> None:
    found = of(ConvNet(), "head", "", "features.*", "features.2", "head")
    assert found == ("head", "", "features.0", "features.1", "features.2", "features.3")


def test_paths_need_no_pass_and_no_patterns_give_no_layers() -> None:
    def none() -> Mapping[str, int]:
        raise AssertionError

    assert expand(ConvNet(), [], none) == ()
    assert expand(ConvNet(), ["head", "features.0"], none) == ("head", "features.0")
    assert matching(ConvNet(), ["feat*1", "head"]) == ("features.1", "head")


def test_a_glob_without_a_match_is_an_error_with_near_names() -> None:
    with pytest.raises(LayerNotFoundError, match=r"no layer 'feature\[0\]'.*features"):
        of(ConvNet(), "head", "feature[0]")


def test_globs_distinguish_upper_and_lower_case() -> None:
    with pytest.raises(LayerNotFoundError):
        of(ConvNet(), "HEAD*")
    assert matches("head.weight", "head.*")
    assert not matches("head.weight", "Head.*")


def test_a_numbered_call_is_kept_as_an_address_and_globs_name_calls_too() -> None:
    assert of(SharedReluNet(), "relu:1", "relu", shape=(4,)) == ("relu:1", "relu")
    assert of(SharedReluNet(), "r*:1", shape=(4,)) == ("relu:1",)
    assert set(of(SharedReluNet(), "*:0", shape=(4,))) == {"first:0", "relu:0", "second:0"}
    with pytest.raises(LayerNotFoundError, match=r"'rleu'.*'relu'"):
        of(SharedReluNet(), "rleu:1", shape=(4,))
    with pytest.raises(LayerNotFoundError, match=r"'\*:2' matches, none runs 3 times"):
        of(SharedReluNet(), "*:2", shape=(4,))


def test_a_glob_leaves_out_what_no_path_reads() -> None:
    assert of(SharedReluNet(), "*", shape=(4,)) == ("first", "second")  # relu runs twice
    assert "split" not in of(TupleNet(), "*", shape=(4,))
    with pytest.raises(LayerNotFoundError, match=r"'re\*' matches, none runs once in a pass"):
        of(SharedReluNet(), "re*", shape=(4,))

    class Table(nn.Module):
        """Returns a row per position, whatever the examples."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(3, 4)

    class WithTable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = Table(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.table(x).sum(0))

    assert of(WithTable(), "*", shape=(4,)) == ("head",)


def test_a_path_that_looks_like_a_glob_is_a_path() -> None:
    net = nn.Sequential(OrderedDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2)}))
    assert of(net, "a[0]", shape=(2,)) == ("a[0]",)
    assert of(net, "a?", shape=(2,)) == ("a0",)


def test_a_glob_finds_a_module_by_each_of_its_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(2, 2))
            self.tied = self.encoder[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x)

    net = Tied()
    assert of(net, "t*", shape=(2,)) == ("tied",)
    assert of(net, "*", shape=(2,)) == ("encoder.0", "encoder")


class Stages(nn.Module):
    """Four stages named as in a ResNet, whose blocks use a rectifier twice."""

    def __init__(self) -> None:
        super().__init__()
        block = lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()])  # noqa: E731
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Sequential(block(), block()) for _ in range(4))
        self.relu, self.fc = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.layer2(self.relu(self.layer1(x))))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


@pytest.mark.parametrize("pattern", ["layer?", "layer?.1", "layer3", "*.0.0", "*"])
@pytest.mark.parametrize("listed", [True, False])
def test_every_analysis_reads_the_layers_that_a_glob_names(pattern: str, listed: bool) -> None:
    net = seeded(Stages())
    pictures = images(12, 3, 8)
    examples, labels = TensorExamples(pictures), [i % 2 for i in range(12)]
    layers = [pattern] if listed else pattern  # one string is one layer, not its letters
    wanted = of(net, pattern, shape=(3, 8, 8))
    if pattern == "layer?":
        assert wanted == ("layer1", "layer2", "layer3", "layer4")
    store = ActivationStore()
    assert tuple(store.activations(net, layers, examples, pool="mean")) == wanted
    assert tuple(store.gradients(Score(net, 1), layers, examples, pool="mean")) == wanted
    assert tuple(store.batches(net, layers, examples).__next__()[1]) == wanted
    probes = LayerProbes(pattern, RidgeProbe((1.0,)), inputs=False, controls=0, untrained=False, description_length=False)
    assert probes(store, net, examples, labels).layers == wanted
    [*requests] = probes.requests(net, examples)
    assert tuple(layer for request in requests for layer in request.layers) == wanted
    parts = [TensorExamples(images(9, 3, 8, seed=k)) for k in (1, 2)]
    found = Tcav(null=None, runs=2, relabellings=9)(
        store, {"first": Score(net, 0)}, layers, [Concept("c", parts[0])], examples, parts[1]
    )
    assert found.layers == wanted
    if pattern != "*":  # a dissection refuses `fc`, which returns no map
        labelled = torch.zeros(12, 1, 8, 8, dtype=torch.long)
        labelled[:, :, :4] = 1
        words = Vocabulary(("a",), ("object",))
        scenes = Scenes(examples, TensorLabels(labelled, words), size=(8, 8), frame="input")
        assert Dissection(tuple(layers) if listed else pattern, draws=0)(store, net, scenes).layers == wanted


def test_by_default_probes_read_the_layers_without_layers_inside() -> None:
    net = seeded(Stages())
    examples, labels = TensorExamples(images(12, 3, 8)), [i % 2 for i in range(12)]
    method = LayerProbes(probe=RidgeProbe((1.0,)), inputs=False, controls=0, untrained=False, description_length=False)
    found = method(ActivationStore(), net, examples, labels).layers
    inside = [f"layer{i}.{j}.{k}" for i in range(1, 5) for j in range(2) for k in range(2)]
    assert found == (*inside, "fc")


def test_an_analysis_of_one_layer_takes_no_glob() -> None:
    net, examples = seeded(Stages()), TensorExamples(images(4, 3, 8))
    with pytest.raises(LayerNotFoundError, match=r"has no layer 'layer\?'"):
        Atlas("layer?")(ActivationStore(), net, examples)
    with pytest.raises(LayerNotFoundError, match=r"has no layer 'layer\?'"):
        GradCAM("layer?")(Score(net, 1), images(1, 3, 8))


def test_an_address_splits_into_path_and_call() -> None:
    assert split_call("block.relu:12") == ("block.relu", 12)
    assert split_call("block.relu") == ("block.relu", None)
    assert split_call(":0") == ("", 0)
    assert split_call("relu:x") == ("relu:x", None)
    assert split_call("relu:-1") == ("relu:-1", None)
