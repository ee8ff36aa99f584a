"""A score is one number per example: right in every unit, and refused where it has no meaning."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nets import ConvNet, TwoHeadNet, images, seeded
from torch import Tensor, nn

from probing.models.loading import ClassNameError, LoadedModel
from probing.models.readings import OutputError
from probing.models.scores import (
    ModelModeError,
    Score,
    TargetError,
    class_scores,
    refuse_training,
)

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.5, -1.0, 0.5], [-200.0, 0.0, 200.0]], dtype=torch.float64)


class Same(nn.Module):
    """Returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


NET = Same().eval()


def _softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(v - top) for v in row]
    return [p / sum(powers) for p in powers]


def _expected(unit: str, row: list[float], target: int) -> float:
    if unit == "logit":
        return row[target]
    if unit == "probability":
        return _softmax(row)[target]
    if unit == "logprob":
        top = max(row)
        return row[target] - top - math.log(sum(math.exp(v - top) for v in row))
    return row[target] - max(v for i, v in enumerate(row) if i != target)


@pytest.mark.parametrize("unit", ["logit", "probability", "logprob", "margin"])
@pytest.mark.parametrize("target", [0, 1, 2])
def test_each_unit_is_its_formula(unit: str, target: int) -> None:
    logits = torch.cat([LOGITS, LOGITS - 300])
    expected = [_expected(unit, row, target) for row in logits.tolist()]
    found = Score(NET, target, unit=unit)(logits)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-300)


def test_the_default_is_the_logit() -> None:
    assert Score(NET, 1)(LOGITS).tolist() == LOGITS[:, 1].tolist()


@pytest.mark.parametrize("unit", ["logit", "probability", "logprob", "margin"])
def test_scores_are_differentiable(unit: str) -> None:
    x = LOGITS[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(Score(NET, 1, unit=unit), x)


def test_the_margin_of_the_top_class_is_against_the_second_and_zero_in_a_tie() -> None:
    assert Score(NET, 1, unit="margin")(LOGITS).tolist()[0] == 1
    assert Score(NET, 0, unit="margin")(LOGITS).tolist()[1] == 0


def test_a_margin_between_fewer_than_two_classes_is_refused() -> None:
    with pytest.raises(OutputError, match="at least two classes"):
        Score(NET, 0, unit="margin")(torch.ones(2, 1))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_unit_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"one of \('logit', .*, got 'prob'"):
        Score(NET, 0, unit="prob")


def test_each_example_may_have_a_class_of_its_own() -> None:
    assert Score(NET, torch.tensor([1, 0, 2]))(LOGITS).tolist() == [3, 0.5, 200]


@pytest.mark.parametrize(
    "target",
    [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.int8)],
    ids=repr,
)
def test_whatever_is_a_whole_number_is_a_class(target: object) -> None:
    score = Score(NET, target)
    assert type(score.target) is int
    assert score(LOGITS).tolist() == LOGITS[:, 1].tolist()


@pytest.mark.parametrize(
    "target",
    [
        [1, 0, 2],
        (1, 0, 2),
        [np.int64(1), np.int32(0), np.uint8(2)],
        list(torch.tensor([1, 0, 2])),
        np.array([1, 0, 2], dtype=np.uint16),
        np.broadcast_to(np.array([1, 0, 2]), 3),  # can't be written to
        *(torch.tensor([1, 0, 2], dtype=d) for d in (torch.uint8, torch.int16, torch.int32, torch.int64)),
    ],
    ids=repr,
)
def test_whatever_holds_whole_numbers_gives_each_example_its_class(target: object) -> None:
    score = Score(NET, target)
    assert score(LOGITS).tolist() == [3, 0.5, 200]
    assert score(LOGITS, torch.tensor([2, 2, 0])).tolist() == [2.0, 0.5, 0.0]


def test_no_target_is_the_top_class_of_each_input() -> None:
    assert Score(NET)(LOGITS).tolist() == [3, 0.5, 200]
    named = Score(NET, unit="margin").named(LOGITS)
    assert named.target.tolist() == [1, 0, 2]
    assert named(LOGITS.flip(0)).tolist() == Score(NET, [1, 0, 2], "margin")(LOGITS.flip(0)).tolist()
    assert Score(NET, 2).named(LOGITS).target == 2


