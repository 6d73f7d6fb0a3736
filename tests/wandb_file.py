"""Reads a W&B run file: W&B's protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

BLOCK = 32_768
HEADER = 7


def records(path: Path) -> Iterator[Any]:
    """Every record of a ``run-*.wandb`` file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, joined = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # a block's padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        joined += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = pb.Record()
            record.ParseFromString(joined)
            yield record
            joined = b""


@dataclass
class RunFile:
    """The content of an offline run."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def logged(self, name: str) -> list[Any]:
        """All values of a history key."""
        return [row[name] for row in self.history if name in row]


def read_run(folder: Path, patience: float = 30.0) -> RunFile:
    """The only W&B run in a run folder; W&B's own process may end a little after the run."""
    deadline = time.monotonic() + patience
    while True:
        paths = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
        found = _read(paths[0]) if len(paths) == 1 else RunFile()
        if found.exit_code is not None or time.monotonic() > deadline:
            assert len(paths) == 1, f"{len(paths)} runs under {folder}"
            return found
        time.sleep(0.2)


def _read(path: Path) -> RunFile:
    found = RunFile()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "history":
            found.history.append(_values(record.history.item))
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "artifact":
            found.artifacts[record.artifact.name] = {
                "type": record.artifact.type,
                "metadata": json.loads(record.artifact.metadata or "{}"),
                "files": [entry.path for entry in record.artifact.manifest.contents],
            }
        elif kind == "metric":
            found.steps[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found
