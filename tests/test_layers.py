"""Layers are found by dotted path, and what is not found is named with its neighbours."""

import pytest
from nets import ConvNet, SharedReluNet
from torch import nn

from probing.layers import LayerNotFoundError, expand, resolve, split_call


def test_a_dotted_path_is_the_submodule_that_it_names() -> None:
    net = ConvNet()
    assert resolve(net, "features.2") is net.features[2]
    assert resolve(net, "head") is net.head


def test_the_empty_path_is_the_model_itself() -> None:
    net = ConvNet()
    assert resolve(net, "") is net


def test_an_unknown_path_names_the_model_the_path_and_its_near_names() -> None:
    with pytest.raises(
        LayerNotFoundError, match=r"ConvNet has no layer 'featres\.2'.*'features\.2'"
    ) as caught:
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


def test_a_glob_gives_its_matches_in_the_order_of_the_model_and_never_the_model() -> None:
    assert expand(ConvNet(), ["*"]) == (
        "features",
        "features.0",
        "features.1",
        "features.2",
        "features.3",
        "pool",
        "head",
    )
    assert expand(ConvNet(), ["features.?"]) == (
        "features.0",
        "features.1",
        "features.2",
        "features.3",
    )
    assert expand(ConvNet(), ["features.[13]"]) == ("features.1", "features.3")


def test_a_star_matches_dots() -> None:
    nested = nn.Sequential(ConvNet())
    assert "0.features.0" in expand(nested, ["0.*"])


def test_patterns_keep_the_order_given_and_repeats_are_dropped() -> None:
    wanted = ["head", "", "features.*", "features.2", "head"]
    found = expand(ConvNet(), wanted)
    assert found == ("head", "", "features.0", "features.1", "features.2", "features.3")


def test_no_patterns_give_no_layers() -> None:
    assert expand(ConvNet(), []) == ()


def test_a_glob_without_a_match_is_an_error_with_near_names() -> None:
    with pytest.raises(LayerNotFoundError, match=r"no layer 'feature\[0\]'.*features"):
        expand(ConvNet(), ["head", "feature[0]"])


def test_globs_distinguish_upper_and_lower_case() -> None:
    with pytest.raises(LayerNotFoundError):
        expand(ConvNet(), ["HEAD*"])


def test_a_numbered_call_is_kept_as_an_address() -> None:
    assert expand(SharedReluNet(), ["relu:1", "relu"]) == ("relu:1", "relu")
    with pytest.raises(LayerNotFoundError, match=r"'rleu'.*'relu'"):
        expand(SharedReluNet(), ["rleu:1"])


def test_an_address_splits_into_path_and_call() -> None:
    assert split_call("block.relu:12") == ("block.relu", 12)
    assert split_call("block.relu") == ("block.relu", None)
    assert split_call(":0") == ("", 0)
    assert split_call("relu:x") == ("relu:x", None)
    assert split_call("relu:-1") == ("relu:-1", None)
