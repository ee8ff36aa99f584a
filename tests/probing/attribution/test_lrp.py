"""Layer-wise relevance propagation: rules against slow re-derivations, the ledger, coverage and refusals."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import lrp_oracles as slow
import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from probing.attribution import METHODS
from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.lrp.composites import (
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    PerLayer,
    Uniform,
)
from probing.attribution.lrp.linear_maps import Convolution, Dense
from probing.attribution.lrp.lrp import LRP
from probing.attribution.lrp.propagation import Affine
from probing.attribution.lrp.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    LinearCall,
    Pass,
    Relevance,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)
from probing.models.consistency import InconsistentModelError
from probing.models.geometry import RefusedError
from probing.models.layers import LayerNotFoundError
from probing.models.readings import OutputError
from probing.models.scores import Score
from probing.results.result import Result, describe, rebuild

ABSORBED = ("absorbed_by_bias", "absorbed_by_epsilon", "absorbed_by_softmax")


def explain(net: nn.Module, x: Tensor, how: Composite | Rule, target: int = 0, **options: object) -> Attribution:
    """Explain a network by a composite, or by one rule for all layers."""
    composite = Uniform(how) if type(how).__module__.endswith(".rules") else how
    return replace(LRP(composite), **options)(Score(net.eval(), target), x)


def neuron(weight: list[float], bias: float | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight), 1, bias=bias is not None).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weight]))
        if bias is not None:
            layer.bias.fill_(bias)
    return layer


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected.to(found), rtol=tolerance, atol=tolerance)


class Calls(nn.Module):
    """A network that calls what it is given, on itself and the input."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def bias_free_cnn() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3, bias=False),
    )
    return nets.seeded(net).double()


def biased_cnn() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    return nets.seeded(net).double()


def pictures(n: int = 3, channels: int = 2, size: int = 8) -> Tensor:
    return nets.images(n, channels, size).double()


# Oracles: one neuron, x = (1, 2), w = (3, -1), z = R = 1.

NEURON = row(1, 2)


def test_lrp_1_the_z_rule_shares_by_products() -> None:
    close(explain(neuron([3, -1]), NEURON, Epsilon(0.0)).values, row(3, -2), 1e-12)


def test_lrp_2_epsilon_keeps_its_part() -> None:
    result = explain(neuron([3, -1]), NEURON, Epsilon(0.5))
    close(result.values, row(2, -4 / 3), 1e-12)
    close(result.diagnostics["absorbed_by_epsilon"], row(1 / 3)[0], 1e-12)


def test_lrp_3_gamma_prefers_positive_weights() -> None:
    close(explain(neuron([3, -1]), NEURON, Gamma(0.25)).values, row(2.142857, -1.142857))


def test_lrp_4_alpha_and_beta_weigh_positive_and_negative_products() -> None:
    close(explain(neuron([3, -1]), NEURON, AlphaBeta(1.0, 0.0)).values, row(1, 0))
    close(explain(neuron([3, -1]), NEURON, AlphaBeta(2.0, 1.0)).values, row(2, -1))


def test_lrp_5_z_box_measures_pixels_from_their_bounds() -> None:
    close(explain(neuron([3, -1]), NEURON, ZBox(-1.0, 3.0)).values, row(6 / 7, 1 / 7))


def test_lrp_6_w_square_and_flat_do_not_look_at_the_input() -> None:
    close(explain(neuron([3, -1]), NEURON, WSquare()).values, row(0.9, 0.1))
    close(explain(neuron([3, -1]), NEURON, Flat()).values, row(0.5, 0.5))


def test_lrp_7_a_bias_takes_its_part() -> None:
    result = explain(neuron([3, -1], 1.0), NEURON, Epsilon(0.0))
    close(result.values, row(3, -2), 1e-12)
    close(result.diagnostics["absorbed_by_bias"], torch.tensor([1.0]), 1e-12)


def test_lrp_8_relevance_of_the_hidden_layer_and_of_the_input() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, -1], [3, -1], [-1, -1]]))
        net[2].weight.copy_(torch.tensor([[1.0, -1, 1]]))
    close(explain(net, row(1, 1), Epsilon(0.0)).values, row(-1, 0), 1e-12)
    close(explain(net[2], row(1, 2, 0), Epsilon(0.0)).values, row(1, -2, 0), 1e-12)


def test_lrp_9_batchnorm_folds_into_the_layer_before_it() -> None:
    mean, variance = torch.tensor([0.5, -0.5]), torch.tensor([4.0, 0.25])
    scale = torch.tensor([2.0, 0.5]) / variance.sqrt()
    affine = Affine(scale, torch.tensor([0.1, 0.2]) - mean * scale)
    weight, bias = affine.folded(Dense(), torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([1.0, -1.0]))
    close(weight, torch.diag(torch.tensor([2.0, 1.0])))
    close(bias, torch.tensor([0.6, -0.3]))


