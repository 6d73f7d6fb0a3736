"""Runs CLIP's image tower in faster CPU runtimes than torch: exported once, cached, and checked against torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from emodissect.concepts.open_clip_model import OpenClip, quiet_loading
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError, nearest, reason
from emodissect.core.fingerprint import fingerprint

log = logging.getLogger(__name__)

Tower = Callable[[Float[Tensor, "image 3 height width"]], Float[Tensor, "image embedding"]]

LEAST_COSINE = 0.999
"""Minimum cosine similarity of each image's embedding with torch's; below it, a runtime is refused."""

RUNTIMES = {"torch": "torch", "onnx_int8": "onnxruntime", "openvino": "openvino"}
"""Runtimes and the packages they need; all but torch are CPU only."""

_FILE = "image_tower.onnx"


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises UserError for a runtime that is unknown, lacks a package, or does not run on the device."""
    if runtime not in RUNTIMES:
        raise UserError(f"clip.runtime={runtime} is not known. {nearest(runtime, RUNTIMES)}")
    needed = ["onnxscript", RUNTIMES[runtime]] if runtime != "torch" else []
    if missing := [package for package in needed if find_spec(package) is None]:
        raise UserError(
            f"clip.runtime={runtime} needs {' and '.join(missing)}: pip install 'emodissect[clip-cpu]'. "
            "clip.runtime=torch needs no extra package."
        )
    if runtime != "torch" and device.type != "cpu":
        raise UserError(
            f"clip.runtime={runtime} runs only on CPUs, but scorer.device is {device.type}: set scorer.device=cpu."
        )


def image_tower(clip: OpenClip, runtime: str, cache: Cache, example: Float[Tensor, "image 3 height width"]) -> Tower:
    """The image tower in a given runtime, after a check against torch on ``example``.

    ``onnx_int8`` quantises the weights of matrix products to 8 bits, one scale per output channel; activations are
    quantised dynamically. ``openvino`` runs the exported tower unchanged (in bf16 if the CPU supports it).

    Args:
        runtime: a name in ``RUNTIMES`` other than torch.

    Raises:
        UserError: the tower cannot be exported, or its embeddings differ from torch's (cosine below ``LEAST_COSINE``).
    """
    key = {
        "clip": fingerprint(clip),
        "runtime": runtime,
        "versions": {name: version(name) for name in ("torch", "onnxscript", RUNTIMES[runtime])},
    }
    folder = cache.entry("clip_towers", key, lambda out: _export(clip, runtime, example[:2], out / _FILE))
    tower = {"onnx_int8": _onnx, "openvino": _openvino}[runtime](folder / _FILE)
    with torch.inference_mode():
        expected = clip.model.encode_image(example)  # type: ignore[operator]
    cosine = float(F.cosine_similarity(tower(example), expected.float()).min())
    if not cosine >= LEAST_COSINE:
        raise UserError(
            f"With clip.runtime={runtime}, the embeddings of {clip.model_name} have a cosine of only {cosine:.4f} with "
            f"torch's, below {LEAST_COSINE}: labels would differ. Use clip.runtime=torch."
        )
    log.info("clip.runtime=%s: the smallest cosine with torch's embeddings is %.5f.", runtime, cosine)
    return tower


class _ImageTower(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)  # type: ignore[operator]


def _export(clip: OpenClip, runtime: str, example: Tensor, path: Path) -> None:
    log.info("Exporting the image tower of %s for clip.runtime=%s; it will be cached.", clip.model_name, runtime)
    whole = path if runtime == "openvino" else path.with_suffix(".fp32")
    try:
        with quiet_loading(logging.WARNING), redirect_stdout(StringIO()):  # exporters log every step
            torch.onnx.export(
                _ImageTower(clip.model).eval(),
                (example.contiguous(),),
                str(whole),
                dynamic_shapes={"images": {0: torch.export.Dim("image", min=1, max=2**16)}},
                external_data=False,
            )
            if runtime == "onnx_int8":
                from onnxruntime.quantization import QuantType, quantize_dynamic

                products = ["MatMul", "Gemm"]
                quantize_dynamic(
                    whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=products
                )
                whole.unlink()
    except Exception as error:  # an exporter can raise anything for an unsupported architecture
        raise UserError(
            f"The image tower of {clip.model_name} cannot be exported for clip.runtime={runtime}: "
            f"{reason(error)}. Use clip.runtime=torch."
        ) from error


def _onnx(path: Path) -> Tower:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(run.run(None, {"images": images.contiguous().numpy()})[0])


def _openvino(path: Path) -> Tower:
    import openvino

    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda images: torch.from_numpy(model(images.contiguous().numpy())[0].copy())
