"""A flipped byte in any kind of file that is read back is either detected or has no effect."""

from __future__ import annotations

import json
import logging
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emodissect.concepts import AnnotationScorer, ConceptScores
from emodissect.concepts.concept_set import ConceptSet, read_concepts
from emodissect.core import table_files
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.core.fingerprint import fingerprint
from emodissect.core.table_files import write_parquet
from emodissect.data.fer2013_files import read_csv, read_npz
from emodissect.data.images import ImageSet
from emodissect.dissection.labels import Dissection, Labelling, label_neurons
from emodissect.models.checkpoints import read_checkpoint, read_state_dict
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson

FLIPS = 200
WORDS = ("smile", "frown", "tears")

Kind = tuple[Callable[[Path], Path], Callable[[Path], Any]]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def images() -> ImageSet:
    return ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20) % 2, torch.arange(20))


def checkpoint(folder: Path) -> Path:
    held = {"state_dict": network().state_dict(), "epoch": 3, "hyper_parameters": {"class_names": ["a", "b"]}}
    torch.save(held, folder / "last.ckpt")
    return folder / "last.ckpt"


def torchscript(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network()).save(str(folder / "scripted.pt"))
    return folder / "scripted.pt"


def weights(folder: Path) -> Path:
    save_file(network().state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def entry(folder: Path) -> Path:
    def write(made: Path) -> None:
        (made / "values.bin").write_bytes(bytes(range(256)) * 4)
        save_file(network().state_dict(), made / "weights.safetensors")

    return Cache(folder).entry("things", {"x": 1, "names": list(WORDS)}, write)


def read_entry(folder: Path) -> Any:
    """The entry's content, if the cache considers it intact."""
    if not Cache(folder.parents[1]).holds("things", {"x": 1, "names": list(WORDS)}):
        raise UserError("damaged, and recomputed")
    return [(folder / name).read_bytes() for name in ("values.bin", "weights.safetensors")]


def labels(folder: Path) -> Path:
    values = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    scores = ConceptScores(images().ids, WORDS, torch.rand(20, 3, generator=torch.Generator().manual_seed(1)))
    layer = LayerActivations.of("fc", images().ids, values, 5)
    label_neurons(
        {"fc": layer}, scores, Pearson(), images(), ConceptSet(WORDS), ("x", "y"), Labelling(draws=20, top_images=5)
    ).save(folder)
    return folder


def read_labels(folder: Path) -> Any:
    found = Dissection.load(folder)
    return [found.fingerprint(), fingerprint(dict(found.null)), found.tau, found.level]


def table(folder: Path, ending: str) -> Path:
    frame = pd.DataFrame({"image_id": range(20), **{word: np.linspace(0, 1, 20) for word in WORDS}})
    path = folder / f"table{ending}"
    frame.to_csv(path, index=False) if ending == ".csv" else write_parquet(frame, path)
    return path


def read_table(path: Path) -> Any:
    return AnnotationScorer(str(path)).score(images(), ConceptSet(WORDS), ("x", "y")).values.tolist()


def concepts(folder: Path, ending: str) -> Path:
    texts = {
        ".txt": "\n".join(WORDS),
        ".yaml": "smile: [x]\nfrown: [y]\ntears: x\n",
        ".json": json.dumps({word: ["x"] for word in WORDS}),
        ".csv": 'concept,classes\nsmile,x;y\n"frown",y\ntears,x\n',
    }
    (folder / f"words{ending}").write_text(texts[ending])
    return folder / f"words{ending}"


def read_words(path: Path) -> Any:
    return read_concepts(path).fingerprint()


def fer_npz(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    np.savez(
        folder / "fer.npz",
        pixels=generator.integers(0, 256, (6, 48, 48), dtype=np.uint8),
        labels=np.arange(6) % 7,
        usage=np.arange(6) % 3,
    )
    return folder / "fer.npz"


def fer_csv(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48 * 48))
    rows = [f"{n},{' '.join(map(str, row))},Training" for n, row in enumerate(pixels)]
    (folder / "fer.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return folder / "fer.csv"


def read_rows(rows: Any) -> Any:
    return [rows.pixels.tobytes(), rows.labels.tolist(), rows.usage.tolist()]


NOTICED: dict[str, Kind] = {
    "checkpoint": (checkpoint, read_checkpoint),
    "TorchScript archive": (torchscript, read_state_dict),
    "cache entry": (entry, read_entry),
    "labels": (labels, read_labels),
    "annotations.parquet": (lambda folder: table(folder, ".parquet"), read_table),
    "fer2013.npz": (fer_npz, lambda path: read_rows(read_npz(path))),
}
"""Files that carry checksums."""

PLAIN: dict[str, Kind] = {
    "weights.safetensors": (weights, read_state_dict),
    "annotations.csv": (lambda folder: table(folder, ".csv"), read_table),
    "fer2013.csv": (fer_csv, lambda path: read_rows(read_csv(path))),
    **{
        f"concepts{ending}": (lambda folder, ending=ending: concepts(folder, ending), read_words)
        for ending in (".txt", ".yaml", ".json", ".csv")
    },
}
"""Texts and safetensors, which carry none: a flipped byte may be another word or number, and never a traceback."""


def outcomes(kind: Kind, folder: Path, flips: int = FLIPS, seed: int = 0) -> Counter[str]:
    """Outcomes of flipped bytes: noticed, same or other; any exception except UserError fails the test."""
    make, read = kind
    (folder / "made").mkdir()
    made = make(folder / "made")
    files = [made] if made.is_file() else sorted(path for path in made.rglob("*") if path.suffix != ".csv")
    wanted = fingerprint(read(made))
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    warned: list[logging.LogRecord] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = warned.append  # type: ignore[method-assign]
    logging.getLogger("emodissect").addHandler(listener)
    for _ in range(flips):
        file = chance.choices(files, [path.stat().st_size for path in files])[0]
        content = file.read_bytes()
        place = chance.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= chance.randrange(1, 256)
        file.write_bytes(changed)
        try:
            warned.clear()
            same = fingerprint(read(made)) == wanted
            found["same" if same else "noticed" if warned else "other"] += 1
        except UserError:
            found["noticed"] += 1
        file.write_bytes(content)
    logging.getLogger("emodissect").removeHandler(listener)
    shutil.rmtree(folder / "made")
    return found


SLOW = ("labels", "annotations.parquet")  # a process for each trial of a Parquet file


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in SLOW else []) for k in NOTICED])
def test_a_flipped_byte_is_noticed_or_harmless(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "_PATIENCE", 20.0)
    flips = FLIPS // 4 if kind in SLOW else FLIPS
    found = outcomes(NOTICED[kind], tmp_path, flips)
    print(kind, dict(found))
    assert found["other"] == 0
    assert found.total() == flips
    assert found["noticed"] > flips / 4


@pytest.mark.parametrize("kind", PLAIN)
def test_a_flipped_byte_of_a_file_without_checksum_is_read_or_reported(kind: str, tmp_path: Path) -> None:
    found = outcomes(PLAIN[kind], tmp_path)
    print(kind, dict(found))
    assert found.total() == FLIPS
