"""Errors: one base, a builtin that fits, and mends that each front end words."""

import ast
import builtins
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from torch import nn
from where import ROOT

from concepts.cli import app
from concepts.cli.common import OPTIONS
from concepts.data.concept_sets import OverlapError
from probing.attribution.base import Attribution
from probing.attribution.gradient import Saliency
from probing.core.errors import ArgumentError, Mend, ProbingError, line_of_users
from probing.core.storage import PlaceError
from probing.evaluation.axioms import axiom_table
from probing.models.scores import Score

SOURCES = sorted(p for name in ("probing", "concepts") for p in (ROOT / name).rglob("*.py"))
BUILTINS = {
    name: found for name, found in vars(builtins).items() if isinstance(found, type) and issubclass(found, BaseException)
}
# What is raised that is no error of the suite, and why.
OTHERS = {
    (
        "concepts/auditing/init/draft_audit.py",
        "PermissionError",
    ): "as the operating system tells it, with the path",
    ("concepts/data/sources.py", "FileNotFoundError"): "caught in its module, where more is known",
    (
        "probing/core/storage.py",
        "FileNotFoundError",
    ): "as open() tells it of a file of this machine",
    ("probing/probes/sklearn_estimators.py", "NotImplementedError"): "a private base class",
}
# What is thrown to leave a pass or a command, and caught by who began it.
SIGNALS = {"MixedRowsError", "_AskedError", "_StopPass", "_Terminated"}


def nodes(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield path.relative_to(ROOT).as_posix(), node


def error_classes() -> list[type]:
    found = []
    for path, node in nodes(ast.ClassDef):
        if node.name.endswith("Error") or any(ast.unparse(b) in BUILTINS for b in node.bases):
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            found.append(getattr(module, node.name))
    return found


def test_every_error_class_has_the_base_and_a_builtin() -> None:
    classes = [c for c in error_classes() if c.__name__ not in SIGNALS]
    assert len(classes) > 80
    assert [c for c in classes if not issubclass(c, ProbingError)] == []
    plain = (ArgumentError, ProbingError)
    bare = [c for c in classes if not any(b in BUILTINS.values() for b in c.__mro__[1:-3])]
    assert [c for c in bare if c not in plain] == []


def test_what_is_raised_is_an_error_of_the_suite_or_has_a_reason() -> None:
    found = set()
    for path, node in nodes(ast.Raise):
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(raised, ast.Name) and raised.id in BUILTINS:
            found.add((path, raised.id))
    assert found == set(OTHERS)


@pytest.mark.parametrize("kind", [ArgumentError, OverlapError, PlaceError])
def test_an_error_survives_the_way_between_processes(kind: type[ProbingError]) -> None:
    error = kind("too few", mends=[Mend("take more", "count=…")])
    read = pickle.loads(pickle.dumps(error))
    assert str(read) == str(error) == "too few, or take more by count=…."
    assert read.mends == error.mends


def test_an_error_of_keys_is_told_without_quotes() -> None:
    class MissingError(ProbingError, KeyError):
        pass

    assert str(MissingError("there is no 'a'.")) == "there is no 'a'."
    assert str(ProbingError()) == ""


def test_mends_follow_a_colon_or_stand_beside_other_ways() -> None:
    mends = [Mend("do this", "a=1"), Mend("do that", "b=…")]
    assert str(ProbingError("it broke:", mends=mends)) == "it broke: do this by a=1, or do that by b=…."
    error = ProbingError("it broke; stop", mends=mends)
    assert str(error) == "it broke; stop, or do this by a=1, or do that by b=…."
    assert error.worded(lambda mend: "") == "it broke; stop."
    assert ProbingError("it broke:", mends=mends).worded(lambda mend: "") == "it broke."


def mends_in_code() -> set[str]:
    found = set()
    for _, node in nodes(ast.Call):
        if ast.unparse(node.func) == "Mend":
            assert all(isinstance(a, ast.Constant) for a in node.args), ast.unparse(node)
            found.add(node.args[1].value)
    return found


def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app.app).commands


def test_every_mend_is_an_argument_and_every_option_belongs_to_a_command_and_a_mend() -> None:
    names = {a.arg for _, n in nodes(ast.FunctionDef) for a in (*n.args.args, *n.args.kwonlyargs)}
    fields = {n.target.id for _, n in nodes(ast.AnnAssign) if isinstance(n.target, ast.Name)}
    for argument in mends_in_code():
        name = argument.rpartition("(")[2].partition("=")[0]
        assert name in names | fields, argument
    options = {o for c in commands().values() for p in c.params for o in p.opts}
    assert set(OPTIONS.values()) <= options
    assert set(OPTIONS) <= mends_in_code()


@pytest.mark.parametrize("command", sorted(commands()))
def test_each_command_is_told_of_its_own_options_only(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fails:
        def __init__(self, argument: str) -> None:
            self.argument = argument

        def invoke(self, context: object) -> None:
            context.invoked_subcommand = command
            raise ArgumentError("it broke; stop", mends=[Mend("mend it", self.argument)])

    own = {o for p in commands()[command].params for o in p.opts}
    for argument in mends_in_code():
        group = typer.main.get_command(app.app)
        monkeypatch.setattr(group, "invoke", Fails(argument).invoke)
        with monkeypatch.context() as patched:
            patched.setattr(typer.main, "get_command", lambda _, group=group: group)
            assert app.main([command]) == 2
        option = OPTIONS.get(argument)
        way = f", or mend it by {option}" if option in own else ""
        assert capsys.readouterr().err == f"Error: it broke; stop{way}.\n"


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), 7, 7)


def test_an_error_in_a_users_model_names_its_line() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(Broken())(torch.zeros(1, 3))
    assert line_of_users(caught.value).endswith(", in forward")


def test_an_error_under_our_own_code_is_ours_also_where_a_user_called_it() -> None:
    with pytest.raises(AttributeError) as caught:
        Score.__call__(None, torch.zeros(1))  # what a bug of ours looks like
    assert line_of_users(caught.value) == ""


def cli_that_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def layers(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("probing.models.loading.load", layers)


def test_the_command_line_tells_a_users_own_error_in_one_line_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_that_raises(monkeypatch, ZeroDivisionError("by zero"))
    assert app.main(["layers", "torchvision:resnet18"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ZeroDivisionError: by zero (in your own code, ")
    assert f"{Path(__file__).name}:" in said
    with pytest.raises(ZeroDivisionError):
        app.main(["--debug", "layers", "torchvision:resnet18"])


class OwnMethod:
    """A user's method that works for some inputs only."""

    def __call__(self, score: Score, inputs: torch.Tensor) -> Attribution:
        raise KeyError("no such thing")


def test_an_error_in_a_users_own_method_is_told_in_its_row_of_the_axioms() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    table = axiom_table({"own": OwnMethod(), "saliency": Saliency()}, Score(net, 0), torch.ones(2, 3))
    assert all("no such thing" in said and "test_errors.py:" in said for said in table.outcomes[0])
    assert {"holds", "fails"} & set(table.outcomes[1])


def test_a_bug_of_ours_ends_the_table_of_axioms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probing.evaluation.axioms._check", None)
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    with pytest.raises(TypeError):
        axiom_table({"saliency": Saliency()}, Score(net, 0), torch.ones(2, 3))
