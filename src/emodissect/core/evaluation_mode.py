"""Context manager for evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(forward: object) -> Iterator[None]:
    """Put a module, or the ``network`` of an object, in eval mode; each submodule's mode is restored afterwards."""
    root = forward if isinstance(forward, nn.Module) else getattr(forward, "network", None)
    training = [module for module in root.modules() if module.training] if isinstance(root, nn.Module) else []
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
