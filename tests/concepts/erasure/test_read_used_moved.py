"""One table of five questions: planted networks of which each answer is known, and some in which nothing is to be found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from test_erasure import FEATURES, Planted, examples
from test_patching import Bent
from torch import Tensor, nn

from concepts.effects.logit_effect import Clusters, LogitEffect
from concepts.erasure.eraser import CrossMoments, ErasureError, leace
from concepts.erasure.erasure import Erasure
from concepts.erasure.patching import Patching, Removed
from concepts.erasure.read_used_moved import ReadUsedMoved
from concepts.erasure.table import (
    ELSEWHERE,
    EMPTY,
    QUIET,
    REVERSED,
    UNPREDICTED,
    UNUSED,
    USED,
    ReadUsedMovedResult,
)
from concepts.local_vs_global.matched_pairs import ComparisonError, MatchedConcept
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.store import ActivationStore

HOW = ReadUsedMoved(("first", "second"), controls=8, relabellings=299, bootstraps=100)
COLUMNS = ("carried", "needed", "predicted")


def concept(name: str, index: int = 0, n: int = 24, seed: int = 0) -> MatchedConcept:
    """Return pairs that differ in one input, which is -1 or 1, two pairs to a cluster."""
    x = examples(2 * n, seed)[0][::2].clone()
    sides = []
    for value in (1.0, -1.0):
        side = x.clone()
        side[:, index] = value
        sides.append(TensorExamples(side))
    return MatchedConcept(name, *sides, tuple(f"{name} {i // 2}" for i in range(n)))


def table(net: nn.Module, *concepts: MatchedConcept, how: ReadUsedMoved = HOW) -> ReadUsedMovedResult:
    return how(ActivationStore(), {"score": Score(net, 1)}, concepts)


@pytest.mark.parametrize("weight", [0.4, -1.5])
def test_in_a_linear_network_all_columns_are_the_weight_of_what_is_used(weight: float) -> None:
    found = table(Planted(weight), concept("planted"))
    assert found.moved.item() == pytest.approx(2 * weight)
    assert found.error.tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(found.share, torch.ones(1, 2, 1).double())
    for name in COLUMNS:
        torch.testing.assert_close(getattr(found, name), torch.full((1, 2, 1), 2 * weight).double())
        low, value, high = (getattr(found, name + end) for end in ("_low", "", "_high"))
        assert ((low <= value + 1e-9) & (value <= high + 1e-9)).all()
    assert [found.says(0, i, 0) for i in range(2)] == [USED, USED]
    assert found.sentences()[-1] == "planted: 2 of 2 used."
    assert found.fitted == found.judged == (6,)


def test_what_is_readable_and_weighs_nothing_is_read_and_no_more() -> None:
    found = table(Planted(0.0), concept("planted"))
    assert found.error.tolist() == [[0.0, 0.0]]
    assert (found.read_p < 0.05).all()
    for name in (*COLUMNS, "moved"):
        value = getattr(found, name)
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-9, rtol=0)
        assert not found.shown(name).any()
    assert found.share.isnan().all()
    assert found.says(0, 0, 0) == UNUSED


def test_attributes_stand_side_by_side_and_each_p_counts_all_of_its_column() -> None:
    net = Planted(1.0)
    alone = table(net, concept("one"))
    both = table(net, concept("one"), concept("other", 1))
    assert both.moved[:, 0].tolist() == pytest.approx([2.0, 0.0])
    assert [both.says(a, 0, 0) for a in range(2)] == [USED, UNUSED]
    for name in ("error", *COLUMNS, "moved"):
        torch.testing.assert_close(getattr(both, name)[:1], getattr(alone, name))
    # The swap of "one" is the same for all pairs, whose p is 0 however often it counts; relabellings have a least p.
    for name in ("read_p", "predicted_p", "needed_p"):
        torch.testing.assert_close(getattr(both, name)[0], (2 * getattr(alone, name)[0]).clamp(max=1))


class Around(nn.Module):
    """Two layers side by side, of which the first holds input 0 and the score reads it off the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (nn.Linear(FEATURES, FEATURES).double() for _ in range(3))
        with torch.no_grad():
            for layer in (self.first, self.second, self.head):
                layer.weight.copy_(torch.eye(FEATURES))
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        own = torch.eye(FEATURES, dtype=x.dtype)[0]
        logits: Tensor = self.head((self.first(x) * (1 - own)).roll(1, 1) * 0.1 + self.second(x).roll(1, 1) * own.roll(1))
        return logits