@pytest.mark.parametrize("transposed", [False, True])
def test_lrp_9_a_folded_convolution_computes_what_the_pair_did(transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv, norm = nets.seeded(kind(4, 6, 3, groups=2)), nets.seeded(nn.BatchNorm2d(6))
    norm.running_mean.copy_(torch.linspace(-1, 1, 6))
    norm.running_var.copy_(torch.linspace(0.5, 2, 6))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    affine = Affine(scale.detach(), (norm.bias - norm.running_mean * scale).detach())
    geometry = Convolution([1, 1], [0, 0], [1, 1], transposed, [0, 0], 2)
    folded = affine.folded(geometry, conv.weight.detach(), conv.bias.detach())
    x = nets.images(2, 4, 7)
    close(geometry(x, *folded), norm(conv(x)).detach())


def test_lrp_10_a_residual_sum_shares_by_its_terms() -> None:
    halved = Calls(lambda x: 0.5 * (x[:, :1] + x[:, 1:]))
    close(explain(halved, row(3, 1), Epsilon(0.0)).values, row(1.5, 0.5), 1e-12)


CONSERVING: dict[str, Composite] = {
    "z": Uniform(Epsilon(0.0)),
    "gamma": Uniform(Gamma()),
    "z_plus": Uniform(ZPlus()),
    "w_square": PerLayer({"first": WSquare()}, Uniform(ZPlus())),
    "flat": PerLayer({"first": Flat()}, Uniform(ZPlus())),
    "z_box": PerLayer({"first": ZBox(-4.0, 4.0)}, Uniform(ZPlus())),
    "alpha_2_beta_1": EpsilonAlpha2Beta1(),
}


@pytest.mark.parametrize("name", CONSERVING)
def test_lrp_11_a_bias_free_network_conserves_relevance(name: str) -> None:
    net, x = bias_free_cnn(), pictures()
    with torch.no_grad():
        net[-1].weight.abs_()  # so that no logit lacks positive products, which z⁺ would lose
    result = explain(net, x, CONSERVING[name])
    assert (result.score > 0.1).all()
    torch.testing.assert_close(result.values.flatten(1).sum(1), result.score, rtol=2e-5, atol=1e-6)


def test_lrp_11_without_the_fallback_alpha_beta_does_not_conserve() -> None:
    layer = neuron([3, 1])
    with_it = explain(layer, NEURON, AlphaBeta(2.0, 1.0))
    without = explain(layer, NEURON, AlphaBeta(2.0, 1.0, fallback=False))
    close(with_it.values.sum(1), with_it.score)
    close(without.values.sum(1), 2 * without.score)
    assert float(with_it.diagnostics["fallbacks"]) == 1
    assert float(without.diagnostics["fallbacks"]) == 0


def test_lrp_12_z_plus_maps_of_positive_relevance_are_not_negative() -> None:
    net, x = bias_free_cnn(), pictures()
    with torch.no_grad():
        net[-1].weight.abs_()
    assert float(explain(net, x, ZPlus()).values.min()) >= 0


def test_lrp_13_what_alpha_beta_loses_is_in_the_ledger() -> None:
    result = explain(neuron([-2.0]), row(1.0), AlphaBeta(1.0, 0.0))
    close(result.values, row(0.0))
    close(result.diagnostics["absorbed_by_epsilon"], result.score)


def test_lrp_14_the_ledger_of_one_neuron() -> None:
    result = explain(neuron([3, -1], 1.0), NEURON, Epsilon(0.5))
    close(result.values, row(2.4, -1.6), 1e-12)
    close(result.diagnostics["absorbed_by_bias"], row(0.8)[0], 1e-12)
    close(result.diagnostics["absorbed_by_epsilon"], row(0.4)[0], 1e-12)
    close(result.diagnostics["input"] + 0.8 + 0.4, result.score, 1e-12)


def test_lrp_15_negative_inputs_use_the_generalised_rules() -> None:
    x = row(1, -2)
    close(explain(neuron([3, -1]), x, Gamma(0.25)).values, row(3, 2))
    close(explain(neuron([3, -1]), x, AlphaBeta(1.0, 0.0)).values, row(3, 2))


# Rules against their slow forms.

Oracle = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], slow.Shares]
TINY = 1e-12
RULES: dict[str, tuple[Rule, Oracle]] = {
    "z": (Epsilon(0.0), lambda a, w, b, r, _: slow.epsilon(a, w, b, r, 0)),
    "epsilon": (Epsilon(0.3), lambda a, w, b, r, _: slow.epsilon(a, w, b, r, 0.3)),
    "gamma": (Gamma(0.4, TINY), lambda a, w, b, r, _: slow.gamma(a, w, b, r, 0.4)),
    "alpha_1_beta_0": (
        AlphaBeta(1.0, 0.0, TINY),
        lambda a, w, b, r, _: slow.alpha_beta(a, w, b, r, 1, 0, False),
    ),
    "alpha_2_beta_1": (
        AlphaBeta(2.0, 1.0, TINY),
        lambda a, w, b, r, _: slow.alpha_beta(a, w, b, r, 2, 1, True),
    ),
    "z_plus": (ZPlus(TINY), lambda a, w, b, r, _: slow.alpha_beta(a, w, b, r, 1, 0, False)),
    "z_box": (ZBox(-3.0, 4.0, TINY), lambda a, w, b, r, _: slow.box(a, w, b, r, -3, 4)),
    "w_square": (WSquare(TINY), lambda a, w, b, r, _: slow.squares(a, w, b, r)),
    "flat": (Flat(TINY), slow.flat),
}


def dense_layer() -> tuple[Dense, Tensor, tuple[int, ...]]:
    return Dense(), torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), (7,)


def conv_layer(transposed: bool = False) -> tuple[Convolution, Tensor, tuple[int, ...]]:
    geometry = Convolution([2, 1], [1, 0], [1, 2], transposed, [0, 0], 2)
    shape = (4, 2, 3, 2) if transposed else (6, 2, 3, 2)
    return geometry, torch.randn(shape, generator=torch.Generator().manual_seed(1)), (4, 5, 4)


