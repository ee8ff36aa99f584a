"""Texts as numbers of words, and the recurrent classifier, against slow re-derivations."""

import pytest
import torch
from torch import Tensor

from probing.fingerprint import content_id
from probing.hooks import capture
from probing.recurrent import BidirectionalLSTM, RecurrentClassifier
from probing.texts import TextClassifier, WordIds

WORDS = WordIds(("the", "cat", "sat", "can't"), length=5)


def test_words_are_looked_up_without_case_and_punctuation_and_stand_at_the_end():
    assert WORDS("The CAT, sat!").tolist() == [0, 0, 1, 2, 3]
    assert WORDS("cat\tcat\ncat-cat").tolist() == [0, 2, 2, 2, 2]
    assert WORDS("can't").tolist() == [0, 0, 0, 0, 4]  # an apostrophe parts no words
    assert WORDS("").tolist() == [0] * 5


def test_of_a_long_text_the_last_words_are_kept():
    assert WORDS("sat sat the cat the cat the").tolist() == [1, 2, 1, 2, 1]


def test_unknown_words_leave_no_trace_and_are_named():
    assert WORDS("the dog sat").tolist() == WORDS("the sat").tolist()
    assert WORDS.unknown("the dog sat") == ("dog",)


def test_a_words_places_are_those_of_its_number():
    text = "the dog cat sat cat"
    assert [int(WORDS(text)[i]) for i in WORDS.places(text, "Cat")] == [2, 2]
    assert WORDS.places(text, "cat") == (2, 4)
    with pytest.raises(ValueError, match="sees no word 'dog'"):
        WORDS.places(text, "dog")


def test_the_vocabulary_is_part_of_the_content_id():
    other = WordIds(("the", "cat", "sat", "mat"), length=5)
    assert content_id(WORDS) == content_id(WordIds(WORDS.words, 5)) != content_id(other)


def _one_way(x: Tensor, kernel: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
    """Take one text through one direction, gate by gate, as Hochreiter & Schmidhuber write it."""
    units = len(recurrent)
    h = c = torch.zeros(units, dtype=x.dtype)
    found = []
    for step in x:
        z = step @ kernel + h @ recurrent + bias[0]
        i, f, g, o = (z[k * units : (k + 1) * units] for k in range(4))
        i, f, o = (torch.clip(0.2 * gate + 0.5, 0, 1) for gate in (i, f, o))
        c = f * c + i * torch.tanh(g)
        h = o * torch.tanh(c)
        found.append(h)
    return torch.stack(found)


def test_the_lstm_equals_a_loop_over_texts_steps_and_gates(generator):
    layer = BidirectionalLSTM(3, 4).double()
    for weight in layer.parameters():
        weight.data = 2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    weights = list(zip(layer.kernel, layer.recurrent, layer.bias, strict=True))
    slow = [
        torch.cat([_one_way(t, *weights[0]), _one_way(t.flip(0), *weights[1]).flip(0)], 1)
        for t in x
    ]
    torch.testing.assert_close(layer(x), torch.stack(slow), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(layer, (x[:1, :3].clone().requires_grad_(),))


def test_every_stage_of_the_classifier_is_a_layer(generator):
    model = RecurrentClassifier(9, features=3, units=4, hidden=5, labels=2).eval()
    layers = ["embedding", "recurrent", "pooled", "hidden", "relu", "output"]
    ids = torch.randint(9, (2, 7), generator=generator)
    with capture(model, layers) as seen, torch.no_grad():
        logits = model(ids)
    shapes = [(2, 7, 3), (2, 7, 8), (2, 8), (2, 5), (2, 5), (2, 2)]
    assert [tuple(seen[layer].shape) for layer in layers] == shapes
    assert torch.equal(seen["recurrent"].amax(1), seen["pooled"])
    assert torch.equal(seen["output"], logits)


def test_the_classifier_reads_texts_in_batches_as_one_by_one():
    model = RecurrentClassifier(5, features=3, units=4, hidden=5, labels=2).eval()
    classifier = TextClassifier(model, WORDS, ("bad", "worse"))
    texts = ["the cat", "sat", ""] * 100
    one = torch.cat([classifier.logits([t]) for t in texts])
    torch.testing.assert_close(classifier.logits(texts), one)
    with pytest.raises(ValueError, match="no label 'good', only"):
        classifier.label_index("good")
