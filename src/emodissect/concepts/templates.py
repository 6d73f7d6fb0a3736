"""Prompt templates: the sentences a concept is put into before CLIP reads it."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip

from emodissect.core.errors import UserError, nearest

_MARK = "\0"

# Bare is CLIP-Dissect's own prompt. The faces ensemble names what every image here shows.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "bare": ("{}",),
    "faces": (
        "{}",
        "a face with {}",
        "a photo of a face showing {}",
        "a black and white photo of a person with {}",
        "a close-up of a facial expression: {}",
    ),
    "imagenet": tuple(make(_MARK).replace(_MARK, "{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES),
}


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates themselves, from a named ensemble, one template, or a list.

    Raises:
        UserError: a template without ``{}``, an unknown ensemble, or none at all.
    """
    if isinstance(templates, str):
        if templates in TEMPLATES:
            return TEMPLATES[templates]
        templates = (templates,)
    found = tuple(str(template) for template in templates)
    if not found:
        raise UserError("scorer.templates is empty. The bare concept is scorer.templates=bare.")
    for template in found:
        if template.count("{}") != 1:
            raise UserError(
                f"The prompt template '{template}' must hold {{}} once, where the concept goes: 'a face with {{}}'. "
                f"For the named ensembles: {nearest(template, TEMPLATES)}"
            )
    return found


def prompts(concept: str, templates: Sequence[str]) -> list[str]:
    """The concept in each template; braces inside a concept stay what they are."""
    return [template.replace("{}", concept) for template in templates]
