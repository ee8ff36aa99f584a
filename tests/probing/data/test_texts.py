"""Texts as numbers of words, and the recurrent classifier, against slow re-derivations."""

from unicodedata import normalize

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from probing.core.content_ids import content_id
from probing.data.texts import TextClassifier, TokeniserError, WordIds, words
from probing.models.hooks import capture
from probing.models.text_classifier import BidirectionalLSTM, RecurrentClassifier

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
    slow = [torch.cat([_one_way(t, *weights[0]), _one_way(t.flip(0), *weights[1]).flip(0)], 1) for t in x]
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


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in words(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [  # with the rule of UAX #29 that each stands for
        ("a\r\nb", "a|b"),  # WB3
        ("👨\u200d👩\u200d👧🏽 x", "👨\u200d👩\u200d👧🏽|x"),  # WB3c
        ("e\u0301\u0308a नमस्ते दिन", "e\u0301\u0308a|नमस्ते|दिन"),  # WB4
        ("क्\u200dष জ্ঞান தமிழ்", "क्\u200dष|জ্ঞান|தமிழ்"),  # WB4
        ("straße ночь שלום مرحبا", "straße|ночь|שלום|مرحبا"),  # WB5
        ("don't can\u2019t a.b 'q' a:.b", "don't|can\u2019t|a.b|q|a|b"),  # WB6, WB7
        ('צה"ל "א"', 'צה"ל|א'),  # WB7b, WB7c
        ("1234 A3 3A", "1234|A3|3A"),  # WB8 to WB10
        ("3.14 1,000 2,a 3..4", "3.14|1,000|2|a|3|4"),  # WB11, WB12
        ("カメラ ガｶ a", "カメラ|ガｶ|a"),  # WB13
        ("snake_case a_1", "snake_case|a_1"),  # WB13a, WB13b
        ("🇩🇪🇫🇷🇯", "🇩🇪|🇫🇷|🇯"),  # WB15, WB16
        ("👍🏽😀😀❤️1️⃣#️⃣ok", "👍🏽|😀|😀|❤️|1️⃣|#️⃣|ok"),  # WB999: nothing else joins
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿go", "🏴󠁧󠁢󠁥󠁮󠁧󠁿|go"),
        ("这部电影很好", "这|部|电|影|很|好"),
        ("ひらがな", "ひ|ら|が|な"),
        ("สวัสดี ครับ", "ส|วั|ส|ดี|ค|รั|บ"),
        ("ລາວ", "ລ|າ|ວ"),
        ("한국어 입니다", "한국어|입니다"),
        ("http://a.org/x?y=1", "http|a.org|x|y|1"),
        ("… ! + ↮ \u0301", ""),
        ("", ""),
    ],
)
def test_words_end_where_unicode_says(text: str, found: str) -> None:
    assert "|".join(cut(text)) == found


def test_no_character_as_people_see_it_is_cut() -> None:
    assert cut("ខ្មែរ") == ["ខ្មែ", "រ"]  # the sign between two consonants joins them to one
    assert cut("မြန်မာ") == ["မြ", "န်", "မာ"]


def test_one_word_of_a_script_without_spaces_is_cut_into_its_characters() -> None:
    assert cut("カメラ") == ["カ", "メ", "ラ"]
    assert cut(" カメラ。") == ["カ", "メ", "ラ"]
    assert cut("Kamera") == ["Kamera"]  # the control: a script with spaces
    assert cut("カメラ カメラ") == ["カメラ", "カメラ"]  # two words are parts enough


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12) | st.text("éãcк\u0301\u0308\u093cकख़가각\u11a8がッ'.1↮≠ ", max_size=12))
def test_how_letters_are_composed_does_not_move_words(text: str) -> None:
    composed, decomposed = (cut(normalize(form, text)) for form in ("NFC", "NFD"))
    assert [normalize("NFD", w) for w in composed] == decomposed


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_words_lie_in_their_text_in_order(text: str) -> None:
    spans = words(text)
    ends = [0, *(end for _, end in spans)]
    assert all(last <= start < end <= len(text) for last, (start, end) in zip(ends, spans, strict=False))


def test_a_tokeniser_gives_strings_or_spans() -> None:
    text = "สวัสดีครับ ครับ"
    assert words(text, lambda _: ["สวัสดี", "ครับ", "ครับ"]) == ((0, 6), (6, 10), (11, 15))
    assert words(text, lambda _: [(0, 0), (0, 6), [6, 10], (0, 0)]) == ((0, 6), (6, 10))
    assert words(text, str.split) == ((0, 10), (11, 15))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["b", "a"], "word 'a' is not in ''"),
        (["##b"], "word '##b' is not in 'a b'"),
        ([(0, 2), (1, 3)], r"\(1, 3\) overlaps the word before, which ends at 2"),
        ([(2, 9)], "leaves the text of 3 characters"),
        ([(2, 1)], "in the order of the text"),
        ([(-1, 1)], "overlaps"),
        ([7], "got 7"),
        ([(0, 1, 2)], r"got \(0, 1, 2\)"),
    ],
)
def test_a_tokeniser_whose_words_are_not_in_the_text_is_refused(tokens: list[object], said: str) -> None:
    with pytest.raises(TokeniserError, match=said):
        words("a b", lambda _: tokens)
