"""The wheel in an empty environment, and the folder lookup that it shares with a checkout."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from composing import CONF, SMALL

from emodissect.app import main as command
from emodissect.app.manifest import program
from emodissect.core import places

ROOT = CONF.parent


def test_a_checkout_has_its_own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EMODISSECT_CACHE", raising=False)
    assert places.checkout() == ROOT
    assert places.config_groups() == CONF
    assert places.cache_folder() == ROOT / ".emodissect"
    assert program("edit") == ["python", "edit.py"]
    monkeypatch.setenv("EMODISSECT_CACHE", str(tmp_path))
    assert places.cache_folder() == tmp_path


def test_an_installed_package_reads_its_own_groups_and_caches_in_the_users_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("EMODISSECT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "site-packages" / "emodissect")
    assert places.checkout() is None
    assert places.config_groups() == tmp_path / "site-packages" / "emodissect" / "conf"
    assert places.cache_folder().name == "emodissect"
    assert tmp_path / "site-packages" not in places.cache_folder().parents
    assert program("edit") == ["emodissect", "edit"]


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ([], 0, "emodissect dissect "),
        (["--help"], 0, "emodissect edit "),
        (["--version"], 0, "emodissect 0."),
        (["dissct"], 2, "Unknown verb 'dissct'. Did you mean 'dissect'?"),
        (["dashboard", "--help"], 0, "usage: emodissect dashboard"),
    ],
)
def test_the_command_says_what_it_can_do(
    typed: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["emodissect", *typed])
    try:
        command.main()
        ended = 0
    except SystemExit as end:
        ended = int(end.code or 0)
    message = capsys.readouterr()
    assert ended == code
    assert said in message.out + message.err


@pytest.mark.parametrize("words", [["edit", "tau=1"], ["--config-name=edit", "tau=1"]])
def test_a_verb_survives_the_restart_of_a_distributed_process(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(command, "start", lambda verb: started.append((verb, sys.argv[1:])))
    monkeypatch.setattr(sys, "argv", ["emodissect", *words])
    command.main()
    assert started == [("edit", ["--config-name=edit", "tau=1"])]


@pytest.mark.parametrize(
    ("line", "offered"), [("emodissect d", "train dissect edit dashboard"), ("emodissect edit s", None)]
)
def test_tab_completion_knows_the_verbs(
    line: str, offered: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, list[str], str]] = []
    monkeypatch.setattr(command, "start", lambda verb: started.append((verb, sys.argv[1:], os.environ["COMP_LINE"])))
    monkeypatch.setattr(sys, "argv", ["emodissect", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", line)
    command.main()
    if offered:
        assert capsys.readouterr().out.split() == offered.split()
    else:
        assert started == [("edit", ["-sc", "query=bash"], "emodissect s")]


def imported(tree: ast.Module) -> set[str]:
    """The packages that are needed to import a module."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"emodissect"}


def test_every_package_that_is_imported_is_a_dependency() -> None:
    """Tests run with all extras and the development tools, so they would not notice a missing dependency."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in declared}
    by_import = importlib.metadata.packages_distributions()
    missing = {
        f"{path.relative_to(ROOT)}: {package}"
        for path in (ROOT / "src").rglob("*.py")
        for package in imported(ast.parse(path.read_text()))
        if not {name.lower().replace("_", "-") for name in by_import.get(package, [package])} & names
    }
    assert missing == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        ["uv", "build", "--wheel", "-o", str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    if built.returncode and "ailed to fetch" in built.stderr + built.stdout:
        pytest.skip("no package registry can be reached")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_config_and_says_that_it_is_typed(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] != "local"}
    assert {f"emodissect/conf/{path.as_posix()}" for path in configs} <= held
    assert {"emodissect/py.typed", "emodissect/__main__.py", "emodissect/report/templates/page.html.j2"} <= held
    assert not any(name.startswith(("conf/", "tests/", "emodissect/conf/local")) for name in held)


@pytest.mark.slow
def test_the_three_commands_run_in_an_empty_environment_elsewhere(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "-p", sys.executable, str(tmp_path / "venv")], check=True)
    installed = subprocess.run(
        ["uv", "pip", "install", "-q", "--python", str(python), str(wheel)], capture_output=True, text=True, check=False
    )
    if installed.returncode and "ailed to fetch" in installed.stderr:
        pytest.skip("no package registry can be reached")
    assert installed.returncode == 0, installed.stderr
    where = tmp_path / "some where"
    (where / "mine" / "concepts").mkdir(parents=True)
    (where / "mine" / "concepts" / "two.yaml").write_text(
        "_target_: emodissect.concepts.concept_set.concept_set\norigin: two\nconcepts: {Smile: [happy], Frown: [sad]}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "EMODISSECT_CACHE")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "caches"), "HOME": str(tmp_path), "COLUMNS": "100"}

    def run(*words: str) -> None:
        ran = subprocess.run(words, cwd=where, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]

    emodissect = str(python.parent / "emodissect")
    before = {path for path in (tmp_path / "venv").rglob("*") if path.suffix not in ("", ".pyc")}
    run(emodissect, "train", *SMALL)
    run(str(python), "-m", "emodissect", "dissect", "--config-dir=mine", "concepts=two", *SMALL)
    run(emodissect, "edit", *SMALL, "saliency.images=0")
    after = {path for path in (tmp_path / "venv").rglob("*") if path.suffix not in ("", ".pyc")}
    assert after == before
    tasks = [json.loads(path.read_text())["task"] for path in where.glob("logs/*/runs/*/summary.json")]
    assert sorted(tasks) == ["dissect", "edit", "train"]
    (labels,) = where.glob("logs/dissect/runs/*/neurons.csv")
    assert ",Smile," in labels.read_text()
    assert {"training", "activations"} <= {path.name for path in (tmp_path / "caches" / "emodissect").iterdir()}
    (manifest,) = where.glob("logs/edit/runs/*/manifest.json")
    assert json.loads(manifest.read_text())["command"].startswith("emodissect edit data.train=400")
