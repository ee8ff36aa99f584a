"""Class activation maps of texts: the papers' formulas over tokens that are read, whatever padding stands beside them."""

import copy
from functools import partial
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import probing as pb
from probing.models.geometry import RefusedError
from probing.models.precision import Precision
from probing.models.readings import NextToken

DOUBLE = Precision("float64")
LENGTHS, LAYER = (6, 3, 5), "bert.encoder.layer.0"
MASK = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
IDS = torch.randint(1, 20, (3, 6), generator=torch.Generator().manual_seed(0))
TEXTS = {"input_ids": IDS * MASK, "attention_mask": MASK}
SIZES = {"vocab_size": 20, "num_labels": 3}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def bert() -> Any:
    net = nets.seeded(BertForSequenceClassification(BertConfig(**BERT, **SIZES))).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3.0)
    return net


def read(bert: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's output for one text, `[units, tokens]`, and the gradient of a logit there."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: Any) -> Any:
        leaf = output if isinstance(output, Tensor) else output[0]
        kept.append(leaf.detach().requires_grad_())
        return kept[0] if isinstance(output, Tensor) else (kept[0], *output[1:])

    handle = bert.get_submodule(LAYER).register_forward_hook(keep)
    (slope,) = torch.autograd.grad(bert(input_ids=ids[None]).logits[0, 1], kept)
    handle.remove()
    return kept[0][0].detach().T, slope[0].T


FORMULAS = {
    "gradcam": (partial(pb.GradCAM, relu=False), lambda a, g: (g.mean(1, keepdim=True) * a).sum(0)),
    "hirescam": (pb.HiResCAM, lambda a, g: (g * a).sum(0)),
    "xgradcam": (
        partial(pb.XGradCAM, relu=False),
        lambda a, g: ((g * a).sum(1, keepdim=True) / a.sum(1, keepdim=True) * a).sum(0),
    ),
    "layercam": (pb.LayerCAM, lambda a, g: (g.relu() * a).sum(0).relu()),
    "gradcam++": (
        pb.GradCAMPlusPlus,
        lambda a, g: (
            (((g**2 / (2 * g**2 + a.sum(1, keepdim=True) * g**3)).nan_to_num(0) * g.relu()).sum(1, keepdim=True) * a)
            .sum(0)
            .relu()
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_maps_are_the_formulas_of_each_text_alone(name: str, bert: Any) -> None:
    method, formula = FORMULAS[name]
    found = method(LAYER, precision=DOUBLE)(bert, TEXTS, target=1)
    assert found.values.shape == (3, 6, 1)
    assert found.layout == "6 cells, tokens [n, t, c]"
    assert found.values.abs().max() > 0
    for row, length in enumerate(LENGTHS):
        expected = formula(*read(bert, IDS[row, :length]))
        torch.testing.assert_close(found.values[row, :length, 0].double(), expected, rtol=1e-4, atol=1e-6)
        assert not found.values[row, length:].any()


def test_channels_left_out_are_those_of_each_text_alone(bert: Any) -> None:
    found = pb.AblationCAM(LAYER, precision=DOUBLE)(bert, TEXTS, target=1)
    single = copy.deepcopy(bert).float()  # of which a float64 copy runs, on what is looked up in float32
    widened = pb.AblationCAM(LAYER, precision=DOUBLE)(single, TEXTS, target=1)
    torch.testing.assert_close(widened.values, found.values.float(), rtol=1e-3, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        alone = pb.AblationCAM(LAYER, precision=DOUBLE)(bert, {"input_ids": IDS[row : row + 1, :length]}, target=1)
        torch.testing.assert_close(found.values[row, :length], alone.values[0], rtol=1e-4, atol=1e-6)


def test_score_cam_shows_each_text_alone_through_its_tokens_padding_or_no_mask(bert: Any) -> None:
    """Of a text alone, whether a mask says that all is read or none is given, as of one among longer ones."""
    found = pb.ScoreCAM(LAYER, precision=DOUBLE)(bert, TEXTS, target=1)
    assert found.values.abs().max() > 0
    for row, length in enumerate(LENGTHS):
        alone = pb.ScoreCAM(LAYER, precision=DOUBLE)(bert, {"input_ids": IDS[row : row + 1, :length]}, target=1)
        torch.testing.assert_close(found.values[row, :length], alone.values[0], rtol=1e-4, atol=1e-6)
        assert not found.values[row, length:].any()


def test_the_layer_by_default_is_one_at_which_more_than_the_token_that_is_read_matters(bert: Any) -> None:
    assert pb.HiResCAM()(bert, TEXTS, target=1).layer.startswith("bert.encoder.layer.1.")
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8)
    gpt = nets.seeded(GPT2LMHeadModel(config))
    found = pb.HiResCAM()(gpt, {"input_ids": IDS}, NextToken(3))
    assert found.layer.startswith("transformer.h.1")
    assert (found.values.abs().sum(2) > 0).sum(1).min() >= 2


def test_a_layer_without_a_row_for_each_token_is_refused(bert: Any) -> None:
    with pytest.raises(RefusedError, match=r"'bert.pooler' returns shape \(1, 16\), no row .* for each of 6 tokens"):
        pb.GradCAM("bert.pooler")(bert, TEXTS, target=1)
