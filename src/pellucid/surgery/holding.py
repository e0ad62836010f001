"""Adapters of a model by name: which there are, which is active, what belongs to each; switching and removing them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pellucid.arguments import checked
from pellucid.errors import UsageError, suggest
from pellucid.nn.base import Model
from pellucid.surgery.adapted import INSTEAD, Adapted, Adapters, Change, become, form_of


def adapters_of(module: nn.Module) -> Adapters | None:
    """The adapters of one module; None where nothing was ever adapted."""
    found = dict(module.named_children()).get("adapters")
    return found if isinstance(found, Adapters) else None


def held(model: nn.Module) -> list[tuple[str, nn.Module, Adapters]]:
    """(path, module, its adapters) for each module that has any."""
    found = ((path, module, adapters_of(module)) for path, module in model.named_modules())
    return [(path, module, adapters) for path, module, adapters in found if adapters is not None]


def names(model: nn.Module) -> list[str]:
    """The names of all adapters, in the order in which they came."""
    return list(dict.fromkeys(name for _, _, adapters in held(model) for name in adapters))


def active(model: nn.Module) -> str | None:
    """The name of the active adapter; None where there is none."""
    return next((adapters.active for _, _, adapters in held(model) if adapters.active is not None), None)


def changes(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, Change]]:
    """(path, module, change) for each module that an adapter changes."""
    for path, module, adapters in held(model):
        if name in adapters:
            change = adapters[name]
            assert isinstance(change, Change)
            yield path, module, change


@checked()
def switch(model: Model, name: str | None) -> None:
    """Let one adapter act, or with None no one: then the model is what it was before, to the bit. Nothing is reloaded.

    Raises UsageError for an adapter that the model does not have.
    """
    refuse_unknown(model, name)
    before = active(model)
    if name == before:
        return
    for each in (before, name):
        if each is not None:
            for _, module, change in changes(model, each):
                _exchange(module, change)
    for _, _, adapters in held(model):
        adapters.active = name if name is not None and name in adapters else None


def _exchange(module: nn.Module, change: Change) -> None:
    """Whole parameters and what stands instead of them change places."""
    for leaf in change.instead:
        parameter, other = module.get_parameter(leaf), change.get_buffer(f"{INSTEAD}{leaf}")
        parameter.data, other.data = other.data, parameter.data


def refuse_unknown(model: nn.Module, name: str | None) -> None:
    """Raise UsageError for an adapter that the model does not have."""
    if name is not None and name not in (known := names(model)):
        remedy = suggest(name, known) if known else "the model has no adapters: pellucid.surgery.adapt makes one"
        raise UsageError(f"the model has no adapter {name!r}", remedy)


@checked()
def remove(model: Model, name: str) -> None:
    """Take an adapter out; without any, the model's modules are of the classes that they had.

    Raises UsageError for an adapter that the model does not have.
    """
    refuse_unknown(model, name)
    if active(model) == name:
        switch(model, None)
    for _, module, adapters in held(model):
        if name in adapters:
            del adapters[name]
        if not adapters:
            detach(module)


def attach(path: str, module: nn.Module, name: str, change: Change) -> None:
    """Put a change beside the others of a module; one with factors needs the class that knows them."""
    adapters = adapters_of(module)
    if adapters is None:
        module.adapters = adapters = Adapters()
    form = form_of(path, module)
    if form is not None:
        become(module, form)
    adapters[name] = change
    adapters.train(module.training)


def detach(module: nn.Module) -> Adapters | None:
    """Take all adapters off a module, whose class is then the one that it had."""
    adapters = adapters_of(module)
    if adapters is not None:
        del module.adapters
    if isinstance(module, Adapted):
        become(module, module.plain)
    return adapters


def keep_whole(model: nn.Module, path: str, name: str, value: Tensor | None = None) -> None:
    """Let an adapter, which is not active, have another value of a whole parameter: ``value``, or one that begins as
    the base's."""
    place, _, leaf = path.rpartition(".")
    module = model.get_submodule(place)
    base, adapters = module.get_parameter(leaf), adapters_of(module)
    if adapters is None or name not in adapters:
        attach(place, module, name, Change())
    other = base.detach().clone() if value is None else value.to(base.device, base.dtype)
    change = dict(changes_of(module))[name]
    change.register_buffer(f"{INSTEAD}{leaf}", other)


def changes_of(module: nn.Module) -> Iterator[tuple[str, Change]]:
    """The changes of one module, by the adapter's name."""
    for name, change in (adapters_of(module) or Adapters()).items():
        assert isinstance(change, Change)
        yield name, change


def parameters_of(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """All that belongs to an adapter, which is active, by its names in the model. Raises UsageError if it is not."""
    refuse_unknown(model, name)
    if active(model) != name:
        raise UsageError(f"the adapter {name!r} is not active", "switch to it first")
    found: dict[str, nn.Parameter] = {}
    for path, module, change in changes(model, name):
        prefix = f"{path}." if path else ""
        found |= {f"{prefix}adapters.{name}.{leaf}": each for leaf, each in change.named_parameters()}
        found |= {f"{prefix}{leaf}": module.get_parameter(leaf) for leaf in change.instead}
    return found


@checked()
def train_only(model: Model, name: str) -> None:
    """The parameters of this adapter take gradients, and no others do. Raises UsageError where it is not active."""
    own = parameters_of(model, name)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in own)
