"""What is read of an output is what it says, of each example; what an output does not hold is refused with the way out."""

from collections import namedtuple
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from nets import ConvNet, images, seeded
from torch import Tensor, nn

from probing.attribution import LRP, GradCAM, IntegratedGradients, Saliency
from probing.core.errors import ArgumentError, ProbingError
from probing.core.inputs import Inputs
from probing.data.examples import as_examples
from probing.models.readings import (
    Box,
    Custom,
    Label,
    NextToken,
    OutputError,
    Pixel,
    Reading,
    Region,
    Regression,
    Similarity,
    Span,
    part_of,
)
from probing.models.scores import Score, TargetError, class_scores
from probing.store.requests import RequestError
from probing.store.store import ActivationStore


class Given(nn.Module):
    """Returns what it was made with, whatever it is given."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def read(reading: Reading, output: object, part: str | int | None = None) -> list[float]:
    return [round(v, 6) for v in Score(Given(output).eval(), reading, output=part)(torch.zeros(2, 1)).tolist()]


TABLE = torch.tensor([[0.0, 2.0, -1.0], [4.0, 1.0, 0.5]])
TEXTS = torch.arange(24.0).view(2, 4, 3).sin()
MAPS = torch.arange(24.0).view(2, 3, 2, 2)
BOXES = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
DETECTED = [
    {"boxes": BOXES, "labels": torch.tensor([1, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.7])},
    {"boxes": BOXES.flip(0), "labels": torch.tensor([2, 1, 1]), "scores": torch.tensor([0.3, 0.2, 0.1])},
]


@pytest.mark.parametrize(
    ("reading", "output", "expected", "unit", "name"),
    [
        (Label(1, "logit"), TABLE, [2, 1], "logit", "label 1"),
        (Label(1), TABLE, [0.880797, 0.731059], "probability", "label 1"),
        (Label([0, 2], "logprob"), TABLE, [-0.693147, -0.474077], "logprob", "label (0, 2)"),
        (Regression(2, unit="kg"), TABLE, [-1, 0.5], "kg", "column 2"),
        (Regression(), TABLE[:, 1], [2, 1], "output", "column 0"),
        (NextToken(2), TEXTS, TEXTS[:, -1, 2].tolist(), "logit", "token 2 after position -1"),
        (
            NextToken(2, instead_of=0, after=[1, 3]),
            TEXTS,
            [float(TEXTS[0, 1, 2] - TEXTS[0, 1, 0]), float(TEXTS[1, 3, 2] - TEXTS[1, 3, 0])],
            "logit difference",
            "token 2 instead of 0 after position (1, 3)",
        ),
        (
            Span([1, 2], 2),
            TEXTS,
            [float(t[1].log_softmax(0)[1] + t[2].log_softmax(0)[2]) for t in TEXTS],
            "logprob",
            "tokens (1, 2) from position 2",
        ),
        (
            Span(torch.tensor([[1, 2], [0, 0]]), [2, 1]),
            TEXTS,
            [
                float(TEXTS[0, 1].log_softmax(0)[1] + TEXTS[0, 2].log_softmax(0)[2]),
                float(TEXTS[1, 0].log_softmax(0)[0] + TEXTS[1, 1].log_softmax(0)[0]),
            ],
            "logprob",
            "tokens of each example from position (2, 1)",
        ),
        (Pixel(1, (1, 0)), MAPS, [6, 18], "logit", "class 1 at (1, 0)"),
        (Pixel([1, 0], torch.tensor([[1, 0], [0, -1]])), MAPS, [6, 13], "logit", "class (1, 0) at of each example"),
        (Pixel(2, (1,)), MAPS[..., 0], [10, 22], "logit", "class 2 at (1)"),
        (Pixel(2, (1, 0, 1)), MAPS.view(2, 3, 2, 1, 2), [11, 23], "logit", "class 2 at (1, 0, 1)"),
        (Region(0, torch.tensor([[True, False], [False, True]])), MAPS, [1.5, 13.5], "logit", "class 0 over 2 pixels"),
        (Box(1, (2.0, 0.0, 12.0, 10.0)), DETECTED, [0.8, 0.2], "probability", "label 1 in box (2, 0, 12, 10)"),
        (Box(2, (0.0, 0.0, 10.0, 10.0)), DETECTED, [0, 0], "probability", "label 2 in box (0, 0, 10, 10)"),
        (Box([2, 1]), DETECTED, [0.7, 0.2], "probability", "label (2, 1)"),
        (Similarity(torch.tensor([0.0, 1.0, 0.0])), TABLE, [0.894427, 0.240772], "cosine", "similarity to an embedding"),
        (Similarity(TABLE, "itself"), TABLE, [1, 1], "cosine", "similarity to itself"),
        (Custom(lambda y: y.sum(1), "points", "sum"), TABLE, [1, 5.5], "points", "sum"),
    ],
)
def test_each_reads_what_it_names(reading: Reading, output: object, expected: list[float], unit: str, name: str) -> None:
    wanted = [pytest.approx(v, abs=2e-6) for v in expected]
    assert read(reading, output) == wanted
    assert read(reading, (None, output), 1) == wanted
    assert read(reading, {"logits": output}, "logits") == wanted
    assert read(reading, SimpleNamespace(logits=output, loss=1.0), "logits") == wanted
    assert read(reading, namedtuple("Output", "logits")(output), "logits") == wanted
    assert Score(nn.Identity(), reading).unit == unit
    assert reading.name == name


def test_values_of_each_example_follow_rows_and_slices() -> None:
    score = Score(Given(TEXTS).eval(), NextToken([2, 0], after=[1, 3]))
    assert score.count == 2
    assert score.read(TEXTS.flip(0), torch.tensor([1, 0])).tolist() == [float(TEXTS[1, 3, 0]), float(TEXTS[0, 1, 2])]
    assert score.names(2) == ("token 2 after position 1", "token 0 after position 3")
    second = score.of(1)
    assert second.count is None
    assert second.target.key == NextToken(0, after=3).key
    assert score.of(slice(1, 2)).count == 1
    with pytest.raises(TargetError, match="rows must name examples 0 to 1"):
        score.read(TEXTS, torch.tensor([0, 2]))
    with pytest.raises(TargetError, match="values for 2 of 3 inputs"):
        score.read(TEXTS[[0, 0, 1]])
    with pytest.raises(TargetError, match="values for 2 of 4 inputs"):
        Saliency()(Score(seeded(ConvNet()), Regression([0, 1])), images())
    with pytest.raises(ArgumentError, match=r"NextToken has values for \[2, 3\] examples"):
        NextToken([2, 0], after=[1, 3, 2])


@dataclass(frozen=True, eq=False)
class Largest(Reading):
    """A reading of the user's."""

    unit: str = field(default="points", init=False)

    @property
    def name(self) -> str:
        return "largest"

    def __call__(self, output: object) -> Tensor:
        assert isinstance(output, Tensor)
        return output.amax(1)


