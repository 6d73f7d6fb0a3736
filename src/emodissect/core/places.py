"""Locations of the config and the cache, in a checkout or an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

from emodissect.core.cache import user_cache_dir

PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The root of the checkout that this package is part of; None if it is installed from a wheel."""
    root = PACKAGE.parents[1]
    return root if (root / "conf").is_dir() and (root / "pyproject.toml").is_file() else None


def config_groups() -> Path:
    """The folder of config groups: ``conf/`` in the checkout, ``emodissect/conf`` in the wheel."""
    root = checkout()
    return root / "conf" if root else PACKAGE / "conf"


def cache_folder() -> Path:
    """The default cache: ``EMODISSECT_CACHE``, else ``.emodissect`` in the checkout, else the user's cache folder."""
    if named := os.environ.get("EMODISSECT_CACHE"):
        return Path(named).expanduser()
    root = checkout()
    return root / ".emodissect" if root else user_cache_dir()