LAYERS = {
    "dense": dense_layer,
    "conv": conv_layer,
    "conv_transpose": partial(conv_layer, transposed=True),
}


@pytest.mark.parametrize("signs", ["mixed", "positive"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_its_slow_form(name: str, kind: str, signs: str, generator: torch.Generator) -> None:
    rule, oracle = RULES[name]
    map_, weight, shape = LAYERS[kind]()
    weight = weight.double()
    a = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    a = a.abs() if signs == "positive" else a
    units = map_(a, weight, None).shape[1]
    bias = torch.randn(units, generator=generator, dtype=torch.float64)
    output = map_(a, weight, bias)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    call = LinearCall("layer", map_, a, weight, bias, output, Relevance(gradient))
    share = rule(call)
    full = slow.matrix(partial(map_, weight=weight, bias=None), shape)
    reached = slow.matrix(partial(map_, weight=torch.ones_like(weight), bias=None), shape)
    spread = map_(torch.zeros_like(a[:1]), weight, bias).flatten()
    found = share.inputs.of(a)
    for i in range(2):
        r = (output * gradient)[i].flatten()
        expected, by_bias = oracle(a[i].flatten(), full, spread, r, reached)
        close(found[i].flatten(), expected, 1e-7)
        close(share.by_bias[i], by_bias, 1e-7)
        ledger = found[i].sum() + share.by_bias[i] + share.by_epsilon[i]
        close(ledger, r.sum(), 1e-9)


def test_a_stack_of_dense_layers_equals_its_slow_form() -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))).double()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = explain(net, x, Epsilon(0.1), target=1).values
    expected = [slow.epsilon_net(net, one, 1, 0.1) for one in x]
    close(found, torch.stack(expected), 1e-9)


