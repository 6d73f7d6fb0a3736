"""Cache keys change with everything that may change a result, and with nothing else."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from emodissect.core.fingerprint import content_key, fingerprint, source_hash
from emodissect.similarity import Pearson, SoftWPMI

MEASURE = """
{imports}

class Measure(Base):
    {comment}
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * {factor} * x

def plain(x):
    return {factor} * x
"""


def loaded(folder: Path, **parts: Any) -> types.ModuleType:
    """A module `measure` from a file of that folder."""
    filled = {"imports": "Base = object", "comment": '"""One."""', "factor": 1, **parts}
    file = folder / "measure.py"
    file.write_text(MEASURE.format(**filled))
    module = types.ModuleType("measure")
    sys.modules.setdefault("measure", module)
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    return module


def code_of(folder: Path, **parts: Any) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    module = loaded(folder, **parts)
    return source_hash(module.Measure), source_hash(module.plain)


def test_changed_code_is_another_fingerprint_and_comments_are_not(tmp_path: Path) -> None:
    first = code_of(tmp_path / "a")
    assert code_of(tmp_path / "b") == first
    assert code_of(tmp_path / "c", comment="# another") == first
    for part, other in enumerate(code_of(tmp_path / "d", factor=2)):
        assert other != first[part]
    assert code_of(tmp_path / "a", factor=2) == code_of(tmp_path / "d", factor=2)  # the same file, rewritten


def test_files_beside_it_that_it_imports_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "further.py").write_text("a = 1")
    (tmp_path / "beside.py").write_text("import further\nclass Base: pass")
    (tmp_path / "other.py").write_text("a = 1")
    first = code_of(tmp_path, imports="from beside import Base")
    (tmp_path / "other.py").write_text("a = 2")
    assert code_of(tmp_path, imports="from beside import Base") == first
    (tmp_path / "further.py").write_text("a = 2222")
    assert code_of(tmp_path, imports="from beside import Base") != first


def test_parameters_count(tmp_path: Path) -> None:
    kind = loaded(tmp_path).Measure
    assert fingerprint(kind(1)) == fingerprint(kind(1))
    assert fingerprint(kind(1)) != fingerprint(kind(2))
    assert fingerprint(SoftWPMI(top_k=5)) != fingerprint(SoftWPMI(top_k=6))
    assert fingerprint(SoftWPMI())["parameters"]["top_k"] == 100
    assert fingerprint(Pearson())["name"] == "Pearson"


def _scaled(factor: float) -> Callable[[float], float]:
    return lambda x: factor * x


@dataclass
class Held:
    inner: Any


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int32)),
        (torch.tensor([1.0]), torch.tensor([2.0])),
        (np.arange(3), np.arange(1, 4)),
        (functools.partial(torch.optim.SGD, lr=0.1), functools.partial(torch.optim.SGD, lr=0.2)),
        (functools.partial(torch.optim.SGD, lr=0.1), functools.partial(torch.optim.Adam, lr=0.1)),
        (_scaled(1), _scaled(2)),
        (Held(SoftWPMI()), Held(Pearson())),
        (Held([Slotted(1)]), Held([Slotted(2)])),
        (nn.CrossEntropyLoss(torch.tensor([1.0, 2.0])), nn.CrossEntropyLoss(torch.tensor([2.0, 1.0]))),
        (nn.ReLU(), nn.GELU()),
        (torch.float32, torch.float64),
        (float("inf"), float("nan")),
        (1, "1"),
        (b"a", b"b"),
        (Path("a"), Path("b")),
        ({1, 2}, {1, 3}),
    ],
    ids=lambda value: type(value).__name__,  # no address in a name: each process must collect the same tests
)
def test_values_that_differ(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert content_key({"x": one}) != content_key({"x": other})
    assert json.loads(json.dumps(fingerprint(one))) == fingerprint(one)


def test_equal_content_is_one_fingerprint_whatever_holds_it() -> None:
    assert (
        fingerprint(OmegaConf.create({"a": [1, {"b": None}]}))
        == {"a": [1, {"b": None}]}
        == fingerprint({"a": (1, {"b": None})})
    )
    assert fingerprint(np.float64(0.5)) == 0.5
    assert fingerprint({"b", "a"}) == ["a", "b"]


def test_a_value_that_holds_itself_ends() -> None:
    held = Held(None)
    held.inner = [held]
    assert fingerprint(held)["parameters"] == {"inner": ["itself"]}


class Lazy:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    @functools.cached_property
    def found(self) -> int:
        return 3


def test_what_was_computed_meanwhile_and_where_it_lies_do_not_count() -> None:
    used, fresh = Lazy(), Lazy()
    assert used.found == 3
    assert fingerprint(used) == fingerprint(fresh)


def test_code_that_was_never_in_a_file(tmp_path: Path) -> None:
    def made(factor: int) -> type:
        space: dict[str, Any] = {"__name__": "notebook"}
        exec(f"class Mine:\n  k = 1\n  def f(self):\n    return {factor}", space)
        return space["Mine"]

    assert source_hash(made(1)) == source_hash(made(1))
    assert source_hash(made(1)) != source_hash(made(2))


def test_fingerprints_are_the_same_in_every_process() -> None:
    code = (
        "import functools, json, torch; from emodissect.core.fingerprint import fingerprint; "
        "from emodissect.similarity import SoftWPMI; "
        "print(json.dumps(fingerprint([SoftWPMI(), {'a', 'b', 'c'}, functools.partial(torch.optim.SGD, lr=1), "
        "compile('1', 'x', 'eval').co_consts])))"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1
    assert json.loads(said.pop())[0] == fingerprint(SoftWPMI())


def test_making_a_fingerprint_imports_nothing() -> None:
    code = (
        "import sys; from emodissect.core.fingerprint import fingerprint; "
        "fingerprint({'_target_': 'antigravity.geohash', 'x': [1]}); "
        "print(sorted({'antigravity', 'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