def test_no_target_names_no_class_of_inputs_that_are_not_known() -> None:
    """The top class of a variant is another question."""
    with pytest.raises(TargetError, match=r"name a class, or use score\.named\(inputs\)"):
        Score(NET).read(LOGITS)
    with pytest.raises(TargetError, match="not known which inputs"):
        Score(NET)(LOGITS, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("unit", ["probability", "logprob"])
def test_one_class_score_is_the_logit_of_a_binary_classifier(unit: str) -> None:
    """Not the softmax of one class, which is 1 whatever the model says."""
    logit = torch.tensor([[-300.0], [-1.0], [0.0], [2.0], [40.0]], dtype=torch.float64)
    both = torch.cat([torch.zeros_like(logit), logit], 1)  # the same classifier with two classes
    found = Score(NET, 0, unit)(logit)
    torch.testing.assert_close(found, Score(NET, 1, unit)(both), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(Score(NET, 0, unit), logit[1:4].clone().requires_grad_())
    with pytest.raises(TargetError, match="one class score, class 0, which is the logit of label 1"):
        Score(NET, 1, unit)(logit)


ALREADY = {
    "softmax": lambda x: x.softmax(1),
    "softmax in half": lambda x: x.bfloat16().softmax(1),
    "one and the rest": lambda x: torch.stack([x[:, 0].sigmoid(), 1 - x[:, 0].sigmoid()], 1),
    "normalised": lambda x: x.abs() / x.abs().sum(1, keepdim=True),
    "sigmoids": torch.sigmoid,
    "one sigmoid": lambda x: x[:, :1].sigmoid(),
    "one sigmoid, reshaped": lambda x: x[:, 0].sigmoid().unsqueeze(1),
}


@pytest.mark.parametrize("unit", ["probability", "logprob"])
@pytest.mark.parametrize("name", ALREADY)
def test_probabilities_are_not_taken_of_probabilities(name: str, unit: str) -> None:
    net = Wrapped(ALREADY[name]).eval()
    x = LOGITS.clone().requires_grad_()  # without a graph a sigmoid can't be told from a logit
    with pytest.raises(OutputError, match=r"probabilities already.*by unit='logit'"):
        Score(net, 0, unit)(x)
    assert torch.equal(Score(net, 0)(x), net(x)[:, 0])


@pytest.mark.parametrize(
    "logits",
    [
        [[0.6, 0.3]],  # less than one
        [[0.5, 0.5], [1.0, 0.5]],  # one row by chance
        [[1.5, -0.5]],  # adds up, but is negative
        [[0.7], [0.2]],
    ],
)
def test_logits_that_look_like_probabilities_are_logits(logits: list[list[float]]) -> None:
    x = torch.tensor(logits)
    assert Score(NET, 0, "logprob")(x).isfinite().all()


def test_logarithms_of_probabilities_are_logits_too() -> None:
    net = Wrapped(lambda x: x.log_softmax(1)).eval()
    for unit in ("probability", "logprob"):
        torch.testing.assert_close(Score(net, 1, unit)(LOGITS), Score(NET, 1, unit)(LOGITS))


def test_rows_say_of_which_example_each_input_is_a_variant() -> None:
    score = Score(NET, torch.tensor([2, 0]))
    rows = torch.tensor([1, 0, 1])
    assert score(LOGITS, rows).tolist() == [1.0, 0.5, -200.0]
    assert Score(NET, 1)(LOGITS, rows).tolist() == LOGITS[:, 1].tolist()


def test_no_inputs_have_no_scores() -> None:
    assert Score(NET, 1)(LOGITS[:0]).shape == (0,)
    assert Score(NET, torch.tensor([], dtype=torch.int64))(LOGITS[:0]).shape == (0,)


@pytest.mark.parametrize(("target", "bad"), [(3, 3), (-1, -1), (99, 99)])
def test_a_class_out_of_range_is_named_with_the_range(target: int, bad: int) -> None:
    message = f"class {bad} is out of range: the model has 3 classes, 0 to 2"
    with pytest.raises(TargetError, match=message) as caught:
        Score(NET, target)(LOGITS)
    assert isinstance(caught.value, IndexError)
    with pytest.raises(TargetError, match=message):
        Score(NET, torch.tensor([0, target, 1]))(LOGITS)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_targets_must_be_as_many_as_inputs(number: int) -> None:
    with pytest.raises(TargetError, match=f"target has {number} classes for 3 inputs"):
        Score(NET, torch.zeros(number, dtype=torch.int64))(LOGITS)


def test_rows_must_be_as_many_as_inputs_and_name_examples() -> None:
    score = Score(NET, torch.tensor([2, 0]))
    with pytest.raises(TargetError, match="rows name 2 classes for 3 inputs"):
        score.read(LOGITS, torch.tensor([0, 1]))
    for bad in (-1, 2):
        with pytest.raises(TargetError, match="rows must name examples 0 to 1"):
            score(LOGITS, torch.tensor([0, 1, bad]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (True, "or None for the top class of each input, got True"),
        (1.0, "got 1.0"),
        (np.float32(1), "got np.float32"),
        ("cat", "got 'cat'"),
        (["cat"], r"got \['cat'\]"),
        ([1.0, 2.0], r"got torch\.float64 of shape \(2,\)"),
        ([[1, 2], [0]], r"got \[\[1, 2\], \[0\]\]"),
        (torch.tensor([1.0, 0.0, 2.0]), r"got torch\.float32 of shape \(3,\)"),
        (torch.tensor(1.0), r"got tensor\(1\.\)"),
        (torch.tensor([True, False, True]), r"got torch\.bool"),
        (torch.tensor([[1], [0], [2]]), r"of shape \(3, 1\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_class_is_refused_as_target(target: object, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Score(NET, target)


def test_a_loaded_model_is_a_model_whose_classes_have_names() -> None:
    named = LoadedModel(NET, classes=("ape", "bee", "cat"))
    assert Score(named).model is NET
    assert Score(named, "cat").target == 2
    assert Score(named, ["bee", 0, "Cat"]).target.tolist() == [1, 0, 2]
    assert Score(named, torch.tensor([1, 0, 2]))(LOGITS).tolist() == [3, 0.5, 200]
    with pytest.raises(TargetError, match="only a model from `load` knows its classes by name"):
        Score(NET, "cat")
    with pytest.raises(ClassNameError, match="no class 'cow'"):
        Score(named, "cow")
    with pytest.raises(ClassNameError, match="have none"):
        Score(LoadedModel(NET), "cat")


def test_a_part_in_training_mode_is_named() -> None:
    net = seeded(ConvNet())
    net.features[1].train()
    with pytest.raises(ModelModeError, match=r"'features\.1' of ConvNet is in training mode: call model\.eval\(\)"):
        Score(net, 0)(images())
    net.train()
    with pytest.raises(ModelModeError, match=r"^ConvNet is in training mode") as caught:
        refuse_training(net)
    assert isinstance(caught.value, RuntimeError)
    refuse_training(net.eval())


def test_a_refused_model_is_not_run() -> None:
    calls = []
    net = ConvNet().train()
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ModelModeError):
        Score(net, 0)(images())
    assert not calls


class Wrapped(nn.Module):
    """Returns its logits inside something else."""

    def __init__(self, wrap: object) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        assert callable(self.wrap)
        return self.wrap(x)


@pytest.mark.parametrize(
    ("wrap", "part"),
    [
        (lambda x: (x, None), 0),
        (lambda x: [None, x], 1),
        (lambda x: (None, x), -1),
        (lambda x: {"logits": x, "loss": None}, "logits"),
        (lambda x: OrderedDict(logits=x), "logits"),
    ],
)
def test_class_scores_inside_an_output_are_named(wrap: object, part: str | int) -> None:
    net = Wrapped(wrap).eval()
    assert Score(net, 1, output=part)(LOGITS).tolist() == LOGITS[:, 1].tolist()
    with pytest.raises(OutputError, match=r"name the class scores by Score\(output=…\)"):
        Score(net, 1)(LOGITS)


@pytest.mark.parametrize(
    ("output", "part", "message"),
    [
        ((LOGITS,), 1, r"no part 1: it is a tuple of \['Tensor'\]"),
        ({"logits": LOGITS}, "scores", r"no part 'scores': it is a mapping with keys \['logits'\]"),
        ({"logits": LOGITS}, 0, "no part 0"),
        ((LOGITS,), "logits", "no part 'logits'"),
        (None, 0, "no part 0: it is a NoneType"),
        (LOGITS, 0, "no part 0: it is a Tensor"),  # else the first example would be taken
        (LOGITS[None], 0, "no part 0: it is a Tensor"),
        ((LOGITS, None), None, r"returns a tuple of \['Tensor', 'NoneType'\]"),
        ((LOGITS, None), 1, "returns a NoneType"),
        (LOGITS[0], None, r"shape \[n, classes\], got torch\.float64 of shape \(3,\)"),
        (LOGITS[None], None, r"of shape \(1, 3, 3\)"),
        (LOGITS.long(), None, r"must be real numbers .* got torch\.int64"),
    ],
)
def test_an_output_without_class_scores_is_refused(output: object, part: str | int | None, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        class_scores(output, part)
    assert isinstance(caught.value, TypeError)


def test_a_model_of_two_heads_is_scored_at_the_one_named() -> None:
    net = seeded(TwoHeadNet())
    x = torch.ones(2, 4)
    logits, features = net(x)
    assert torch.equal(Score(net, 2, output=0)(x), logits[:, 2])
    assert torch.equal(Score(net, 4, output=1)(x), features[:, 4])


def test_a_model_that_merges_its_inputs_is_refused() -> None:
    net = Wrapped(lambda x: x.mean(0, keepdim=True)).eval()
    with pytest.raises(OutputError, match="returns 1 rows of scores for 3 inputs"):
        Score(net, 0)(LOGITS)


def test_a_score_reads_an_output_that_is_there_without_running_the_model() -> None:
    def fail(x: Tensor) -> Tensor:
        raise AssertionError

    score = Score(Wrapped(fail), 1)
    assert score.read(LOGITS).tolist() == LOGITS[:, 1].tolist()
