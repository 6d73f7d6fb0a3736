"""What many tests share: small caches, no network, few threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from emodissect.cache import Cache
from emodissect.command_line import register_resolvers

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

register_resolvers()

# several test runs at once are faster with one thread each than with threads that wait for one another
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """An empty cache."""
    return Cache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fer2013_path() -> Path:
    """The real FER2013, where ``EMODISSECT_FER2013`` names it."""
    path = os.environ.get("EMODISSECT_FER2013", "")
    if not path or not Path(path).exists():
        pytest.skip("set EMODISSECT_FER2013 to FER2013's csv or npz for this test")
    return Path(path)