def test_extra_relevance_goes_on_below_rules_that_ignore_activations() -> None:
    """The flat rule gives relevance to units that are zero; the layers below must not lose it."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1], [-1, -1]]))
        net[2].weight.copy_(torch.tensor([[2.0, 5]]))
    result = explain(net, row(1, 3), Flat())
    close(result.values, row(4, 4))  # z = 8: 4 to each hidden unit, the silent one too, then 2 + 2 to each pixel
    close(explain(net, row(1, 3), PerLayer({"0": Epsilon(0.0)}, Uniform(Flat()))).values, row(2, 6))


def test_extra_relevance_of_a_sum_that_is_zero_is_in_the_ledger() -> None:
    net = Calls(lambda x, head: head(x[:, :1] + x[:, 1:]), neuron([1.0], 2.0))
    result = explain(net, row(0, 0), Flat())
    close(result.values, row(0, 0))
    close(result.diagnostics["absorbed_by_epsilon"], result.score)


# Laws.


def test_fault_7_a_functional_residual_conserves_relevance() -> None:
    body = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net = nets.seeded(Calls(lambda x, a, head: head(a(x) + x), body, nn.Linear(4, 2, bias=False))).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = explain(net, x, Epsilon(0.0))
    close(result.values.sum(1), result.score, 1e-9)


@pytest.mark.parametrize(
    "function",
    [F.relu, torch.relu, Tensor.relu, lambda x: F.relu(x, inplace=True), lambda x: x.clamp(min=0)],
)
def test_a_relu_called_as_a_function_equals_its_module(
    function: Callable[[Tensor], Tensor],
) -> None:
    body, head = nn.Conv2d(2, 4, 3), nn.Linear(144, 3)
    called = nets.seeded(Calls(lambda x, a, b: b(function(a(x)).flatten(1)), body, head)).double()
    built = nn.Sequential(body, nn.ReLU(), nn.Flatten(), head)
    x = pictures()
    for composite in (EpsilonPlus(), EpsilonAlpha2Beta1(), EpsilonGammaBox(-4.0, 4.0)):
        assert torch.equal(explain(called, x, composite).values, explain(built, x, composite).values)


def test_batchnorm_is_folded_for_rules_that_look_at_signs() -> None:
    """A negative scale swaps positive and negative weights: z⁺ on the unfolded pair would give another map."""
    conv, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    tail = [nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)]
    pair = nets.seeded(nn.Sequential(conv, norm, *tail)).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -2.0, 0.5]))
        norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
    folded = copy.deepcopy(pair)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        folded[0].weight.mul_(scale.view(-1, 1, 1, 1))
        folded[0].bias.copy_((conv.bias - norm.running_mean) * scale + norm.bias)
    folded[1] = nn.Identity()
    for composite in (EpsilonPlusFlat(), EpsilonAlpha2Beta1Flat()):
        found, expected = (explain(net, pictures(), composite) for net in (pair, folded))
        close(found.values, expected.values, 1e-9)
        close(found.diagnostics["absorbed_by_bias"], expected.diagnostics["absorbed_by_bias"], 1e-9)


def test_batchnorm_before_a_layer_keeps_the_ledger_closed() -> None:
    net = nets.seeded(nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 2)))
    result = explain(net, pictures().float(), EpsilonPlus())
    assert ledger_gap(result) < 1e-5


def test_a_batch_equals_one_at_a_time_and_any_batch_size() -> None:
    net = nets.seeded(nets.ConvNet()).double()
    x = nets.images().double()
    targets = torch.tensor([0, 2, 1, 1])
    whole = LRP()(Score(net, targets), x)
    for size in (1, 3):
        assert torch.allclose(whole.values, LRP(batch_size=size)(Score(net, targets), x).values, rtol=1e-12)
    assert whole.target == (0, 2, 1, 1)
    assert (whole.n_forward, whole.n_backward) == (4, 4)


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_keeps_a_ledger_per_example(batch_first: bool) -> None:
    """Attention merges examples with heads and tokens; what each absorbs must still be told apart."""

    passes = []

    def attend(x: Tensor, layer: nn.MultiheadAttention, head: nn.Module) -> Tensor:
        passes.append(len(x))
        tokens = x if batch_first else x.transpose(0, 1)
        mixed = layer(tokens, tokens, tokens, need_weights=False)[0]
        return head((mixed if batch_first else mixed.transpose(0, 1)).flatten(1))

    net = nets.seeded(Calls(attend, nn.MultiheadAttention(4, 2, batch_first=batch_first), nn.Linear(20, 3))).double()
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = explain(net, x, EpsilonPlus())
    assert passes == [3, 2, 1]  # not one at a time; then the check of the model
    for i in range(3):
        alone = explain(net, x[i : i + 1], EpsilonPlus())
        close(together.values[i : i + 1], alone.values, 1e-9)
        for name in ("input", *ABSORBED):
            close(together.diagnostics[name][i : i + 1], alone.diagnostics[name], 1e-9)
    assert (together.diagnostics["absorbed_by_softmax"].abs() > 1e-6).all()


HIDDEN = torch.ones(5, 5).triu(1).bool()
MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "a sum": lambda scores: scores + torch.zeros(5, 5).masked_fill(HIDDEN, -torch.inf),
    "a difference": lambda scores: scores - torch.zeros(5, 5).masked_fill(HIDDEN, torch.inf),
    "a scaled sum": lambda scores: torch.add(scores, torch.zeros(5, 5).masked_fill(HIDDEN, -torch.inf), alpha=2),
    "a fill": lambda scores: scores.masked_fill(HIDDEN, -torch.inf),
    "a fill in place": lambda scores: scores.clone().masked_fill_(HIDDEN, -torch.inf),
    "a choice": lambda scores: torch.where(HIDDEN, -torch.inf, scores),
    "columns put beside": lambda scores: torch.cat([scores, torch.full((len(scores), 5, 2), -torch.inf)], 2),
    "the lowest number": lambda scores: scores.masked_fill(HIDDEN, torch.finfo(torch.float32).min),
}


def test_a_contrast_with_no_other_class_is_refused() -> None:
    with pytest.raises(OutputError, match=r"a contrast needs at least two classes.*start='score'"):
        explain(neuron([1.0, 2.0]), row(1.0, 1.0), EpsilonPlus(), start="contrast")


@pytest.mark.parametrize("attention", ["product", "constant"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_ledger_closes_where_attention_is_masked(mask: str, attention: str) -> None:
    """What a mask hides takes no relevance, though the mask is infinite there."""

    def attend(x: Tensor, values: nn.Module) -> Tensor:
        weights = MASKS[mask](x @ x.transpose(1, 2)).softmax(2)
        return (weights[..., :5] @ values(x)).flatten(1)

    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    net = nets.seeded(nn.Sequential(Calls(attend, nn.Linear(4, 4)), nn.Linear(20, 3)))
    assert ledger_gap(explain(net, x, EpsilonPlus(), attention=attention)) < 1e-4


def test_the_ledger_closes_for_masked_attention_in_one_call() -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.tensor([[False, False, False, True, True]])
    calls: dict[str, Callable[..., Tensor]] = {
        "is_causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
        "a mask of truths": lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=~HIDDEN),
        "a mask and padding": lambda x, layer: layer(
            x, src_mask=causal != 0, src_key_padding_mask=padding.expand(len(x), -1)
        ),
    }
    for name, call in calls.items():
        body = Calls(call, layer) if "padding" in name else Calls(call)
        net = nets.seeded(nn.Sequential(body, nn.Flatten(), nn.Linear(20, 3)))
        assert ledger_gap(explain(net, x, EpsilonPlus())) < 1e-4, name


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_ledger_closes_for_a_causal_language_model(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        "Llama": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
    }[name]
    config = getattr(transformers, f"{name}Config")(vocab_size=50, bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes)
    family = "GPT2LMHeadModel" if name == "GPT2" else "LlamaForCausalLM"
    model = nets.seeded(getattr(transformers, family)(config)).eval()
    read = lambda x, model: model(inputs_embeds=x, use_cache=False).logits[:, -1]  # noqa: E731 (a closure, one line)
    words = torch.randint(1, 50, (2, 10), generator=torch.Generator().manual_seed(0))
    found = explain(Calls(read, model), model.get_input_embeddings()(words).detach(), EpsilonPlus())
    assert ledger_gap(found) < 1e-4
    assert (found.diagnostics["conservation_gap"].abs() < 1e-4 * found.score.abs()).all()


@pytest.mark.parametrize(
    "undefined",
    [
        lambda x: x * torch.nan,
        lambda x: x * torch.inf,
        lambda x: (x * 0 - torch.inf).softmax(1) + x,
        lambda x: x * 1e30 * 1e30,
    ],
)
def test_a_ledger_that_is_no_number_never_passes(undefined: Callable[[Tensor], Tensor]) -> None:
    net = nn.Sequential(Calls(undefined), nn.Linear(4, 2))
    with pytest.raises(RefusedError, match="the relevance of input 0 is no finite number"):
        explain(nets.seeded(net), torch.ones(1, 4), EpsilonPlus())


def test_constant_attention_gives_all_relevance_to_the_values() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x).sum(1)

    net = Calls(attend)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = explain(net, x, Epsilon(0.0), attention="constant")
    close(result.values.flatten(1).sum(1), result.score, 1e-9)
    weights = (x @ x.transpose(1, 2) / 2).softmax(2).sum(1)
    close(result.values[:, :, 0], weights * x[:, :, 0], 1e-9)
    assert not torch.allclose(result.values, explain(net, x, Epsilon(0.0)).values)


def test_attention_products_follow_attnlrp() -> None:
    """Half of each product, and gradient times input at the softmax, written with autograd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    net = Calls(lambda x: ((x @ x.transpose(1, 2)).softmax(2) @ x).sum(1))
    query, key, value = (x.clone().requires_grad_() for _ in range(3))
    score = (((query @ key.transpose(1, 2)).softmax(2) @ value).sum(1))[:, 0].sum()
    parts = torch.autograd.grad(score, (query, key, value))
    expected = (x * parts[2] + (x * parts[0] + x * parts[1]) / 2) / 2
    close(explain(net, x, Epsilon(0.0)).values, expected, 1e-9)


