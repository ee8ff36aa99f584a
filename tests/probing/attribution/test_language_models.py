"""Next tokens of causal language models: ledgers close, paths add up, and padding changes nothing."""

import nets
import pytest
import torch
from torch import nn

from probing.attribution import LRP, GradientTimesInput, IntegratedGradients, LayerIntegratedGradients
from probing.attribution.lrp.composites import EpsilonPlus
from probing.core.inputs import Inputs
from probing.models.hooks import capture
from probing.models.precision import Precision
from probing.models.readings import NextToken, Span
from probing.models.scores import Score
from probing.store.store import ActivationStore

transformers = pytest.importorskip("transformers")
SIZES = {
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "Llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
    },
}
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])


def model_of(name: str) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(
        vocab_size=20, bos_token_id=1, eos_token_id=1, pad_token_id=0, **SIZES[name]
    )
    return nets.seeded(getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else "LlamaForCausalLM")(config))


def padded(side: str) -> Inputs:
    ids = IDS if side == "behind" else torch.stack([IDS[0], IDS[1].roll(2)])
    return Inputs({"input_ids": ids, "attention_mask": (ids > 0).long()})


@pytest.mark.parametrize("side", ["behind", "in front"])
@pytest.mark.parametrize("name", SIZES)
def test_the_ledger_closes_where_a_causal_model_is_masked(name: str, side: str) -> None:
    found = LRP(EpsilonPlus())(model_of(name), padded(side), NextToken(7, instead_of=9))
    entries = sum(
        found.diagnostics[k].abs() for k in ("input", "absorbed_by_bias", "absorbed_by_epsilon", "absorbed_by_softmax")
    )
    assert found.values.isfinite().all()
    assert float((found.diagnostics["conservation_gap"].abs() / entries).max()) < 1e-4
    assert not found.token_values()[1][padded(side).tensors["attention_mask"][1] == 0].any()


@pytest.mark.parametrize("name", SIZES)
def test_paths_from_nothing_add_up_to_the_logit_difference(name: str) -> None:
    model = model_of(name)
    found = IntegratedGradients(steps="auto")(model, padded("behind"), NextToken(7, instead_of=9))
    assert bool(found.diagnostics["converged"].all())
    assert float(found.diagnostics["relative_gap"].max()) < 0.01
    assert found.unit == "logit difference"
    assert found.target == ("token 7 instead of 9 after position 4", "token 7 instead of 9 after position 2")
    logits = [model(input_ids=IDS[:1]).logits[0, 4], model(input_ids=IDS[1:, :3]).logits[0, 2]]
    wanted = torch.stack([row[7] - row[9] for row in logits]).detach()
    torch.testing.assert_close(
        found.score, wanted, rtol=1e-4, atol=1e-5
    )  # what is put in for the ids gives the clean logits


@pytest.mark.parametrize("method", [GradientTimesInput(), LRP(EpsilonPlus())], ids=["gradient", "lrp"])
def test_a_text_s_map_is_that_of_it_alone(method: GradientTimesInput | LRP) -> None:
    model = model_of("Llama")
    found = method(model, padded("behind"), NextToken(7))
    alone = method(model, {"input_ids": IDS[1:, :3], "attention_mask": torch.ones(1, 3, dtype=torch.long)}, NextToken(7))
    torch.testing.assert_close(found.values[1, :3], alone.values[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", SIZES)
def test_rows_of_gradients_are_read_after_each_text_s_own_last_token(name: str, batch_size: int) -> None:
    model = model_of(name).double()
    layer = "transformer.h.0" if name == "GPT2" else "model.layers.0"
    scores = [Score(model, NextToken(7, instead_of=9)), Score(model, NextToken(3))]
    store = ActivationStore(precision=Precision("float64"), batch_size=batch_size)
    whole = store.gradients_of(scores, [layer], padded("behind"), pool="mean")
    for row, ids in enumerate([IDS[:1], IDS[1:, :3]]):
        with capture(model, [layer], graph=True) as kept:
            logits = model(input_ids=ids).logits[0, -1]
        for found, value in zip(whole, [logits[7] - logits[9], logits[3]], strict=True):
            [gradient] = torch.autograd.grad(value, kept[layer], retain_graph=True)
            torch.testing.assert_close(found[layer][row], gradient[0].sum(0), rtol=1e-6, atol=1e-9)


def test_a_span_is_the_sum_of_its_tokens_log_probabilities() -> None:
    model = model_of("GPT2")
    embedding = "transformer.wte"
    found = LayerIntegratedGradients(embedding)(model, IDS[:1], Span(IDS[0, 2:4].tolist(), 2))
    said = model(IDS[:1]).logits[0].log_softmax(-1).detach()
    assert float(found.score) == pytest.approx(float(said[1, 3] + said[2, 4]), rel=1e-5)