def test_the_key_is_the_content() -> None:
    assert Pixel(1, (1, 0)).key == Pixel(torch.tensor(1), torch.tensor([1, 0])).key
    keys = [
        *(Pixel(c, p).key for c, p in [(1, (1, 0)), (1, (0, 1)), (0, (1, 0))]),
        *(NextToken(*a).key for a in [(1,), (1, 0), (1, 0, 2)]),
        *(Similarity(v).key for v in TABLE),
        *(Custom(f).key for f in (lambda y: y.sum(1), lambda y: y.mean(1), lambda y: 2 * y.sum(1))),
        Largest().key,
    ]
    assert len(set(keys)) == len(keys)
    assert read(Largest(), TABLE) == [2, 4]


@pytest.mark.parametrize(
    ("reading", "output", "message"),
    [
        (Regression(), TEXTS, r"Regression reads real numbers \[n\] or \[n, outputs\], got .* of shape \(2, 4, 3\)"),
        (Regression(3), TABLE, "column 3 is out of range: the output has 3, 0 to 2"),
        (Label(1), TABLE.long(), r"got torch\.int64"),
        (Label(1), (TABLE,), r"returns a tuple of \['Tensor'\]: name its part by Score\(output=…\)"),
        (NextToken(3), TEXTS, "token 3 is out of range: the output has 3, 0 to 2"),
        (NextToken(1, after=4), TEXTS, "position 4 is out of range: the output has 4"),
        (NextToken(1), TABLE, r"NextToken reads real numbers \[n, tokens, vocabulary\]"),
        (Span([1], 0), TEXTS, "a span starts at position 1 or later"),
        (Span([1, 1], 4), TEXTS, "out of range"),
        (Pixel(1, (0,)), MAPS, r"has 1 numbers for maps of shape \(2, 2\)"),
        (Pixel(1, (2, 0)), MAPS, "place 2 is out of range: the output has 2"),
        (Region(1, torch.ones(3, 3) > 0), MAPS, r"mask of a region must be boolean, of the output's size \(2, 2\)"),
        (Region(1, torch.zeros(2, 2) > 0), MAPS, "with 0 places"),
        (Region(1, torch.ones(2, 2)), MAPS, "must be boolean"),
        (Region(0), MAPS, r"class 0 is nowhere the top class of input 0: .* by Region\(mask=…\)"),
        (Box(3), DETECTED, "detects nothing of label 3 in input 0"),
        (Box(1, (0.0, 0.0, 1.0, 1.0)), TABLE, "Box reads a list with boxes, labels and scores"),
        (Similarity(torch.ones(4)), TABLE, "the embedding has 4 features, the model's output 3"),
        (Custom(lambda y: y, label="all"), TABLE, r"all must return one real number per example, .* of shape \(2, 3\)"),
        (Custom(lambda y: 3.0, label="three"), TABLE, "a tensor \\[n\\], got float"),
        (Custom(lambda y: y.sum(0)), TABLE, "returns 3 rows of scores for 2 inputs"),
    ],
)
def test_what_the_output_does_not_hold_is_refused(reading: Reading, output: object, message: str) -> None:
    with pytest.raises(ProbingError, match=message):
        read(reading, output)


