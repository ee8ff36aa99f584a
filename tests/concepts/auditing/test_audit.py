"""The audit: a planted bias end to end, what is reused, what is refused, and what the sentences say."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import audits
import numpy as np
import pytest
import torch
from torch import Tensor

import concepts
from concepts.auditing import run as auditing
from concepts.auditing.measurement import setup
from concepts.auditing.measurement.results import AuditResults, CellRow
from concepts.auditing.measurement.setup import AuditError
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.report import criteria
from concepts.auditing.report.verdict import verdict
from concepts.auditing.report_cache import Seal
from concepts.auditing.run import audit, rebuild
from concepts.data.manifest import Manifest
from concepts.data.yaml_schema import SchemaError
from concepts.effects.agreement import agreement
from concepts.tcav.sign_test import SignTest
from probing.results import html_report
from probing.results.result import Provenance, Result
from probing.statistics.estimators import Pattern, Ridge
from probing.statistics.hypothesis_tests import TooFewError

GENDER, TONE = "woman against man", "dark against light"


@dataclass(frozen=True)
class Run:
    results: AuditResults
    folder: Path
    said: tuple[str, ...]


def run(file: Path, out: Path, store: Path) -> Run:
    said: list[str] = []
    return Run(audit(file, out, store_root=store, progress=False, say=said.append), out, tuple(said))


def without_report(make: Callable[[], Run]) -> Run:
    """Run an audit whose figures are not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditing, "write_report", lambda out, _: AuditResults.load(out))
        return make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def first(folder: Path) -> Run:
    return run(audits.audit_file(folder), folder / "out", folder / "store")


def test_a_planted_bias_is_found_and_its_control_is_not(first: Run) -> None:
    moved = {row.target: criteria.moved(first.results, row) for row in first.results.swaps if row.concept == GENDER}
    assert moved == {
        "purse": True,
        "drill": True,
        "laptop": True,
        "vase": False,
        "kettle": False,
        "clock": False,
    }
    assert first.results.swap(GENDER, "purse").swap == pytest.approx(0.94, abs=0.02)  # 4 x 60 / 255
    assert first.results.swap(GENDER, "drill").swap == pytest.approx(-0.94, abs=0.02)


def test_the_pair_that_is_shown_is_the_one_whose_changes_are_nearest_their_mean(first: Run, folder: Path) -> None:
    data = Manifest.load(folder / "data.yaml")
    loaded = audits.planted()
    examples = data.examples(loaded.preprocess)
    logits = loaded.model(examples.load(range(len(examples)))).detach().double()
    after, before, clusters = data.pairs("gender", "woman", "man")
    change = [logits[a] - logits[b] for a, b in zip(after, before, strict=True)]
    mean = sum(change) / len(change)
    distances = [float((c - mean).norm()) for c in change]
    nearest = distances.index(min(distances))
    shown = first.results.pair(GENDER)
    assert shown is not None
    assert shown.cluster == clusters[nearest]
    assert shown.negative == f"{examples.ids[before[nearest]]}.png"
    assert shown.positive == f"{examples.ids[after[nearest]]}.png"
    assert (first.folder / "images" / shown.positive).exists()


def test_where_the_model_is_linear_predicted_effects_are_the_measured_swaps(first: Run) -> None:
    for cell in first.results.cells:
        if cell.concept == GENDER:
            assert cell.effect == pytest.approx(first.results.swap(GENDER, cell.target).swap, abs=5e-3)
    assert first.results.trusted(GENDER) == ("features", "mix")
    assert all(row.linear_tail for row in first.results.layer_rows)


def test_the_verdict_names_what_was_expected_and_what_came(first: Run) -> None:
    claims = [f.claim for f in audits.said(verdict(first.results))]
    assert len(verdict(first.results)) == 3
    assert claims[0].startswith("Of 6 logits, swaps of matched images move 3 with “woman” in")
    assert "Swapping “man” for “woman” moves 3 of 6 logits on these images." in claims
    assert any(c.startswith("Of 2 directions written down beforehand for woman against man, 2 are borne") for c in claims)
    assert any("may be read at features and mix" in claim for claim in claims)


def test_directions_are_judged_on_clusters_they_were_not_fitted_on(first: Run) -> None:
    fitted, judged = set(first.results.fitted_on), set(first.results.judged_on)
    assert not fitted & judged
    assert len(fitted | judged) == 10
    assert {row.cluster for row in first.results.positions} == judged
    named = {row.caption for row in first.results.likeness if row.among == "neutral figures"}
    assert named <= judged