def test_what_passes_by_a_layer_moves_and_is_not_carried_there() -> None:
    found = table(Around().eval(), concept("planted"))
    assert found.moved.item() == pytest.approx(2)
    assert [found.says(0, i, 0) for i in range(2)] == [ELSEWHERE, USED]
    torch.testing.assert_close(found.share[0, :, 0], torch.tensor([0.0, 1.0]).double(), atol=1e-9, rtol=1e-7)


def test_columns_are_what_their_methods_say_on_the_same_pairs() -> None:
    """Where a network bends, no column is another, and each is what the method of its own finds on held-out pairs."""
    net, pairs, how = Bent().eval(), concept("planted", 2, 40), replace(HOW, layers="middle")
    scores, some = {"score": Score(net, 1)}, {f"planted {i}" for i in range(8)}
    found = how(ActivationStore(), scores, [pairs], fitted_on=some)
    assert (found.fitted, found.judged) == ((8,), (12,))
    values = [getattr(found, name).item() for name in (*COLUMNS, "moved")]
    assert len({round(value, 6) for value in values}) == 4
    both = torch.cat([pairs.positive.load(range(40)), pairs.negative.load(range(40))])
    kinds = ["positive"] * 40 + ["negative"] * 40
    erasure = Erasure("middle", controls=8)(ActivationStore(), scores, both, kinds, clusters=pairs.names * 2, fitted_on=some)
    assert found.moved.item() == pytest.approx(erasure.slope.item())
    assert found.needed.item() == pytest.approx((erasure.slope - erasure.slope_after).item())
    assert found.needed_control.item() == pytest.approx((erasure.slope - erasure.slope_control).item())
    judged = [TensorExamples(side.load(range(16, 40))) for side in (pairs.positive, pairs.negative)]
    with torch.no_grad():
        rows = net.middle(torch.tanh(net.first(both)))
    moments = CrossMoments()
    fit = [*range(16), *range(40, 56)]
    moments.add(rows[fit], torch.tensor([1.0, 0.0]).repeat_interleave(16)[:, None])
    cross = moments.value()
    put = Patching("middle", controls=8)(
        scores, MatchedConcept("planted", *judged, pairs.names[16:]), Removed(leace(cross), cross, True)
    )
    for name in ("", "_low", "_high"):
        assert getattr(found, f"carried{name}").item() == pytest.approx(getattr(put, name[1:] or "carried").item())
    assert found.carried_control.item() == pytest.approx(put.control.item())
    effect = LogitEffect("mean", 299, 100)(
        ActivationStore(),
        scores,
        ["middle"],
        pairs.positive,
        pairs.negative,
        pairs.negative,
        Clusters(*[pairs.names] * 3),
    )
    assert found.predicted.item() == pytest.approx(effect.effect.item())
    other = replace(how, kind="mean")(ActivationStore(), scores, [pairs], fitted_on=some)
    assert abs(other.carried - found.carried).item() > 1e-6


def test_inputs_of_ones_own_take_the_place_of_negatives() -> None:
    net, pairs = Bent().eval(), concept("planted", 2)
    how, scores, own = replace(HOW, layers="middle"), {"score": Score(net, 1)}, pairs.negative
    found = how(ActivationStore(), scores, [pairs])
    given = how(ActivationStore(), scores, [pairs], inputs=own, input_clusters=pairs.names)
    torch.testing.assert_close(given.predicted, found.predicted)
    apart = how(ActivationStore(), scores, [pairs], inputs=torch.zeros(3, FEATURES).double())
    assert not torch.allclose(apart.predicted, found.predicted)
    torch.testing.assert_close(apart.carried, found.carried)


