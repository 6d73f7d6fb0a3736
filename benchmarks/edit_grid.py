"""The published study's grid of 72 edits on the full-width VGG: the fast path against 72 full evaluations.

    python benchmarks/edit_grid.py                      # lin2 and conv4b, 7,178 images, 72 full evaluations estimated
    python benchmarks/edit_grid.py --images 1000 --full-cells 2 --layers lin2
    python benchmarks/edit_grid.py --full-cells 72      # runs all full evaluations

Weights and images are random, which does not change the work. Both ways run in this process on the same images, one
after the other. The grid is 12 tau x 6 factors, with similarities drawn from N(0.5, 0.8), so that every tau selects
different neurons. The 12 cells with factor 1 all equal the unedited network, which the fast path evaluates once. The
published study evaluated them all, so 72 full evaluations are the baseline; the time of 61 (one per distinct network)
is given too. Full evaluations run on 64 images at a time, channels last, the fastest setting found. With --full-cells
below 72, their mean time is extrapolated, and only the predictions of these cells are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import pandas as pd
import torch

from emodissect.data.images import ImageSet, image_loader
from emodissect.editing.edit import Edit, edited
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.editing.rules import Scale
from emodissect.editing.selection import Tau
from emodissect.models.inference import Inference, predict
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG
from emodissect.studies.cells import evaluate_cells, grid

TAUS = [-1 + 0.25 * step for step in range(12)]
FACTORS = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def settled_vgg(width: float) -> VGG:
    """A VGG with random weights and running statistics of its own activations, so that logits have a normal scale."""
    network = VGG(width=width).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(torch.rand(32, 1, 40, 40))
    return network.eval().to(memory_format=torch.channels_last)


def measure(inference: Inference, layer: str, images: ImageSet, full_cells: int, batch_size: int) -> dict[str, object]:
    """Times both ways on one layer."""
    network = inference.network
    neurons = len(network.get_submodule(layer).weight)
    similarity = 0.5 + 0.8 * torch.randn(neurons, generator=torch.Generator().manual_seed(1))
    labels = pd.DataFrame({"layer": layer, "neuron": range(neurons), "similarity": similarity.numpy()})
    cells = grid(network, [layer], labels, [Tau(tau) for tau in TAUS], [Scale(factor=factor) for factor in FACTORS])

    start = time.perf_counter()
    logits = EditedLogits(inference, layer, images, batch_size)
    once = time.perf_counter() - start
    judged = evaluate_cells(cells, {layer: logits})
    fast = time.perf_counter() - start

    changed = [place for place, cell in enumerate(cells) if not cell.operation.is_identity]
    spread = [changed[step * len(changed) // full_cells] for step in range(min(full_cells, len(changed)))]
    checked = list(range(len(cells))) if full_cells >= len(cells) else spread
    took, same, difference = 0.0, 0, 0.0
    for place in checked:
        start = time.perf_counter()
        with edited(network, Edit(layer, cells[place].operation)):
            full = predict(inference, image_loader(images, 64))
        took += time.perf_counter() - start
        same += int((full.predicted == judged.predicted[place]).sum())
        found = logits.logits([cells[place].operation])[0]
        difference = max(difference, float((found - full.logits).abs().max()))
    each = took / len(checked)
    return {
        "layer": layer,
        "images": len(images),
        "cut": logits.is_cut,
        "kept_MB": round(logits.bytes / 1e6),
        "before_the_layer_s": round(once, 2),
        "72_cells_s": round(fast, 2),
        "one_full_evaluation_s": round(each, 2),
        "full_evaluations_timed": len(checked),
        "72_full_evaluations_s": round(72 * each, 1),
        "faster": round(72 * each / fast, 1),
        "faster_than_61_distinct": round(61 * each / fast, 1),
        "predictions_compared": len(checked) * len(images),
        "predictions_that_differ": len(checked) * len(images) - same,
        "largest_logit_difference": difference,
        "largest_logit": float(logits.before.logits.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=7178, help="how many images")
    parser.add_argument("--layers", nargs="+", default=["lin2", "conv4b"], help="edited layers")
    parser.add_argument("--full-cells", type=int, default=3, help="full evaluations really done; their mean times 72")
    parser.add_argument("--width", type=float, default=1.0, help="of the VGG")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time in the fast path")
    parser.add_argument("--threads", type=int, help="of torch")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    drawn = torch.randint(0, 256, (given.images, 1, 48, 48), dtype=torch.uint8)
    images = ImageSet(drawn, torch.randint(0, 7, (given.images,)), torch.arange(given.images))
    network = settled_vgg(given.width)
    given_size = Preprocess(size=40)

    def preprocess(pixels: torch.Tensor) -> torch.Tensor:
        return given_size(pixels).contiguous(memory_format=torch.channels_last)

    inference = Inference(preprocess, network)
    for layer in given.layers:
        found = measure(inference, layer, images, given.full_cells, given.batch_size)
        found["peak_memory_MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        found["threads"] = torch.get_num_threads()
        print(json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