def test_a_gate_takes_no_relevance() -> None:
    net = nets.seeded(Calls(lambda x, a: (x * torch.sigmoid(a(x))).sum(1, keepdim=True), nn.Linear(4, 4))).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        expected = x * torch.sigmoid(net.layers[0](x))
    close(explain(net, x, Epsilon(0.0)).values, expected, 1e-12)


def test_layer_normalisation_holds_the_deviation_constant() -> None:
    norm = nets.seeded(nn.LayerNorm(4)).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    deviation = (x.var(1, correction=0, keepdim=True) + norm.eps).sqrt()
    weight = norm.weight[1].detach()
    expected = -x * weight / (4 * deviation)
    expected[:, 1] += (x * weight / deviation)[:, 1]
    result = explain(norm, x, Epsilon(0.0), target=1)
    close(result.values, expected, 1e-9)
    close(result.diagnostics["absorbed_by_bias"], norm.bias[1].detach().expand(3), 1e-9)


def test_pass_hands_a_normalisation_s_relevance_on() -> None:
    net = nets.seeded(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2, bias=False))).double()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = explain(net, x, PerLayer({"LayerNorm": Pass()}, Uniform(Epsilon(0.0)))).values
    close(found, (net[0](x) * net[1].weight[0]).detach(), 1e-9)


def test_an_in_place_operation_equals_its_out_of_place_twin() -> None:
    nets_ = [nets.seeded(nets.ConvNet(inplace=inplace)) for inplace in (True, False)]
    one, other = (explain(net, nets.images(), EpsilonPlusFlat()).values for net in nets_)
    assert torch.equal(one, other)


# Start, units, composites.


def test_start_chooses_the_relevance_at_the_output() -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))).double()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits = net(x).detach()
    totals = {start: explain(net, x, Epsilon(0.0), start=start).values.sum(1) for start in ("score", "one", "contrast")}
    close(totals["score"], logits[:, 0], 1e-9)
    close(totals["one"], torch.ones(2))
    close(totals["contrast"], logits[:, 0] - logits[:, 1:].mean(1), 1e-9)


@pytest.mark.parametrize("unit", ["logit", "probability", "logprob", "margin"])
def test_the_ledger_sums_to_the_score_in_every_unit(unit: str) -> None:
    net = nets.seeded(nets.ConvNet()).double()
    score = Score(net, 1, unit=unit)  # type: ignore[arg-type] # from the list above
    result = LRP()(score, nets.images().double())
    assert ledger_gap(result) < 1e-9


def test_a_softmax_at_the_end_is_cut_off() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Softmax(1))
    nets.seeded(net).double()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cut, logit = explain(net, x, Epsilon(0.0)), explain(net[0], x, Epsilon(0.0))
    close(cut.values.sum(1), cut.score)
    close(cut.values / cut.score[:, None], logit.values / logit.score[:, None])


def test_a_part_of_the_output_can_be_explained() -> None:
    net = nets.seeded(nets.TwoHeadNet())
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    result = LRP()(Score(net, 1, output=0), x)
    close(result.score, net(x)[0][:, 1].detach())
    assert ledger_gap(result) < 1e-5


@pytest.mark.parametrize(
    ("composite", "rules"),
    [
        (EpsilonPlus(), (ZPlus(), ZPlus(), Epsilon())),
        (EpsilonPlusFlat(), (Flat(), ZPlus(), Epsilon())),
        (EpsilonAlpha2Beta1(), (AlphaBeta(2.0, 1.0), AlphaBeta(2.0, 1.0), Epsilon())),
        (EpsilonAlpha2Beta1Flat(), (Flat(), AlphaBeta(2.0, 1.0), Epsilon())),
        (EpsilonGammaBox(-3.0, 3.0), (ZBox(-3.0, 3.0), Gamma(), Epsilon())),
        (
            EpsilonGammaBox((-3.0,), (3.0,), 0.5, 0.1),
            (ZBox((-3.0,), (3.0,)), Gamma(0.5), Epsilon(0.1)),
        ),
    ],
)
def test_a_composite_is_its_rules_by_layer(composite: Composite, rules: tuple[Rule, ...], conv_net: nn.Module) -> None:
    by_layer = PerLayer(dict(zip(("features.0", "features.2", "head"), rules, strict=True)))
    x = nets.images()
    assert torch.equal(explain(conv_net, x, composite).values, explain(conv_net, x, by_layer).values)


