"""Networks from elsewhere: torchvision and timm by name, and the user's own by import path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from emodissect.core.errors import UserError, nearest


def torchvision_model(name: str, num_classes: int, pretrained: bool = False, channels: int = 3) -> nn.Module:
    """A torchvision classifier with a head for `num_classes`.

    Args:
        name: as in `torchvision.models.list_models()`.
        pretrained: start from torchvision's default weights; the head is new unless it has `num_classes` already.
        channels: input channels; other than 3: with a new first convolution (for grey, the old weights summed).

    Raises:
        UserError: unknown name (with the nearest match), or weights that cannot be downloaded.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"model.name={name} is not a torchvision classifier. {nearest(name, known)}")
    # auxiliary outputs would change what a forward pass returns; only these two models have them
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if pretrained:
        extra.pop("aux_logits", None)
        network = _fetched(name, lambda: torchvision.models.get_model(name, weights="DEFAULT"))
        if hasattr(network, "aux_logits"):
            setattr(network, "aux_logits", False)  # noqa: B010 - a plain flag, not a module
            for part in ("AuxLogits", "aux1", "aux2"):
                if hasattr(network, part):
                    setattr(network, part, None)
        replace_head(network, num_classes)
    else:
        network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if channels != 3:
        _replace_stem(network, channels)
    return network


def timm_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    channels: int = 3,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A timm model with a head for `num_classes`.

    Args:
        name: as in `timm.list_models()`, with or without the tag of the weights.
        pretrained: start from published weights; the head is new unless it has `num_classes` already.
        arguments: further arguments of `timm.create_model`, e.g. `{"img_size": 96}`.

    Raises:
        UserError: unknown name (with the nearest match), unknown argument, or weights that cannot be downloaded.
    """
    import timm  # takes half a second, and only this function needs it

    known = timm.list_models()
    if ":" not in name and name.split(".")[0] not in known:
        raise UserError(f"model.name={name} is not a timm model. {nearest(name.split('.')[0], known)}")

    def make() -> nn.Module:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=channels, **dict(arguments or {})
        )

    try:
        return _fetched(name, make) if pretrained or ":" in name else make()
    except TypeError as error:
        raise UserError(f"model.arguments={dict(arguments or {})} does not suit timm's {name}: {error}") from error


def custom_model(
    target: str, arguments: Mapping[str, Any] | None = None, forward: Mapping[str, Any] | None = None
) -> nn.Module:
    """A user's own module.

    Args:
        target: the class or function that creates it: `package.module.Name`, or `path/to/file.py:Name`.
        forward: further keyword arguments of its forward pass, e.g. `{"return_logits": True}`.

    Raises:
        UserError: no such module, file or name, wrong arguments, or a target that does not create an nn.Module; what
            cannot create one is rejected before it is called.
    """
    found = _found(str(target))
    require_network_maker(found, f"model.target={target}")
    try:
        network = found(**dict(arguments or {}))
    except TypeError as error:
        raise UserError(f"model.arguments={dict(arguments or {})} does not suit {target}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.target={target} made a {type(network).__name__}, not a torch.nn.Module.")
    if forward:
        network.register_forward_pre_hook(_ForwardArguments(dict(forward)), with_kwargs=True)
    return network


class _ForwardArguments:
    """A hook that adds arguments to a forward pass; a class, so that networks with it can be copied."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def __call__(self, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return given, {**self.arguments, **named}


def require_network_maker(found: Any, key: str) -> None:
    """Raise UserError unless calling ``found`` can create a network; it is not called.

    Accepted: subclasses of nn.Module and their class methods; functions annotated to return one; any function in a
    user's file. Standard-library functions, and unannotated ones of installed packages, are rejected:
    `model.target=os.system` runs nothing.
    """
    if isinstance(found, type):
        if not issubclass(found, nn.Module):
            raise UserError(f"{key} is the class {found.__qualname__}, which is not a torch.nn.Module.")
        return
    owner = getattr(found, "__self__", None)
    if inspect.ismethod(found) and isinstance(owner, type) and issubclass(owner, nn.Module):
        return
    function = inspect.unwrap(found) if inspect.isfunction(found) else None
    if function is not None and (_declares_network(function) or _of_the_user(function)):
        return
    raise UserError(
        f"{key} is {_described(found)}. A torch.nn.Module class is accepted, or a function that returns one: of "
        "your own, or declared so (`-> nn.Module`). Wrap anything else in a function of your own: "
        "model.target=path/to/file.py:make_network."
    )


def _declares_network(function: Any) -> bool:
    try:
        returned = typing.get_type_hints(function).get("return")
    except Exception:  # names that exist for type checkers only
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)


def _of_the_user(function: Any) -> bool:
    """Whether a function's source is outside the standard library and installed packages."""
    source = Path(function.__code__.co_filename)
    if not source.is_file() or {"site-packages", "dist-packages"} & set(source.parts):
        return False
    return not source.resolve().is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())


def _described(found: Any) -> str:
    if callable(found) and hasattr(found, "__qualname__"):
        return f"the function {found.__module__}.{found.__qualname__}, which does not declare to return a network"
    return f"a {type(found).__name__}, which does not return a network"


def replace_head(network: nn.Module, num_classes: int) -> None:
    """Replace the last layer (linear, or a 1x1 convolution if there is no linear one) by a new one.

    A layer that already has `num_classes` outputs is kept, with its weights.
    """
    heads = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]
    heads = heads or [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]  # type: ignore[misc]
    name, old = heads[-1]
    if num_classes == (old.out_features if isinstance(old, nn.Linear) else old.out_channels):
        return
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, num_classes, 1)
    network.set_submodule(name, new)


def _replace_stem(network: nn.Module, channels: int) -> None:
    name, old = next((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    if channels == 1:  # same output as for three equal channels
        with torch.no_grad():
            new.weight.copy_(old.weight.sum(dim=1, keepdim=True))
            if new.bias is not None and old.bias is not None:
                new.bias.copy_(old.bias)
    network.set_submodule(name, new)


def _fetched(name: str, make: Any) -> nn.Module:
    try:
        return make()
    except (OSError, RuntimeError) as error:  # URLError and the hub's errors are OSErrors
        raise UserError(
            f"The weights of {name} cannot be downloaded: {error}. Set model.pretrained=false, "
            "or give a weights file with ckpt_path=."
        ) from error


def _found(target: str) -> Any:
    place, separator, name = target.rpartition(":" if ":" in target else ".")
    if not separator or not name or not place:
        raise UserError(f"model.target={target}: give package.module.Name, or path/to/file.py:Name.")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UserError(f"model.target={target}: there is no file {path.absolute()}.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            where = f" in line {frames[-1]}" if frames else ""
            hint = f" To import modules in its folder, set PYTHONPATH={path.absolute().parent}."
            raise UserError(
                f"model.target={target}: the file cannot be run{where}: {type(error).__name__}: {error}."
                + (hint if isinstance(error, ImportError) else "")
            ) from error
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise UserError(
                f"model.target={target}: {error}. Is the package installed? A file works too: path/to/file.py:Name."
            ) from error
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"model.target={target}: {place} has no '{name}'. {nearest(name, public)}")
    return getattr(module, name)
