"""Two audits of one model side by side: the same images, and images on which the planted bias is turned round."""

from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch
import yaml
from audits import audit_file, write_drawings

from concepts.auditing.measurement.setup import AuditError, Material
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.replication.page import replication_page, write_replication
from concepts.auditing.replication.replicate import (
    BOTH,
    FIRST,
    NEITHER,
    OPPOSITE,
    Replication,
    replicate,
)
from concepts.auditing.replication.summary import answer, replication_summary
from concepts.auditing.run import audit
from probing.results.html_report import Standing
from probing.store.store import ActivationStore

CONTRAST = "woman against man"
RED, OTHER = ("purse", "drill", "laptop"), ("vase", "kettle", "clock")


def _turned(folder: Path) -> None:
    """Call the drawings of women men and those of men women."""
    path = folder / "data.yaml"
    document = yaml.safe_load(path.read_text())
    place = document["images"]["columns"].index("gender")
    names = {"woman": "man", "man": "woman", "person": "person"}
    for row in document["images"]["rows"]:
        row[place] = names[row[place]]
    path.write_text(yaml.safe_dump(document))


def _audited(folder: Path, store: Path, *, turned: bool = False):
    write_drawings(folder, seed=int(turned))
    if turned:
        _turned(folder)
    file = audit_file(folder, {"concepts": [], "random": None})
    with pytest.MonkeyPatch.context() as patch:  # the reports are tested elsewhere
        patch.setattr("concepts.auditing.run.rebuild", lambda _: None)
        results = audit(file, folder / "out", store_root=store, progress=False, say=lambda _: None)
    return results, Material.of(read_audit(file), folder)


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    root = tmp_path_factory.mktemp("audits")
    store = ActivationStore(root / "rows", progress=False)
    return _audited(root / "first", root / "rows"), _audited(root / "turned", root / "rows", turned=True), store


def _replicate(one, two, store) -> Replication:
    return replicate(("first", "second"), (one[0], two[0]), (one[1], two[1]), store)


def test_on_the_same_images_everything_replicates_without_a_difference(audits):
    first, _, store = audits
    found = _replicate(first, first, store)
    assert found.outcomes(CONTRAST) == {BOTH: list(RED), NEITHER: list(OTHER)}
    assert found.difference.abs().max() == 0
    assert found.differing(CONTRAST) == ()
    assert found.correlation(CONTRAST).r == pytest.approx(1)
    assert found.over_clusters[0, :3, 0].tolist() == pytest.approx([1, 1, 1])
    assert "replicates on second: of 3 logits that it moves for sure on first, it moves 3 for sure" in found.statement(
        CONTRAST
    )
    assert found.trusted["first"] == found.trusted["second"]
    assert sum(found.effect_outcomes(CONTRAST, "features").values()) == 6


def test_the_mean_over_clusters_is_the_audits_own_swap(audits):
    first, turned, store = audits
    found = _replicate(first, turned, store)
    torch.testing.assert_close(found.by_cluster.mean(3), found.swap, atol=1e-6, rtol=0)


def test_a_bias_that_is_turned_round_is_called_opposite(audits):
    first, turned, store = audits
    found = _replicate(first, turned, store)
    assert found.outcomes(CONTRAST)[OPPOSITE] == list(RED)
    assert set(found.differing(CONTRAST)) == set(RED)
    assert found.correlation(CONTRAST).r < -0.9
    said = found.statement(CONTRAST)
    assert "is not found again on second" in said
    assert "it moves 0 for sure to the same side on second and 3 to the other" in said


def test_what_is_undecided_on_the_second_set_is_not_called_a_difference(audits):
    first, _, store = audits
    found = _replicate(first, first, store)
    p = found.p.clone()
    p[1] = 1.0
    unsure = replace(found, p=p)
    assert unsure.outcomes(CONTRAST)[FIRST] == list(RED)
    assert "3 are undecided there, and 0 of these differ for sure" in unsure.statement(CONTRAST)
    p[0] = 1.0
    assert "there is nothing to replicate" in replace(found, p=p).statement(CONTRAST)


def test_the_page_is_made_of_the_saved_result_alone(audits, tmp_path):
    first, turned, store = audits
    found = _replicate(first, turned, store)
    found.save(tmp_path)
    report = write_replication(tmp_path, "Two sets", ("Drawings only.",))
    assert report.findings[0].claim == found.statement(CONTRAST)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Drawings only." in page
    assert "1 are borne out on both" not in page  # purse was expected up, drill down: up on one set only
    assert (tmp_path / "figures" / "replication.pdf").exists()
    assert (tmp_path / "tables" / "replication.csv").read_text().count("\n") == 1 + 2 * 6


def test_the_first_screen_of_a_replication_says_what_its_numbers_say(audits):
    first, turned, store = audits
    same, opposite = _replicate(first, first, store), _replicate(first, turned, store)
    assert answer(same).startswith("Of 3 class scores that woman against man changes on first, 3 change alike on second; ")
    assert "changes on first, none change alike on second and 3 the other way" in answer(opposite)
    p = same.p.clone()
    p[1] = 1.0
    unsure = replace(same, p=p)
    assert "of 3 class scores" in answer(unsure).lower()
    assert "none change alike on second;" in answer(unsure)
    p = torch.ones_like(p)
    none = replication_summary(replace(same, p=p))
    assert none.marks[0].standing is Standing.UNTESTED
    assert none.answer == "Woman against man changes none on first; dark against light changes none on first."
    assert opposite.standing(CONTRAST) is Standing.NO
    assert same.standing(CONTRAST) is Standing.YES
    assert unsure.standing(CONTRAST) is Standing.NO
    again, _, differ = replication_summary(opposite).marks
    assert (again.standing, again.says) == (Standing.PARTLY, "1 of 2 in full.")
    assert differ.says == f"{sum(len(opposite.differing(c)) for c in opposite.contrasts)} of 12 for sure."
    figure = replication_summary(same).plate.draw()
    assert [axes.get_title() for axes in figure.axes[:2]] == ["first", "second"]


def test_one_screen_holds_a_replication(audits, tmp_path):
    first, turned, store = audits
    page = replication_page(_replicate(first, turned, store), "Does it hold on other drawings?")
    path = page.save(tmp_path / "report.html", alone=True)
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(path, picture=False) == []


def test_audits_that_ask_different_things_are_refused(audits):
    first, turned, store = audits
    other = replace(turned[0], layers=turned[0].layers[:1])
    with pytest.raises(AuditError, match="must ask the same of one model"):
        _replicate(first, (other, turned[1]), store)