@pytest.mark.parametrize(
    ("output", "way"),
    [
        (TABLE[0], r"of shape \(3,\): explain a number that is predicted by target=Regression"),
        (TEXTS, r"explain a token by target=NextToken"),
        (MAPS, r"explain a place or a region by target=Pixel"),
        (MAPS[None], r"by target=Custom"),
        (DETECTED, r"explain a detected object by target=Box"),
        (SimpleNamespace(logits=TABLE), r"a SimpleNamespace with attributes \['logits'\]: name the class scores by Score"),
    ],
)
def test_an_output_without_class_scores_names_what_may_be_read_of_it(output: object, way: str) -> None:
    with pytest.raises(OutputError, match=way):
        class_scores(output)


@pytest.mark.parametrize("part", ["keys", "_x", "lost", 3])
def test_methods_and_private_attributes_are_no_parts(part: str | int) -> None:
    with pytest.raises(OutputError, match=f"no part {part!r}"):
        part_of({"logits": TABLE}, part)


def test_a_label_that_a_sigmoid_made_is_no_logit() -> None:
    x = TABLE.clone().requires_grad_()
    with pytest.raises(OutputError, match="returns probabilities already"):
        Score(nn.Sigmoid().eval(), Label(1))(x)
    assert torch.equal(Score(nn.Sigmoid().eval(), Label(1, "logit"))(x), TABLE[:, 1].sigmoid())


def test_a_reading_is_in_units_of_its_own() -> None:
    with pytest.raises(ArgumentError, match="a Pixel is in units of its own, 'logit': leave out unit='margin'"):
        Score(nn.Identity(), Pixel(0, (0, 0)), "margin")
    score = Score(nn.Identity(), Regression(unit="kg"))
    assert replace(score, model=nn.ReLU()).unit == "kg"


def test_what_is_open_is_found_in_the_inputs_themselves_and_held_on_to() -> None:
    """A changed input has another best detection, of which nothing was asked."""
    score = Score(Given(DETECTED).eval(), Box([1, 2])).named(torch.zeros(2, 1))
    assert score.target.box.tolist() == [[0, 0, 10, 10], [50, 50, 60, 60]]
    swapped = [DETECTED[1], DETECTED[0]]
    assert score.read(swapped).tolist() == pytest.approx([0.1, 0.7])
    with pytest.raises(OutputError, match=r"the box is not named: .* score\.named\(inputs\)"):
        Score(nn.Identity(), Box(1)).read(DETECTED)
    maps = torch.stack([torch.tensor([[[0.0, 5.0]], [[1.0, 1.0]]]), torch.tensor([[[9.0, 0.0]], [[1.0, 1.0]]])])
    region = Score(Given(maps).eval(), Region([1, 0])).named(torch.zeros(2, 1))
    assert region.target.mask.tolist() == [[[True, False]], [[True, False]]]
    assert region.read(maps + 2).tolist() == [3, 11]


