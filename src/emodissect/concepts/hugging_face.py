"""Converts CLIP state dicts from Hugging Face's names to open_clip's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_MARK = "vision_model.encoder.layers.0.self_attn.q_proj.weight"

_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_PART = re.compile(r"^(.*)\.self_attn\.q_proj\.(weight|bias)$")


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a CLIPModel's weights with the names used by `transformers`."""
    return _MARK in state


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with open_clip's names.

    Query, key and value matrices are concatenated, and projections are transposed, since open_clip computes ``x @ W``.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if part := _PART.match(name):
            three = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            found[f"{part[1]}.attn.in_proj_{part[2]}"] = torch.cat(three)
        elif name == "visual_projection.weight":
            found["visual.proj"] = value.T.contiguous()
        elif name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            found[name] = value
    return {_renamed(name): value for name, value in found.items()}


def _renamed(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name
