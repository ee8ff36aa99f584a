"""Audits of images that nothing matches: folders of pictures, a concept each."""

from dataclasses import replace
from pathlib import Path

import audits
import pytest

from concepts.auditing import run as auditing
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import AuditError
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.report import criteria
from concepts.auditing.report.sections.method import limits
from concepts.auditing.report.verdict import verdict
from concepts.auditing.report.verdict_unmatched import UNSWAPPED
from concepts.auditing.run import audit, rebuild
from concepts.data.yaml_schema import SchemaError


def run(file: Path, out: Path, *, report: bool = False) -> AuditResults:
    with pytest.MonkeyPatch.context() as patch:
        if not report:
            patch.setattr(auditing, "write_report", lambda out, _: AuditResults.load(out))
        return audit(file, out, store_root=out.parent / "store", progress=False, say=lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    audits.write_folders(folder, {"reddish": 50, "plain": 0, "dull": 0})
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> AuditResults:
    file = audits.unmatched_file(folder, ["reddish", "plain", "dull"], {"analyses": ["probes"]})
    return run(file, folder / "out", report=True)


def test_classes_that_read_red_depend_on_reddish_pictures_and_the_others_do_not(
    found: AuditResults,
) -> None:
    cells = [c for c in found.cells if c.concept == "reddish" and c.layer == "mix"]
    told = {c.target for c in cells if criteria.predicted(found, c)}
    assert told == {"purse", "drill", "laptop"}
    effects = {c.target: c.effect for c in cells}
    assert effects["purse"] == pytest.approx(4 * 50 / 255, abs=0.12)
    assert effects["drill"] == pytest.approx(-4 * 50 / 255, abs=0.15)


def test_no_swap_is_measured_and_no_layer_trusted(found: AuditResults) -> None:
    assert found.contrasts == found.swaps == found.backdrops == found.picked == ()
    assert not any(row.trusted for row in found.layer_rows)
    summary, last = verdict(found)
    said = summary.parts
    assert summary.claim.startswith("A direction separates 1 of 3 concepts; classes are shown to depend on")
    assert [f.claim.partition("“")[2].partition("”")[0] for f in said] == [
        "reddish",
        "plain",
        "dull",
    ]
    assert last == UNSWAPPED
    assert "purse, drill and laptop depend on the direction of “reddish”" in said[0].claim
    assert "may stand for any of it" in limits(found)[0]


def test_the_report_says_what_cannot_be_said_and_has_no_section_on_swaps(folder: Path, found: AuditResults) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "there are no matched images" in page
    assert "What a swap does" not in page
    assert "Which layers may be trusted" not in page
    assert "Controls" not in page
    assert rebuild(folder / "out") == found


def test_every_concept_is_divided_by_its_own_clusters(tmp_path: Path) -> None:
    audits.write_folders(tmp_path / "data", {"reddish": 50, "plain": 0}, count=36)
    for attribute, each in (("day", 9), (None, 18)):
        inputs = {"about": "pictures", "cluster": attribute}
        file = audits.unmatched_file(tmp_path / "data", ["reddish", "plain"], {"inputs": inputs})
        found = run(file, tmp_path / str(attribute))
        assert not set(found.fitted_on) & set(found.judged_on)
        for name in ("reddish", "plain"):
            assert sum(n.startswith(name) for n in found.fitted_on) == each
            assert found.of(name).negatives == 18
        assert found.judged_inputs == found.input_count == 36
        assert found.clusters == ("days" if attribute else "images")


def test_too_few_clusters_are_refused_though_there_are_images_enough(folder: Path, tmp_path: Path) -> None:
    inputs = {"about": "pictures", "cluster": "day"}
    file = audits.unmatched_file(folder, ["reddish", "plain"], {"inputs": inputs})
    with pytest.raises(AuditError, match="'reddish' has images of 6 days to fit on: 9 or more"):
        run(file, tmp_path / "out")


def test_folders_of_the_same_pictures_have_no_direction(tmp_path: Path) -> None:
    audits.write_folders(tmp_path, {"one": 0, "other": 0}, seed=3)
    found = run(audits.unmatched_file(tmp_path, ["one", "other"]), tmp_path / "out")
    for finding in verdict(found)[:2]:
        assert finding.claim.startswith("There is no evidence of a direction")
    assert not [c for c in found.cells if criteria.used(found, c) or criteria.predicted(found, c)]


def test_too_few_pseudo_concepts_for_any_finding_are_said_to_be(found: AuditResults) -> None:
    assert criteria.floor(found) == ""  # 3 concepts in 100
    assert "no p of theirs could be small" in criteria.floor(replace(found, pseudo_concepts=59))


@pytest.mark.parametrize(
    ("concepts", "changes", "message"),
    [
        ([], {}, "an audit compares: name 'contrasts' of matched images, or 'concepts'"),
        (["reddish"], {}, "one concept alone has nothing to be compared with"),
        (["reddish", "plain"], {"analyses": ["atlas"]}, "'atlas' looks at contrasts"),
    ],
)
def test_an_audit_that_can_tell_nothing_apart_is_refused(
    concepts: list[str], changes: dict[str, object], message: str, folder: Path
) -> None:
    with pytest.raises(SchemaError, match=message):
        read_audit(audits.unmatched_file(folder, concepts, changes))


def test_images_may_lie_elsewhere_than_their_manifest(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my audit").mkdir()
    file = audits.unmatched_file(folder, ["reddish", "plain"], {"root": str(folder)})
    moved = file.rename(tmp_path / "my audit" / "audit.yaml")
    (tmp_path / "my audit" / "data.yaml").write_bytes((folder / "data.yaml").read_bytes())
    assert run(moved, tmp_path / "out").input_count == 36
