"""CLIP's image encoder on a CPU: CPU seconds per image for each runtime, and whether labels agree.

python benchmarks/clip_runtimes.py [architecture]     # random weights; the time does not depend on them
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from torch import nn

import emodissect as emo
from emodissect.concepts.clip_runtimes import RUNTIMES, image_tower
from emodissect.core.cache import Cache
from emodissect.demo.sketches import CONCEPTS, Sketches
from emodissect.demo.tiny_clip import TinyClip

IMAGES = 16


def seconds(run: Callable[[], object]) -> float:
    """CPU time per image: the smallest of five runs, after a warm-up run."""
    run()
    taken = []
    for _ in range(5):
        before = time.process_time()
        run()
        taken.append(time.process_time() - before)
    return min(taken) / IMAGES


def main(architecture: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder))
        torch.manual_seed(0)
        weights = Path(folder) / "weights.pt"
        torch.save(open_clip.create_model(architecture).state_dict(), weights)
        clip = emo.OpenClip(architecture, weights=str(weights))
        images = torch.randn(IMAGES, 3, clip.images.height, clip.images.width)
        encode = clip.model.encode_image
        with torch.inference_mode():
            plain = seconds(lambda: encode(images))
            with torch.autocast("cpu", torch.bfloat16):
                half = seconds(lambda: encode(images))
        print(f"{architecture}, {torch.get_num_threads()} threads, CPU seconds per image")
        print(f"torch fp32  {plain:.4f}  1.0x")
        print(f"torch bf16  {half:.4f}  {plain / half:.1f}x")
        for runtime in [name for name in RUNTIMES if name != "torch"]:
            tower = image_tower(clip, runtime, cache, images)
            taken = seconds(lambda tower=tower: tower(images))
            print(f"{runtime:10s}  {taken:.4f}  {plain / taken:.1f}x")

        faces = Sketches(cache_dir=folder, train=1000, val=10, test=10).splits.train
        network = nn.Sequential(nn.Flatten(), nn.Linear(2304, 512), nn.ReLU())
        labels = {
            runtime: emo.dissect(
                *(network, faces, list(CONCEPTS)),
                layers="1",
                scorer=emo.ClipScorer(TinyClip(runtime=runtime), progress=False),
                null_draws=10,
                cache_dir=folder,
                progress=False,
            )["1"]["concept"]
            for runtime in RUNTIMES
        }
        for runtime, found in labels.items():
            agree = (found == labels["torch"]).mean()
            print(f"clip=tiny, 512 neurons, 1,000 faces: {agree:.1%} of the labels are torch's ({runtime})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "ViT-B-32")