class Bodied(nn.Module):
    def __init__(self, end: object) -> None:
        super().__init__()
        self.net, self.end = ConvNet(classes=12), end

    def forward(self, x: Tensor) -> object:
        assert callable(self.end)
        return self.end(self.net(x))


def _texts(y: Tensor) -> Tensor:
    return y.view(-1, 4, 3)


def test_the_store_names_gradients_by_what_is_read() -> None:
    model, x = seeded(Bodied(_texts)), images()
    store, layers = ActivationStore(), ["net.features"]
    scores = [Score(model, NextToken(t, after=a)) for t, a in [(0, 1), (2, 1), (2, 3)]]
    rows = [store.gradients(s, layers, as_examples(x))["net.features"] for s in scores]
    for score, found in zip(scores, rows, strict=True):
        maps = model.net.features(x).detach().requires_grad_()
        value = _texts(model.net.head(maps.mean((2, 3))))[:, score.target.after, score.target.token].sum()
        torch.testing.assert_close(found, torch.autograd.grad(value, maps)[0])
    each = store.gradients(Score(model, NextToken([0, 2, 2, 2], after=[1, 1, 3, 3])), layers, as_examples(x))["net.features"]
    assert torch.equal(each, torch.stack([rows[0][0], rows[1][1], rows[2][2], rows[2][3]]))
    passed = store.stats.forward_rows
    store.gradients(scores[1], layers, as_examples(x))
    assert store.stats.forward_rows == passed
    with pytest.raises(RequestError, match="several scores must name one class each"):
        store.gradients_of([Score(model, NextToken([0, 1, 2, 0]))], layers, as_examples(x))


def test_each_example_s_own_reading_gives_the_map_of_it_alone() -> None:
    model, x = seeded(Bodied(_texts)).double(), images().double()
    reading = NextToken([0, 2, 2, 1], after=[1, 1, 3, 0])
    for method in (Saliency(), IntegratedGradients(steps=3), LRP(), GradCAM("net.features")):
        found = method(model, x, reading)
        alone = [method(model, x[i : i + 1], reading.rows(i)) for i in range(4)]
        torch.testing.assert_close(found.values, torch.cat([a.values for a in alone]))
        assert found.target == tuple(a.target[0] for a in alone)
    shown = Saliency()(model, x, reading)
    assert "token 2 after position 3" in shown._repr_html_()
    assert shown.plot() is not None


def test_lrp_refuses_other_starts_of_what_is_no_class() -> None:
    model, x = seeded(Bodied(_texts)), images()
    for start in ("one", "contrast"):
        with pytest.raises(
            OutputError, match=f"a start with {start!r} is one of classes: start with the score by start='score'"
        ):
            LRP(start=start)(model, x, NextToken(1))


def _with_mask(mask: list[list[int]]) -> Inputs:
    read = torch.tensor(mask)
    return Inputs({"input_ids": torch.arange(read.numel()).view_as(read), "attention_mask": read})


class Texts(nn.Module):
    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return TEXTS


def test_the_last_token_of_a_text_is_no_padding() -> None:
    behind, before = _with_mask([[1, 1, 0, 0], [1, 1, 1, 1]]), _with_mask([[0, 0, 1, 1], [1, 1, 1, 1]])
    score = Score(Texts().eval(), NextToken(1))
    assert score(behind).tolist() == [float(TEXTS[0, 1, 1]), float(TEXTS[1, 3, 1])]
    assert score(before).tolist() == TEXTS[:, 3, 1].tolist()
    second = Score(Texts().eval(), NextToken(1, after=-2))
    assert second(behind).tolist() == [float(TEXTS[0, 0, 1]), float(TEXTS[1, 2, 1])]
    named = Score(Texts().eval(), NextToken(1, after=[1, 3]))
    assert named(behind).tolist() == score(behind).tolist()
    with pytest.raises(OutputError, match="position 2 of text 0, which token 1 after position 2 reads, is padding"):
        Score(Texts().eval(), NextToken(1, after=2))(behind)
    with pytest.raises(OutputError, match=r"position 2 of text 0, which tokens \(1, 2\) from position 1 reads, is padding"):
        Score(Texts().eval(), Span([1, 2], 1))(behind)
    with pytest.raises(OutputError, match="a text has no 3 tokens"):
        Score(Texts().eval(), NextToken(1, after=-3))(behind)
