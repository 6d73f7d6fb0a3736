"""Time and memory of recording all ten layers of the full-width VGG, compared with a forward pass without hooks.

    python benchmarks/recording.py --images 28709      # as in the published study; about 15 minutes on two cores
    python benchmarks/recording.py --images 2000

Blocks of images run with and without recording alternately, in one process and in both orders, and the median times of
the blocks are compared, so that a slowdown of the machine affects both. CPU time is given too, which other jobs affect
least. The final step (merging pending batches, ``result()``) is included. The first few hundred images cost most, since
nearly all of them enter a top 100, so a short run overstates the ratio. Memory: the size of the collector's state in
bytes, next to that of the image x neuron matrices that it avoids; and the rise of peak memory in its own process, for
three ways of keeping activations.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from similarity import PeakMemory

from emodissect.models.vgg import VGG
from emodissect.recording import ActivationCollector

LAYERS = [f"conv{stage}{half}" for stage in "1234" for half in "ab"] + ["lin1", "lin2"]
MIB = 2**20


class Seconds(NamedTuple):
    """CPU and wall time."""

    wall: float
    processor: float


def now() -> Seconds:
    return Seconds(time.perf_counter(), time.process_time())


def network(width: float) -> VGG:
    torch.manual_seed(0)
    return VGG(width=width).eval().to(memory_format=torch.channels_last)


def batches(images: int, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels = torch.rand(batch, 1, 40, 40).to(memory_format=torch.channels_last)
    # the same pixels, slightly shifted each time: distinct activations without a set of images in memory
    return [(pixels, ids) for ids in torch.arange(images).split(batch)]


def forward(model: VGG, pixels: torch.Tensor, ids: torch.Tensor) -> None:
    model((pixels[: len(ids)] + 1e-3 * (int(ids[0]) % 97)).clamp_(0, 1))


def measure_time(args: argparse.Namespace) -> None:
    model = network(args.width)
    work = batches(args.images, args.batch)
    blocks = [work[start : start + args.block] for start in range(0, len(work), args.block)]
    collector = ActivationCollector(LAYERS, top_k=args.top_k)
    plain: list[Seconds] = []
    recorded: list[Seconds] = []
    with torch.inference_mode():
        forward(model, *work[0])
        for number, block in enumerate(blocks):
            count = sum(len(ids) for _, ids in block)
            for way in (plain, recorded) if number % 2 else (recorded, plain):
                start = now()
                if way is plain:
                    for pixels, ids in block:
                        forward(model, pixels, ids)
                else:
                    with collector.on(model):
                        for pixels, ids in block:
                            forward(model, pixels, ids)
                            collector.update(ids)
                way.append(Seconds(*((end - begin) / count for begin, end in zip(start, now(), strict=True))))
        start = now()
        result = collector.result()
        ending = Seconds(*(end - begin for begin, end in zip(start, now(), strict=True)))
    neurons = sum(found.neurons for found in result.values())
    print(f"{args.images} images, VGG width {args.width:g}, {len(LAYERS)} layers, {neurons} neurons, top {args.top_k}")
    for clock, of in (("wall", 0), ("processor", 1)):
        before = statistics.median(block[of] for block in plain)
        after = statistics.median(block[of] for block in recorded) + ending[of] / args.images
        ratios = sorted(r[of] / p[of] for p, r in zip(plain, recorded, strict=True))
        print(
            f"{clock:9} time: forward {args.images * before:.1f} s ({1 / before:.1f} images/s), recorded "
            f"{args.images * after:.1f} s; ratio {after / before:.3f} (target 1.15); {len(ratios)} pairs of blocks: "
            f"median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}; result() {ending[of]:.2f} s"
        )
    state = sum(layer.top._keys.nbytes + 40 * layer.top._keys.shape[0] for layer in collector._state.values())
    matrices = 4 * args.images * neurons / MIB
    print(f"state of the collector {state / MIB:.0f} MiB; image x neuron matrices {matrices:.0f} MiB")


def peak(values: bool, stored: bool, args: argparse.Namespace, answer: multiprocessing.Queue) -> None:
    """Feeds the collector random activations of the real sizes; reports how far resident memory rose."""
    torch.set_num_threads(1)
    with torch.device("meta"):  # real weights would raise the peak before the measurement
        model = VGG(width=args.width)
    sizes = {name: int(model.get_submodule(name).weight.shape[0]) for name in LAYERS}
    with tempfile.TemporaryDirectory() as folder:
        collector = ActivationCollector(
            LAYERS, top_k=args.top_k, keep_values=values, store_dir=Path(folder) if stored else None
        )
        batch = {name: torch.rand(args.batch, neurons) for name, neurons in sizes.items()}
        # sampled: getrusage's peak is inherited from the process that started this one
        with PeakMemory() as memory:
            for ids in torch.arange(args.images).split(args.batch):
                for values_of in batch.values():
                    values_of.add_(0.618).frac_()
                collector._names = LAYERS
                collector._take(ids, {name: values_of[: len(ids)] for name, values_of in batch.items()})
            collector.result()
        answer.put(memory.mebibytes)


def measure_memory(args: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    for words, values, stored in [
        ("top images only", False, False),
        ("all activations, memory-mapped", True, True),
        ("all activations, in memory", True, False),
    ]:
        answer = context.Queue()
        process = context.Process(target=peak, args=(values, stored, args, answer))
        process.start()
        print(f"peak memory, {words}: + {answer.get():.0f} MiB", flush=True)
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--block", type=int, default=8, help="batches that run one way before the other")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--only", choices=["time", "memory"], default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.only != "memory":
        measure_time(options)
    if options.only != "time":
        measure_memory(options)
