"""Inputs that are not one tensor are refused by everything in one sentence, with the way out."""

from collections.abc import Callable
from typing import cast

import nets
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

from probing.attribution import METHODS
from probing.attribution.baselines import Samples
from probing.attribution.gradient import Saliency
from probing.attribution.path import IntegratedGradients, LayerIntegratedGradients
from probing.core.errors import ProbingError
from probing.core.inputs import InputError, Inputs
from probing.data.examples import TensorExamples, as_examples, concat, labels_of
from probing.evaluation import (
    axioms,
    complexity,
    curves,
    localisation,
    randomisation,
    reference_maps,
    robustness,
)
from probing.evaluation.scorecard.measure import Scoring
from probing.models.scores import Score
from probing.models.summary import summarize
from probing.store.requests import RequestError
from probing.store.store import ActivationStore

pytestmark = pytest.mark.usefixtures("unchecked")
X = nets.images()
IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
ENCODED = {"input_ids": IDS, "attention_mask": (IDS > 0).long()}

NOT_ONE: dict[str, tuple[object, str]] = {
    "tuple": ((X, X + 1), r"a tuple of 2 tensors: give several inputs by the names.*\{'first': …, 'second': …\}"),
    "list of equal tensors": ([X[0], X[1]], r"a list of 2 tensors: torch\.stack or torch\.cat"),
    "list of tensors of different sizes": (
        [X[0], X[0, :, :3]],
        r"bring them to one size and stack them.*\(1, 6, 6\), \(1, 3, 6\)",
    ),
    "array": (X.numpy(), r"got ndarray: as_examples\(…\)\.load\(range\(n\)\)"),
    "picture": (Image.new("RGB", (6, 6)), r"got Image: as_examples"),
    "data set": (TensorDataset(X), r"got TensorDataset: as_examples"),
    "examples": (TensorExamples(X), r"got TensorExamples: as_examples"),
    "nothing": (None, r"got NoneType: as_examples"),
}
NAMED: dict[str, object] = {"mapping": dict(ENCODED), "BatchEncoding": BatchEncoding(ENCODED)}
ONE_ONLY = (
    r"must be one tensor \[n, …\], got a .*\['input_ids', 'attention_mask'\]: wrap the model in a module that takes one"
)
OTHER_NAMES = r"inputs named \['input_ids', 'attention_mask'\] don't fit ConvNet, whose forward takes \['x'\]"
every_kind = pytest.mark.parametrize("kind", NOT_ONE)

_MAPS = torch.zeros(4, 1, 6, 6)
_MASKS = torch.ones(4, 6, 6, dtype=torch.bool)
TAKERS: dict[str, Callable[[Score, Tensor], object]] = {
    **{name: METHODS[name]() for name in METHODS if name not in {"expected_gradients", "layer_ig"}},
    "expected_gradients": METHODS["expected_gradients"](background=Samples.of(X)),  # type: ignore[call-arg]
    "layer_ig": LayerIntegratedGradients("features.0"),
    "score": lambda score, inputs: score(inputs),
    "summary": lambda score, inputs: summarize(score.model, inputs),
    "edges": reference_maps.EdgeDetector(),
    "random map": reference_maps.RandomMap(),
    **{
        f"{type(metric).__name__} of {what}": lambda score, inputs, m=metric, e=explained: m(e, score, inputs)
        for metric in (
            complexity.Gini(),
            curves.Deletion(),
            robustness.Infidelity(),
            robustness.SensitivityN(),
        )
        for what, explained in (("a method", Saliency()), ("maps", _MAPS))
    },
    **{
        type(metric).__name__: lambda score, inputs, m=metric: m(Saliency(), score, inputs)
        for metric in (
            axioms.Completeness(),
            axioms.SensitivityA(),
            axioms.InputShift(),
            axioms.Linearity(),
            axioms.Dummy(),
            axioms.Symmetry(),
            axioms.ImplementationInvariance(),
            robustness.MaxSensitivity(),
            robustness.SeedStability(),
            randomisation.CascadingRandomisation(),
            randomisation.IndependentRandomisation(),
        )
    },
    "pointing game": lambda score, inputs: localisation.PointingGame()(_MAPS, score, inputs, _MASKS),
    "top class": lambda score, inputs: Score(score.model, None).named(inputs),
    "scorecard": lambda score, inputs: Scoring()({"saliency": Saliency(), "ig": IntegratedGradients()}, score, inputs),
}


@pytest.mark.parametrize("name", TAKERS)
def test_whatever_takes_inputs_refuses_what_is_not_one_tensor(name: str, conv_net: nn.Module) -> None:
    for given, message in NOT_ONE.values():
        with pytest.raises(InputError, match=f"^inputs must be one tensor .*{message}"):
            TAKERS[name](Score(conv_net, 1), cast("Tensor", given))


@pytest.mark.parametrize("name", TAKERS)
def test_named_inputs_that_do_not_fit_are_refused(name: str, conv_net: nn.Module) -> None:
    for given in NAMED.values():
        with pytest.raises(ProbingError, match=f"{ONE_ONLY}|{OTHER_NAMES}"):
            TAKERS[name](Score(conv_net, 1), cast("Tensor", given))


