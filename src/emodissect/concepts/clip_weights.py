"""Finds CLIP weights: a local copy first, then a download with a short timeout."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants as hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.pretrained import download_pretrained_from_url

from emodissect.core.errors import UserError, reason

log = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds until a server that does not respond counts as unreachable


def downloaded(model_name: str, tag: str, known: Mapping[str, Any]) -> Path:
    """Path of the weights file of an open_clip tag; a local copy is used without any network access.

    Args:
        known: open_clip's config of the tag: ``hf_hub`` (repository and file) or ``url``.

    Raises:
        UserError: there is no local copy, and the download failed.
    """
    tried: list[str] = []
    if known.get("hf_hub"):
        repository, _, name = str(known["hf_hub"]).rpartition("/")
        names = [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        if name.endswith((".bin", ".pth")):
            names.insert(0, f"{name[:-4]}.safetensors")
        found = _from_hub(repository, names, tried)
        if found is not None:
            return found
    elif known.get("url"):
        found = _from_url(str(known["url"]), tried)
        if found is not None:
            return found
    repository = str(known.get("hf_hub") or "").rpartition("/")[0]
    raise UserError(offline_advice(f"{model_name} with the weights '{tag}'", tried, repository))


def offline_advice(what: str, tried: Sequence[str], repository: str = "") -> str:
    """The error message for weights that cannot be downloaded; ``repository``: on the hub, if known."""
    return (
        f"The CLIP {what} is not on this machine and cannot be downloaded. Tried: {'; '.join(tried) or 'nothing'}. "
        f"On a machine with network access, `hf download {repository or '<repository>'} open_clip_model.safetensors` "
        f"puts it into the hub's cache, which you can copy to this machine ({hub.HF_HUB_CACHE}; set HF_HUB_CACHE for "
        "another folder). To use a mirror, set HF_ENDPOINT=<address>. To use a weights file, set clip=file "
        "clip.model_name=<architecture> clip.weights=<file>. These need no network: clip=tiny (knows only drawn "
        "faces), scorer=annotations."
    )


def _from_hub(repository: str, names: Sequence[str], tried: list[str]) -> Path | None:
    for name in names:
        held = try_to_load_from_cache(repository, name)
        if isinstance(held, str):
            return Path(held)
    endpoint = os.environ.get("HF_ENDPOINT") or hub.ENDPOINT
    why = _unreachable(endpoint)
    if why is not None:
        tried.append(f"{endpoint}/{repository}/{names[0]} ({why})")
        return None
    for name in names:
        where = f"{endpoint}/{repository}/{name}"
        log.info("Downloading %s", where)
        try:
            return Path(hf_hub_download(repository, name, etag_timeout=_TIMEOUT, endpoint=endpoint))
        except LocalEntryNotFoundError as error:
            tried.append(f"{where} ({reason(error.__cause__ or error)})")
            return None  # a network error, so trying the next name would only wait again
        except EntryNotFoundError:
            tried.append(f"{where} (no such file)")
        except Exception as error:  # the hub's client raises its own, httpx's or requests' errors, by version
            tried.append(f"{where} ({reason(error)})")
            return None
    return None


def _unreachable(address: str) -> str | None:
    """Why a server is unreachable, or None if it responds; the hub's client would retry for half a minute first."""
    if hub.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None  # it responds
    except OSError as error:
        return reason(error)


def _from_url(url: str, tried: list[str]) -> Path | None:
    held = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    try:
        # open_clip's own download has no timeout.
        why = None if held.is_file() else _unreachable(url)
        if why is not None:
            tried.append(f"{url} ({why})")
            return None
        return Path(download_pretrained_from_url(url))
    except (OSError, RuntimeError) as error:
        tried.append(f"{url} ({reason(error)})")
        return None