def test_the_output_folder_holds_what_is_promised(first: Run) -> None:
    made = {str(p.relative_to(first.folder)) for p in first.folder.rglob("*") if p.is_file()}
    promised = {
        "results.json",
        "provenance.json",
        "report.html",
        "tables/classes_by_layer.csv",
        "tables/swaps.csv",
    }
    assert promised <= made
    for stem in (
        "agreement_1",
        "agreement_2",
        "changes",
        "tcav",
        "accuracy",
        "likeness_1",
        "positions_1",
    ):
        assert {f"figures/{stem}.png", f"figures/{stem}.pdf"} <= made
    with (first.folder / "tables" / "classes_by_layer.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(first.results.cells) == 4 * 2 * 6  # concepts, layers, classes
    assert {row["reading"] for row in rows if row["concept"] == "red"} == {""}
    provenance = json.loads((first.folder / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["audit"]["name"] == "planted"
    assert len(provenance["model"]) == len(provenance["examples"]) == 32


def test_what_is_ahead_and_what_was_reused_is_said(first: Run) -> None:
    ahead, done = first.said
    assert "110 of 110 examples to compute" in ahead
    assert "20 of 20 examples to compute" in ahead
    assert "Reused 0 of 110 rows of images and 0 of 20 of gradients; 130 forward and 120 backward passes." in done


def test_a_second_run_passes_nothing_but_canaries_and_finds_the_same(first: Run, folder: Path) -> None:
    again = without_report(lambda: run(folder / "audit.yaml", folder / "again", folder / "store"))
    assert "Reused 110 of 110 rows of images and 20 of 20 of gradients; 0 forward and 0 backward passes" in again.said[1]
    assert "canary rows recomputed and equal" in again.said[1]
    assert (folder / "again" / "results.json").read_bytes() == (first.folder / "results.json").read_bytes()


def test_a_report_that_would_be_the_same_is_left_alone_and_mended_where_it_was_touched(
    first: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(out: Path, _: object) -> AuditResults:
        drawn.append(out)
        return AuditResults.load(out)

    drawn: list[Path] = []
    monkeypatch.setattr(auditing, "write_report", draw)
    out = tmp_path / "out"
    shutil.copytree(first.folder, out)
    again = run(folder / "audit.yaml", out, folder / "store")
    assert not drawn
    assert "What the report is made of is unchanged" in again.said[1]
    assert again.results == first.results
    next((out / "figures").glob("*.png")).unlink()
    run(folder / "audit.yaml", out, folder / "store")
    assert drawn == [out]


@dataclass(frozen=True)
class _Nested(Result):
    inner: tuple[Result, ...]
    numbers: Tensor


def test_a_seal_is_not_of_when_a_result_was_made(first: Run, folder: Path) -> None:
    file = read_audit(folder / "audit.yaml")

    def sealed(created: str, number: float) -> Seal:
        made = replace(Provenance.collect(), created=created)
        nested = _Nested(made, (_Nested(made, (), torch.zeros(1)),), torch.tensor([number]))
        return Seal.of(first.results, {"nested": nested}, file, "model")

    assert sealed("yesterday", 1.0) == sealed("today", 1.0)
    assert sealed("today", 1.0) != sealed("today", 2.0)


def test_a_seal_is_of_numbers_audit_model_and_code(
    first: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_audit(folder / "audit.yaml")
    before = Seal.of(first.results, {}, file, "model")
    assert before == Seal.of(first.results, {}, file, "model")
    assert before != Seal.of(replace(first.results, alpha=0.01), {}, file, "model")
    assert before != Seal.of(first.results, {}, file.model_copy(update={"limits": ["x"]}), "model")
    assert before != Seal.of(first.results, {}, file, "another")
    (tmp_path / "findings.py").write_text("another")
    monkeypatch.setattr(concepts, "__path__", [str(tmp_path)])
    assert before != Seal.of(first.results, {}, file, "model")


def test_a_run_from_nothing_finds_the_same_bit_for_bit(first: Run, folder: Path) -> None:
    without_report(lambda: run(folder / "audit.yaml", folder / "anew", folder / "other store"))
    assert (folder / "anew" / "results.json").read_bytes() == (first.folder / "results.json").read_bytes()


def test_the_report_is_made_again_from_what_was_saved_without_a_model(first: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [first.folder / "report.html", *(first.folder / "tables").iterdir()]
    before = [path.read_bytes() for path in made]
    for path in made:
        path.unlink()
    monkeypatch.setattr(setup.loading, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(html_report, "save_figure", lambda *_: None)  # equal figures are equal files: tested there
    assert rebuild(first.folder) == first.results
    assert [path.read_bytes() for path in made] == before


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"taget": []}, SchemaError, "unknown key 'taget'; did you mean 'target"),
        ({"targets": []}, SchemaError, "'targets': .*at least 1 item"),
        ({"random": None}, SchemaError, "concepts given as one set need random counterparts"),
        ({"name": "../x"}, SchemaError, "'name': .*match pattern"),
        (
            {"targets": [{"name": "purse", "group": "a", "reason": "b", "expect": {"cat against dog": "up"}}]},
            SchemaError,
            "target 'purse' expects something of 'cat against dog'",
        ),
        (
            {
                "contrasts": [{"positive": "a", "negative": "b", "vary": "role", "swaps": [["a", "b"]]}],
                "targets": [{"name": "purse", "group": "a", "reason": "b"}],
            },
            AuditError,
            r"varies 'role', but 'data' matches images over \['gender', 'tone'\] only",
        ),
        (
            {"targets": [{"name": "purse", "group": "a", "reason": "b"}, {"name": 0, "group": "a", "reason": "b"}]},
            AuditError,
            "class 0 stands twice",
        ),
        ({"inputs": {"about": "few", "fit_share": 0.01}}, TooFewError, "10 clusters can't be split with a share of 0.01"),
        ({"targets": [{"name": "purze", "group": "a", "reason": "b"}]}, LookupError, "no class 'purze'. Close .*purse"),
        ({"model": {"reference": "audits:planted", "layers": ["featres"]}}, LookupError, "no layer 'featres'.*features"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_audit_file_is_refused_in_one_sentence(
    changes: dict[str, object], error: type[Exception], match: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match) as caught:
        audit(
            audits.audit_file(folder, changes, "bad.yaml"),
            tmp_path / "out",
            store_root=tmp_path / "store",
        )
    assert "\n" not in str(caught.value)


def test_the_default_audit_is_in_order(repository: Path) -> None:
    default = read_audit(repository / "experiments" / "audits" / "occupations.yaml")
    assert 12 <= len(default.targets) <= 20
    assert {t.group for t in default.targets} == {"stereotype", "control"}
    assert all(t.reason for t in default.targets)
    assert not [t.name for t in default.targets if t.group == "control" and t.expect]


def test_a_logit_that_is_predicted_to_move_and_does_not_is_reported_and_the_reverse() -> None:
    made_up = audits.results()
    layer = made_up.layers[-1]
    sure, unsure = {"effect_p_corrected": 0.001}, {"effect_p_corrected": 0.9}

    def read(swap: float, p: float, effect: float, told: dict[str, float]) -> str:
        row = replace(made_up.swap(GENDER, "purse"), swap=swap, p_corrected=p)
        cell = replace(made_up.cell(GENDER, layer, "purse"), effect=effect, **told)
        return criteria.reading(replace(made_up, swaps=(row,)), cell)

    assert read(0.5, 0.001, 0.4, sure) == criteria.AGREE
    assert read(0.5, 0.001, -0.4, sure) == criteria.CONTRADICT
    assert read(0.5, 0.001, 0.4, unsure) == criteria.UNPREDICTED
    assert read(0.1, 0.9, 0.4, sure) == criteria.UNMOVED
    assert read(0.1, 0.9, 0.4, unsure) == criteria.NOTHING


def test_a_concept_used_by_tcav_and_unmoved_by_the_swap_is_reported_as_such() -> None:
    made_up = audits.results()

    def told(cell: CellRow) -> CellRow:
        is_it = (cell.concept, cell.target, cell.layer) == (GENDER, "suit", made_up.layers[0])
        return replace(cell, tcav_p_corrected=0.001 if is_it else 1.0, effect_p_corrected=1.0)

    still = tuple(replace(r, p_corrected=1.0) for r in made_up.swaps)
    found = criteria.disagreements(replace(made_up, cells=tuple(map(told, made_up.cells)), swaps=still))
    assert [(cell.target, said) for cell, _, said in found] == [("suit", "used by TCAV, unmoved by the swap")]


def test_a_verdict_without_a_moved_logit_claims_none() -> None:
    made_up = audits.results()
    still = replace(made_up, swaps=tuple(replace(r, p_corrected=1.0) for r in made_up.swaps))
    claims = " ".join(f.claim for f in audits.said(verdict(still)))
    assert "moves none of the 8 logits by more than chance" in claims
    assert "0 are borne out" in claims


def test_no_layer_is_trusted_in_words_if_none_is_in_numbers() -> None:
    made_up = audits.results()
    wary = replace(made_up, layer_rows=tuple(replace(r, trusted=False) for r in made_up.layer_rows))
    assert any("At no layer" in f.claim for f in audits.said(verdict(wary)))


def test_agreement_does_not_count_what_is_peculiar_to_the_same_drawings(
    generator: torch.Generator,
) -> None:
    """Effects that hold of a cluster's own swap alone follow swaps of the same clusters, not those of others."""
    swaps = torch.randn(16, 12, generator=generator, dtype=torch.float64)
    own = torch.diag_embed(swaps.T)  # [targets, clusters, clusters]
    shared = own.sum((1, 2)), swaps.mean(0)
    assert float(torch.corrcoef(torch.stack(shared))[0, 1]) == pytest.approx(1)
    noise = own + 1e-6 * torch.randn(own.shape, generator=generator, dtype=torch.float64)
    found = agreement(noise, swaps, 100, 0.95, 0)
    assert found.r is not None
    assert abs(found.r) < 0.35


def test_agreement_of_what_holds_everywhere_is_one(generator: torch.Generator) -> None:
    truth = torch.randn(12, generator=generator, dtype=torch.float64)
    found = agreement(truth[:, None, None].expand(12, 8, 8), truth.expand(8, 12), 10, 0.95, 0)
    assert found.r == pytest.approx(1)
    assert found.low is not None
    assert found.low > 0.99


@pytest.mark.parametrize(("clusters", "targets"), [(3, 12), (8, 3)])
def test_agreement_of_too_little_is_not_known(clusters: int, targets: int) -> None:
    found = agreement(torch.zeros(targets, clusters, clusters), torch.zeros(clusters, targets), 10, 0.95, 0)
    assert found.r is None


def paired(generator: torch.Generator, shift: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of 10 clusters of 3 pairs, positives first, and gradients of 4 targets at 12 inputs."""
    base = torch.randn(30, 6, generator=generator)
    delta = torch.zeros(6)
    delta[0] = shift
    own = 0.3 * torch.randn(10, 6, generator=generator).repeat_interleave(3, 0)
    features = torch.cat([base + (delta + own) / 2, base - (delta + own) / 2])
    return (
        features,
        torch.randn(4, 12, 6, generator=generator),
        torch.arange(10).repeat_interleave(3),
    )


def test_the_sign_score_of_a_mean_difference_is_the_share_of_inputs_that_rise(
    generator: torch.Generator,
) -> None:
    features, gradients, clusters = paired(generator, 2.0)
    found = SignTest(Pattern())({"a": features}, {"a": gradients}, clusters, torch.arange(12) // 2)
    delta = features[:30].double().mean(0) - features[30:].double().mean(0)
    assert found.score[0].tolist() == pytest.approx(((gradients.double() @ delta) > 0).double().mean(1).tolist())
    assert (found.low <= found.score + 1e-9).all()
    assert (found.score <= found.high + 1e-9).all()


def test_swapping_the_two_sets_turns_the_sign_score_around(generator: torch.Generator) -> None:
    features, gradients, clusters = paired(generator, 2.0)
    turned = torch.cat([features[30:], features[:30]])
    scores = [
        SignTest(Ridge())({"a": rows}, {"a": gradients}, clusters, torch.arange(12) // 2).score
        for rows in (features, turned)
    ]
    assert scores[0][0].tolist() == pytest.approx((1 - scores[1][0]).tolist())


def test_the_sign_test_of_labels_that_mean_nothing_keeps_its_level() -> None:
    rejected = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        features, gradients, clusters = paired(generator, 0.0)
        gradients = gradients[:1] * 0.3 + gradients[:1].mean(1, keepdim=True)  # little varied: scores near 0 or 1
        test = SignTest(Pattern(), relabellings=39, bootstraps=2, seed=seed)
        rejected.append(float(test({"a": features}, {"a": gradients}, clusters, torch.arange(12)).p) <= 0.05)
    assert np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_one_gradient_for_all_inputs_is_called_a_linear_tail(generator: torch.Generator) -> None:
    features, gradients, clusters = paired(generator, 1.0)
    same = gradients[:, :1].expand(-1, 12, -1).contiguous()
    test = SignTest(Pattern(), relabellings=19, bootstraps=2)
    assert test({"a": features}, {"a": same}, clusters, torch.arange(12)).linear_tail == (True,)
    assert test({"a": features}, {"a": gradients}, clusters, torch.arange(12)).linear_tail == (False,)
