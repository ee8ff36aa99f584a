"""The table of a model's layers."""

import nets
import pytest
import torch

from probing.models.summary import SummaryError, summarize


def test_the_model_is_left_as_found() -> None:
    net = nets.seeded(nets.BatchNormNet()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    summarize(net, nets.images())
    assert net.training
    assert all("forward" not in vars(module) for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_row_tells_calls_output_and_weights() -> None:
    rows = {row.path: row for row in summarize(nets.SharedReluNet(), torch.zeros(2, 4))}
    assert list(rows) == ["", "first", "relu", "second"]
    assert (rows["relu"].kind, rows["relu"].calls, rows["relu"].output) == ("ReLU", 2, (3,))
    assert (rows["first"].parameters, rows["first"].weight_bytes) == (30, 120)
    assert rows[""].parameters == 30 + 21


def test_a_layer_that_never_runs_has_no_output() -> None:
    net = nets.ConvNet()
    net.add_module("spare", torch.nn.Linear(2, 2))
    spare = summarize(net, nets.images())[-1]
    assert (spare.path, spare.calls, spare.output) == ("spare", 0, "")


def test_an_input_that_does_not_fit_is_named_with_its_shape() -> None:
    with pytest.raises(SummaryError, match=r"ConvNet fails on an input of shape \(1, 2, 6, 6\)"):
        summarize(nets.ConvNet(), torch.zeros(1, 2, 6, 6))
