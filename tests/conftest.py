"""Fixtures shared by many tests: small caches, no network access, few threads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import SMALL, composed
from hydra.utils import get_object

from emodissect.app.cli import register_resolvers
from emodissect.core.cache import Cache

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

register_resolvers()


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each of several processes, and for what they start: threads on busy cores wait for each other."""
    several = hasattr(config, "workerinput") or config.getoption("numprocesses", None)
    os.environ.setdefault("OMP_NUM_THREADS", "1" if several else "2")
    torch.set_num_threads(min(int(os.environ["OMP_NUM_THREADS"]), torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs modules with many slow tests first, so that no process is still busy with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache shared by the tests of a module, so that a network is trained only once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def verb(home: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Runs a command with overrides; returns its run folder and return value."""
    from emodissect.app.cli import VERBS

    count = 0

    def run(name: str, *overrides: str) -> tuple[Path, dict[str, Any]]:
        nonlocal count
        count += 1
        folder = tmp_path / f"run{count}"
        other = tuple(f"{group}." for group in ("data", "model") for word in overrides if word.startswith(f"{group}="))
        small = [word for word in SMALL if not (other and word.startswith(other))]
        words = [*small, f"paths.cache_dir={home}", f"paths.log_dir={tmp_path}", *overrides]
        return folder, get_object(VERBS[name])(composed(name, *words, run_dir=folder))

    return run


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fer2013_path() -> Path:
    """The path of the real FER2013 in ``EMODISSECT_FER2013``; the test is skipped if it is not set."""
    path = os.environ.get("EMODISSECT_FER2013", "")
    if not path or not Path(path).exists():
        pytest.skip("set EMODISSECT_FER2013 to FER2013's csv or npz for this test")
    return Path(path)