def test_rules_are_found_by_path_glob_and_class_name(conv_net: nn.Module) -> None:
    x = nets.images()
    expected = explain(conv_net, x, EpsilonPlus()).values
    for key in ("features.*", "Conv2d"):
        by_key = PerLayer({key: ZPlus(), "head": Epsilon()})
        assert torch.equal(explain(conv_net, x, by_key).values, expected)


def test_a_rule_for_no_layer_is_an_error(conv_net: nn.Module) -> None:
    with pytest.raises(LayerNotFoundError, match=r"the rules for \['feature.0'\] fit no layer .*'features.0'"):
        explain(conv_net, nets.images(), PerLayer({"feature.0": ZPlus()}))


def test_alpha_and_beta_must_differ_by_one() -> None:
    with pytest.raises(ValueError, match=r"alpha - beta must be 1 and alpha at least 1, got 2\.0 and 0\.0"):
        AlphaBeta(2.0, 0.0)


def test_pixel_bounds_need_one_value_per_channel() -> None:
    with pytest.raises(ValueError, match="has 2 channels, the pixel bounds have 3"):
        explain(bias_free_cnn(), pictures(), EpsilonGammaBox((-1.0,) * 3, (1.0,) * 3))


def test_every_field_of_a_rule_changes_the_map() -> None:
    layer = nets.seeded(nn.Linear(3, 2)).double()
    x = row(0.5, -1.0, 2.0)
    pairs: list[tuple[Rule, Rule]] = [
        (Epsilon(0.1), Epsilon(0.2)),
        (Gamma(0.1), Gamma(0.2)),
        *((type(rule)(epsilon=0.5), rule) for rule in (Gamma(), AlphaBeta(), ZPlus(), WSquare(), Flat())),
        (ZBox(-3.0, 3.0), ZBox(-4.0, 3.0)),
        (ZBox(-3.0, 3.0), ZBox(-3.0, 4.0)),
        (ZBox(-3.0, 3.0), ZBox(-3.0, 3.0, 0.5)),
        (AlphaBeta(2.0, 1.0), AlphaBeta(3.0, 2.0)),
    ]
    for one, other in pairs:
        assert not torch.allclose(explain(layer, x, one).values, explain(layer, x, other).values), one


# Refusals and the state of the model.

REFUSED: dict[str, tuple[nn.Module, str]] = {
    "exp": (
        Calls(lambda x, a: a(x).exp(), nn.Linear(4, 4)),
        "Calls, operation 'exp', has no rule",
    ),
    "lstm": (
        Calls(lambda x, a: a(x[:, None])[0][:, 0], nn.LSTM(4, 3, batch_first=True)),
        r"'layers.0' \(LSTM\), operation '\w*(lstm|rnn)\w*', has no rule",
    ),
    "view": (
        Calls(lambda x, a: _zero_first(a(x)), nn.Linear(4, 4)),
        "changed through another view of it",
    ),
    "constant": (
        Calls(lambda x, a: _fill(a(x)), nn.Linear(4, 4)),
        "writes into a tensor in place by 'copy_'",
    ),
    "number": (Calls(lambda x, a: a(x) * x.max().item(), nn.Linear(4, 4)), "into a Python number"),
    "numpy": (
        Calls(lambda x, a: torch.from_numpy(a(x).numpy()) + x, nn.Linear(4, 4)),
        "made outside of the tensor library",
    ),
    "noise": (
        Calls(lambda x, a: a(x) + torch.randn(4), nn.Linear(4, 4)),
        "draws random numbers by 'randn'",
    ),
    "dropout": (
        Calls(lambda x, a: F.dropout(a(x), 0.5, True), nn.Linear(4, 4)),
        "draws random numbers",
    ),
    "batch": (
        Calls(lambda x, a: a(x) - a(x).mean(0), nn.Linear(4, 4)),
        "examples influence each other",
    ),
    "statistics": (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "averages over",
    ),
    "no path": (
        Calls(lambda x, a: a(torch.zeros(3, 4)), nn.Linear(4, 4)),
        "doesn't depend on the input",
    ),
}