def _classifier() -> nn.Module:
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    return nets.seeded(BertForSequenceClassification(config))


class OfIds(nn.Module):
    """What the sentence tells to write."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=(input_ids > 0).long()).logits


def test_the_way_out_gives_the_models_own_scores_and_rows() -> None:
    bert = _classifier()
    own = OfIds(bert).eval()
    layer = "model.bert.embeddings.word_embeddings"
    found = LayerIntegratedGradients(layer, IntegratedGradients(steps=2))(Score(own, 1), IDS)
    torch.testing.assert_close(found.score, bert(**ENCODED).logits[:, 1].detach())
    rows = ActivationStore(progress=False).activations(own, ["model.bert.encoder.layer.0"], IDS)
    hidden = bert(**ENCODED, output_hidden_states=True).hidden_states[-1].detach()
    torch.testing.assert_close(rows["model.bert.encoder.layer.0"], hidden)


class Encoded:
    """A user's own examples, which load what a tokeniser returns."""

    ids = ("a", "b")

    def load(self, indices: object) -> object:
        return BatchEncoding(ENCODED)

    def __len__(self) -> int:
        return 2


def _encode(text: str) -> object:
    return {name: values[0] for name, values in ENCODED.items()}


def test_examples_of_named_tensors_have_the_rows_of_these() -> None:
    store, bert, layer = ActivationStore(progress=False), _classifier(), "bert.encoder.layer.0"
    hidden = bert(**ENCODED, output_hidden_states=True).hidden_states[-1].detach()
    first = {name: tensor[0] for name, tensor in ENCODED.items()}
    sets = {
        "a mapping": ENCODED,
        "inputs": Inputs(ENCODED),
        "a list of mappings": [{name: tensor[i] for name, tensor in ENCODED.items()} for i in range(2)],
        "data with labels": as_examples({**ENCODED, "labels": torch.tensor([1, 0])}),
        "joined": concat(as_examples([first]), as_examples({n: t[1:] for n, t in ENCODED.items()})),
    }
    for given in sets.values():
        torch.testing.assert_close(store.activations(bert, [layer], given)[layer], hidden)
    assert store.stats.forward_rows == 2  # all the others are the same examples
    assert labels_of(as_examples({**ENCODED, "labels": torch.tensor([1, 0])})) == (1, 0)
    texts = as_examples(["a", "b"], _encode)
    torch.testing.assert_close(store.activations(bert, [layer], texts)[layer], hidden[[0, 0]])
    pictures = as_examples([Image.new("RGB", (2, 2))] * 2, _encode)
    torch.testing.assert_close(store.activations(bert, [layer], pictures)[layer], hidden[[0, 0]])
    with pytest.raises(RequestError, match=r"^what Encoded loads is a BatchEncoding.*return probing\.Inputs"):
        store.activations(bert, [layer], Encoded())


def test_one_long_text_is_no_name_of_a_folder() -> None:
    assert len(as_examples(["so it goes " * 400], _encode)) == 1


def test_texts_of_several_lengths_are_padded_to_the_longest_of_their_set() -> None:
    def encode(text: str) -> BatchEncoding:
        ids = torch.tensor([[ord(letter) % 9 + 1 for letter in text]])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    store, bert, layer = ActivationStore(progress=False), _classifier(), "bert.encoder.layer.0"
    texts = ["abc", "defgh", "i"]
    for examples in (as_examples(texts, encode), as_examples([encode(text) for text in texts])):
        batch = examples.load([2, 0])
        assert isinstance(batch, Inputs)
        assert batch.tensors["attention_mask"].tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
        assert batch.tensors["input_ids"][0].tolist() == [7, 0, 0, 0, 0]
        rows = store.activations(bert, [layer], examples, pool="mean")[layer]
        for text, row in zip(texts, rows, strict=True):
            states = bert(**encode(text), output_hidden_states=True).hidden_states[-1].detach()
            torch.testing.assert_close(row, states[0].mean(0))
        longer = concat(examples, as_examples(["abcdefghi"], encode))
        assert longer.ids[0] != examples.ids[0]  # padded otherwise, so that the model sees something else
        assert longer.load(range(4)).shape == (4, 9)
        torch.testing.assert_close(store.activations(bert, [layer], longer, pool="mean")[layer][:3], rows)


def test_layer_ig_reads_a_layer_that_is_given_its_inputs_by_name() -> None:
    bert = _classifier()
    found = LayerIntegratedGradients("bert.embeddings", IntegratedGradients(steps=3))(Score(bert, 1, output="logits"), IDS)
    ends = bert.bert.embeddings(input_ids=IDS).detach()
    total = torch.zeros_like(ends)
    for share in (1 / 6, 3 / 6, 5 / 6):
        point = (share * ends).requires_grad_()
        handle = bert.bert.embeddings.register_forward_hook(lambda *_, p=point: p)
        logits = bert(input_ids=IDS).logits
        handle.remove()
        total += torch.autograd.grad(logits[:, 1].sum(), point)[0] / 3
    torch.testing.assert_close(found.values, ends * total)
