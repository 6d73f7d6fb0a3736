"""Resolves the name of a CLIP: ``tiny``, an open_clip model name, or a weights file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emodissect.core.errors import UserError, nearest, reason
from emodissect.core.tensor_files import check_archive, is_torchscript, torchscript_tensors

if TYPE_CHECKING:
    from emodissect.concepts.open_clip_model import OpenClip

SHIPPED = {"tiny": ("emodissect.demo.tiny_clip", "TinyClip")}
"""CLIPs included in the package; imported by name, since ``demo`` may import every other room but not vice versa."""


def clip_named(clip: str | Path | OpenClip) -> Any:
    """The CLIP for a name or a file.

    Args:
        clip: ``tiny``; an open_clip architecture with or without a weights tag (``ViT-B-16``,
            ``ViT-B-16:laion2b_s34b_b88k``; without a tag, OpenAI's weights if there are any, otherwise the first tag);
            ``hf-hub:org/repository``; a weights file, whose architecture is inferred from its tensors; or a CLIP
            object, which is returned unchanged.

    Raises:
        UserError: an unknown name, or a file whose architecture is not recognised.

    Example:
        >>> clip_named("ViT-B-32").pretrained
        'openai'
    """
    if not isinstance(clip, str | Path):
        return clip
    if str(clip) in SHIPPED:
        module, name = SHIPPED[str(clip)]
        return getattr(import_module(module), name)()
    import open_clip

    from emodissect.concepts.open_clip_model import OpenClip

    if str(clip).startswith(("hf-hub:", "local-dir:")):
        return OpenClip(str(clip))
    name, _, tag = str(clip).partition(":")
    if name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        return OpenClip(name, tag or ("openai" if "openai" in tags else next(iter(tags), None)))
    path = Path(clip).expanduser()
    if path.is_file():
        return OpenClip(_architecture_of(path), weights=str(path))
    known = [*SHIPPED, *open_clip.list_models()]
    raise UserError(f"clip={str(clip)!r} is neither an open_clip model nor a weights file. {nearest(name, known)}")


def _architecture_of(path: Path) -> str:
    """The open_clip architecture whose dimensions match those of the file's tensors."""
    import open_clip

    openai = is_torchscript(path)
    try:
        check_archive(path)
        state = torchscript_tensors(path) if openai else open_clip.factory.load_state_dict(str(path))
    except Exception as error:  # a foreign file can fail in any way
        raise UserError(f"The CLIP weights {path} cannot be read: {reason(error)}.") from error
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        first, text = state["visual.conv1.weight"], state["text_projection"]
        layers = len({name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")})
        grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
        found = (first.shape[0], first.shape[-1], layers, grid * first.shape[-1], tuple(text.shape))
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{path} is not recognised as the weights of a CLIP with a vision transformer (no tensor {error}). Name "
            "its architecture: clip=emodissect.OpenClip('<one of open_clip.list_models()>', weights='<file>')."
        ) from error
    matching = [name for name in open_clip.list_models() if _sizes(open_clip.get_model_config(name)) == found]
    matching.sort(key=lambda name: (name.endswith("-quickgelu") != openai, len(name)))
    if not matching:
        width, patch, layers, size, _ = found
        raise UserError(
            f"{path} contains a vision transformer of width {width} with {layers} layers, patch size {patch} and image "
            f"size {size}, which matches no open_clip architecture. Name one: clip=emodissect.OpenClip(...)."
        )
    return matching[0]


def _sizes(config: dict[str, Any] | None) -> tuple[Any, ...]:
    vision, text = (config or {}).get("vision_cfg", {}), (config or {}).get("text_cfg", {})
    return (
        *(vision.get("width"), vision.get("patch_size"), vision.get("layers"), vision.get("image_size", 224)),
        (text.get("width"), (config or {}).get("embed_dim")),
    )