def _zero_first(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


def _fill(y: Tensor) -> Tensor:
    out = torch.zeros_like(y)
    out[:, :2] = y[:, :2]
    return out


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_t_be_propagated_is_refused_by_name(name: str) -> None:
    net, message = REFUSED[name]
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    with pytest.raises((RefusedError, InconsistentModelError), match=message):
        explain(nets.seeded(net), x, EpsilonPlusFlat())
    assert torch.equal(before, torch.get_rng_state())


def test_pass_needs_a_layer_that_keeps_the_shape() -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(RefusedError, match=r"'0' \(Linear\).* maps \(1, 4\) to \(1, 3\), and the rule Pass"):
        explain(net, torch.ones(1, 4), Pass())


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(fails: bool) -> None:
    net = nets.seeded(nets.BatchNormNet())
    if fails:
        net.head = nets.seeded(Calls(lambda x, a: a(x).exp(), nn.Linear(4, 3)))
    x = nets.images()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    torch.backends.mha.set_fastpath_enabled(True)
    kept = x.clone()
    if fails:
        with pytest.raises(RefusedError):
            explain(net, x, EpsilonPlusFlat())
    else:
        explain(net, x, EpsilonPlusFlat())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(x, kept)


COMPOSITES: list[Composite] = [
    EpsilonPlus(1e-5),
    EpsilonPlusFlat(1e-5),
    EpsilonAlpha2Beta1(1e-5),
    EpsilonAlpha2Beta1Flat(1e-5),
    EpsilonGammaBox((-3.0,), (3.0,), 0.5),
    Uniform(Gamma(0.1)),
    PerLayer({"features.*": ZPlus(), "first": WSquare()}, EpsilonPlus()),
    PerLayer({"first": WSquare(), "features.*": ZPlus()}, EpsilonPlus()),
    PerLayer({"Conv2d": AlphaBeta(3.0, 2.0, fallback=False)}),
]


@pytest.mark.parametrize("composite", COMPOSITES, ids=lambda c: type(c).__name__)
def test_a_composite_survives_saving_and_rebuilding(composite: Composite, conv_net: nn.Module, tmp_path: Path) -> None:
    method = METHODS["lrp"](composite, start="one", attention="constant", batch_size=3)
    assert isinstance(method, AttributionMethod)
    assert rebuild(describe(method)) == method
    found = method(Score(conv_net, 1), nets.images())
    loaded = Attribution.load(found.save(tmp_path))
    again = rebuild(loaded.provenance.method)(Score(conv_net, 1), nets.images())
    assert torch.equal(again.values, found.values)


def test_the_first_key_that_fits_decides_after_rebuilding_too(conv_net: nn.Module) -> None:
    flat, plus = ({"first": Flat(), "features.*": ZPlus()}, {"features.*": ZPlus()})
    orders = [PerLayer(flat), PerLayer(dict(reversed(flat.items()))), PerLayer(plus)]
    a, b, c = (rebuild(describe(LRP(o)))(Score(conv_net, 1), nets.images()).values for o in orders[:3])
    assert not torch.equal(a, b)
    assert torch.equal(b, c)


def test_a_result_can_be_saved(tmp_path_factory: pytest.TempPathFactory, conv_net: nn.Module) -> None:
    result = explain(conv_net, nets.images(), EpsilonPlusFlat())
    loaded = Result.load(result.save(tmp_path_factory.mktemp("lrp")))
    assert isinstance(loaded, Attribution)
    assert torch.equal(loaded.diagnostics["absorbed_by_bias"], result.diagnostics["absorbed_by_bias"])


# Coverage.


def ledger_gap(result: Attribution) -> float:
    """Return how far the ledger's entries miss the score, at worst, relative to it."""
    total = result.diagnostics["input"] + sum(result.diagnostics[name] for name in ABSORBED)
    return float(((total - result.score).abs() / result.score.abs()).max())


FLAT_MODULES = {
    "Flatten": nn.Flatten(),
    "Identity": nn.Identity(),
    "Softmax": nn.Softmax(1),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "LeakyReLU": nn.LeakyReLU(),
    "Sigmoid": nn.Sigmoid(),
    "LayerNorm": nn.LayerNorm(8),
    "BatchNorm1d": nn.BatchNorm1d(8),
    "Hardswish": nn.Hardswish(),
    "Softplus": nn.Softplus(),
    "PReLU": nn.PReLU(),
    "GLU": nn.GLU(),
    "RMSNorm": nn.RMSNorm(8),
}
IMAGE_MODULES = {
    "ConvTranspose2d": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    "GroupNorm": nn.GroupNorm(2, 4),
    "InstanceNorm2d": nn.InstanceNorm2d(4, affine=True),
    "MaxPool2d": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "AvgPool2d": nn.AvgPool2d(2),
    "Upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
    "ConstantPad2d": nn.ConstantPad2d(1, 2.0),
    "padding same": nn.Conv2d(4, 4, 4, padding="same"),
    "LocalResponseNorm": nn.LocalResponseNorm(2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", [*FLAT_MODULES, *IMAGE_MODULES, "MultiheadAttention", "Conv1d"])
def test_fault_6_a_module_s_relevance_closes_the_ledger(name: str) -> None:
    tail = [nn.Flatten(), nn.LazyLinear(3)]
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    if name in FLAT_MODULES:
        net = nn.Sequential(nn.Linear(6, 8), FLAT_MODULES[name], *tail)
    elif name in IMAGE_MODULES:
        net, x = nn.Sequential(nn.Conv2d(2, 4, 3), IMAGE_MODULES[name], *tail), nets.images(3, 2, 8)
    elif name == "Conv1d":
        net, x = nn.Sequential(nn.Conv1d(2, 4, 3), *tail), x.view(3, 2, 3)
    else:
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        net, x = (
            nn.Sequential(layer, *tail),
            torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)),
        )
    with torch.no_grad():
        net.eval()(x)
    net = nets.seeded(net)
    for composite in (EpsilonPlusFlat(), Uniform(Gamma()), Uniform(AlphaBeta(2.0, 1.0))):
        assert ledger_gap(explain(net, x, composite)) < 1e-4


FUNCTIONS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "a(x) + x": lambda x, a: a(x) + x,
    "in-place sum": lambda x, a: a(x).add_(x),
    "difference": lambda x, a: torch.sub(a(x), x, alpha=2),
    "1 - a(x)": lambda x, a: 1 - a(x),
    "product": lambda x, a: x * a(x),
    "quotient": lambda x, a: x / (1 + a(x).abs()),
    "concatenation": lambda x, a: torch.cat([x, a(x), torch.ones(len(x), 1)], 1),
    "stack": lambda x, a: torch.stack([x, a(x)]).sum(0),
    "split": lambda x, a: torch.mul(*a(x).chunk(2, 1)),
    "maximum": lambda x, a: torch.maximum(x, a(x)),
    "where": lambda x, a: torch.where(x > 0, a(x), 1.0),
    "masked fill": lambda x, a: a(x).masked_fill(x > 0, 0.5),
    "einsum": lambda x, a: torch.einsum("bi,bj->bij", x, a(x)),
    "square": lambda x, a: a(x) ** 2,
    "normalize": lambda x, a: F.normalize(a(x)),
    "bounds without zero": lambda x, a: a(x).clamp(0.2, 1),
    "detached": lambda x, a: a(x).detach() + x,
    "mean of parts": lambda x, a: a(x).view(-1, 2, 2).mean(2),
    "dense function": lambda x, a: F.linear(a(x), torch.ones(3, 4), torch.ones(3)),
    "control flow": lambda x, a: a(x) if bool(x.sum() > -1e6) else x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_operation_s_relevance_closes_the_ledger(name: str) -> None:
    net = nn.Sequential(Calls(FUNCTIONS[name], nn.Linear(4, 4)), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        net(x)
    net = nets.seeded(net)
    for composite in (EpsilonPlusFlat(), Uniform(Gamma())):
        assert ledger_gap(explain(net, x, composite)) < 1e-4


def test_epsilon_agrees_with_captum() -> None:
    attr = pytest.importorskip("captum.attr")
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    head = nn.Linear(5, 3)
    net = nets.seeded(Calls(lambda x, body, head: head(body(x).flatten(1)), net, head)).double()
    theirs = copy.deepcopy(net)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = rules.EpsilonRule(epsilon=0.01)
    x = pictures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attr.LRP(theirs).attribute(x.clone().requires_grad_(), target=1)
    close(explain(net, x, Epsilon(0.01), target=1).values, expected.detach(), 1e-6)


ZENNIT: dict[str, tuple[Composite, dict[str, object]]] = {
    "EpsilonPlus": (EpsilonPlus(), {}),
    "EpsilonPlusFlat": (EpsilonPlusFlat(), {}),
    "EpsilonGammaBox": (EpsilonGammaBox(-4.0, 4.0), {"low": -4.0, "high": 4.0}),
    # Its α-β rule has no fallback for outputs without products of one sign.
    "EpsilonAlpha2Beta1": (
        PerLayer({"Conv2d": AlphaBeta(2.0, 1.0, fallback=False)}, Uniform(Epsilon())),
        {},
    ),
    "EpsilonAlpha2Beta1Flat": (
        PerLayer({"first": Flat(), "Conv2d": AlphaBeta(2.0, 1.0, fallback=False)}, Uniform(Epsilon())),
        {},
    ),
}


@pytest.mark.parametrize("name", ZENNIT)
def test_composites_agree_with_zennit(name: str) -> None:
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    net, x = biased_cnn(), pictures()
    ours, arguments = ZENNIT[name]
    with attribution.Gradient(net, getattr(composites, name)(**arguments)) as explained:
        _, expected = explained(x.clone(), torch.eye(3, dtype=torch.float64)[[1] * len(x)])
    close(explain(net, x, ours, target=1, start="one").values, expected, 1e-8)


@pytest.mark.parametrize(
    ("rule", "name", "arguments"),
    [
        (Epsilon(0.1), "Epsilon", {"epsilon": 0.1}),
        (Gamma(0.4), "Gamma", {"gamma": 0.4}),
        (ZPlus(), "ZPlus", {}),
        (AlphaBeta(3.0, 2.0, fallback=False), "AlphaBeta", {"alpha": 3.0, "beta": 2.0}),
        (WSquare(), "WSquare", {}),
        (Flat(), "Flat", {}),
        (ZBox(-4.0, 5.0), "ZBox", {"low": -4.0, "high": 5.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_rules_agree_with_zennit(rule: Rule, name: str, arguments: dict[str, object]) -> None:
    rules, core = pytest.importorskip("zennit.rules"), pytest.importorskip("zennit.core")
    attribution = pytest.importorskip("zennit.attribution")
    net, x = nets.seeded(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(108, 3))), None
    net, x = net.double(), pictures()

    def by_type(ctx: object, path: str, module: nn.Module) -> object:
        if isinstance(module, nn.Conv2d):
            return getattr(rules, name)(**arguments)
        return rules.Epsilon() if isinstance(module, nn.Linear) else None

    with attribution.Gradient(net, core.Composite(by_type)) as explained:
        _, expected = explained(x.clone(), torch.eye(3, dtype=torch.float64)[[1] * len(x)])
    ours = PerLayer({"Conv2d": rule}, Uniform(Epsilon()))
    close(explain(net, x, ours, target=1, start="one").values, expected, 1e-8)


def test_features_of_a_table_get_no_rule_for_pixels() -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))).double()
    x = torch.randn(3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    default, plain = (LRP(composite)(Score(net, 1), x) for composite in (EpsilonPlusFlat(), EpsilonPlus()))
    torch.testing.assert_close(default.values, plain.values)
    assert (default.values.std(1) > 1e-3).all()  # a flat rule would give all the same