def null(seed: int, *, readable: bool) -> ReadUsedMovedResult:
    """Return the table of pairs that differ at random, and in an input that is not used, if anything of them is readable."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(16, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2)]
    if readable:
        sides[0][:, 0] += 4
    pairs = MatchedConcept("nothing", *map(TensorExamples, sides))
    how = replace(HOW, layers="first", controls=3, relabellings=99, bootstraps=100, seed=seed)
    return table(Planted(0.0), pairs, how=how)


@pytest.mark.parametrize("readable", [False, True])
def test_where_nothing_moves_no_column_says_so_more_often_than_its_level(readable: bool) -> None:
    draws = 20
    found = [null(seed, readable=readable) for seed in range(draws)]
    for name in (*COLUMNS, "moved", *([] if readable else ["read"])):
        called = sum(bool(f.shown(name).any()) for f in found)
        assert called <= stats.binom.ppf(0.9999, draws, 0.05), name
    if readable:  # the control: what is there is found
        assert sum(bool(f.shown("read").all()) for f in found) > draws / 2


def test_each_way_in_which_columns_part_has_its_words() -> None:
    found = table(Planted(1.0), concept("planted"))
    yes, no = torch.zeros(1, 2, 1).double(), torch.ones(1, 2, 1).double()
    for words, p, sign in (
        (USED, (yes, yes, yes, yes, yes), 1),
        (UNPREDICTED, (yes, no, yes, no, yes), 1),
        (REVERSED, (yes, yes, yes, yes, yes), -1),
        (ELSEWHERE, (yes, no, no, yes, yes), 1),
        (UNUSED, (yes, yes, yes, no, no), 1),
        (EMPTY, (yes, yes, yes, yes, no), 1),
        (QUIET, (no, no, no, no, no), 1),
    ):
        read, carried, needed, predicted, moved = p
        made = replace(
            found,
            read_p=read[:, :, 0],
            carried_p=carried,
            needed_p=needed,
            predicted_p=predicted,
            moved_p=moved[:, 0],
            predicted=sign * found.predicted,
        )
        assert made.says(0, 0, 0) == words
        assert f"planted: 2 of 2 {words}." in made.sentences()


def test_layers_at_which_the_prediction_is_no_measure_of_the_swap_are_named() -> None:
    found = table(Planted(1.0), concept("planted"))
    assert not any("what is predicted" in said for said in found.sentences())
    for factor, named in ((0.4, True), (0.6, False), (1.9, False), (2.1, True), (-1.0, True)):
        made = replace(found, predicted=torch.stack([found.predicted[:, 0], factor * found.predicted[:, 1]], 1))
        assert any("planted: at second what is predicted is less" in said for said in made.sentences()) == named
    still = replace(found, predicted=0 * found.predicted, moved_p=torch.ones(1, 1).double())
    assert not any("what is predicted" in said for said in still.sentences())


def test_a_result_is_a_table_a_figure_sentences_and_a_folder(tmp_path: Path) -> None:
    found = table(Planted(1.0), concept("one"), concept("other", 1))
    again = ReadUsedMovedResult.load(found.save(tmp_path / "table"))
    assert again.to_pandas().equals(found.to_pandas())
    frame = found.to_pandas()
    assert len(frame) == 4
    assert {"error", "carried", "needed", "predicted", "moved", "share", "says"} <= set(frame)
    assert len(found.plot().axes) == 2 * 4 + 1
    assert len(repr(found).splitlines()) <= 10
    assert "not over columns" in found.sentences()[0]


def test_what_makes_no_table_is_refused() -> None:
    net = Planted(1.0)
    with pytest.raises(ErasureError, match="attributes of different names, got \\['one', 'one'\\]"):
        table(net, concept("one"), concept("one"))
    with pytest.raises(ErasureError, match="different names, got \\[\\]"):
        table(net)
    with pytest.raises(ErasureError, match="controls must be at least 1, got 0"):
        table(net, concept("one"), how=replace(HOW, controls=0))
    with pytest.raises(ComparisonError, match="24 training pairs and 0 held-out ones"):
        HOW(ActivationStore(), {"s": Score(net, 1)}, [concept("one")], fitted_on={f"one {i}" for i in range(12)})
