"""The base of modules that are solved or estimated with respect to someone else's parameters."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator
from typing import Any

import optree
import torch
from torch import nn
from typing_extensions import Self

__all__ = ["MetaGradientModule"]


class MetaGradientModule(nn.Module):
    """A module that keeps the parameters it was given apart from its own.

    What is assigned as an attribute is *meta* if it came in through the constructor: a tensor that
    requires grad or a module among the arguments, in any tree of them, with its parameters and
    submodules. Everything else is the module's own, as in :class:`torch.nn.Module`; a tensor that
    requires grad is an own parameter, :class:`torch.nn.Parameter` or not, so own parameters may be
    replaced by functions of the meta-parameters.

    Whatever walks over the module sees the own part only: ``parameters()``, ``modules()``,
    ``state_dict()``, ``to()``, ``train()``, ``zero_grad()``. The meta part belongs to others and
    is reached by ``meta_parameters()`` and ``meta_modules()``. A module built in the constructor
    is own even where it wraps a meta-module; register it with :meth:`register_meta_module`.
    :func:`copy.deepcopy` and pickling copy both parts, :func:`torchopt.module_clone` the own part.

    Args:
        *args: The arguments of the subclass's constructor.
        **kwargs: Likewise.

    Example:
        >>> import torch, torchopt
        >>> class Inner(torchopt.nn.MetaGradientModule):
        ...     def __init__(self, prior, strength):
        ...         super().__init__()
        ...         self.prior = prior
        ...         self.strength = strength
        ...         self.net = torch.nn.Linear(1, 1)
        >>> inner = Inner(torch.nn.Linear(1, 1), torch.tensor(0.1, requires_grad=True))
        >>> [name for name, _ in inner.named_parameters()]
        ['net.weight', 'net.bias']
        >>> [name for name, _ in inner.named_meta_parameters()]
        ['strength', 'prior.weight', 'prior.bias']
    """

    _meta_inputs: set[torch.Tensor | nn.Module]
    _meta_parameters: dict[str, torch.Tensor | None]
    _meta_modules: dict[str, nn.Module | None]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the tensors and modules among the arguments."""
        self = super().__new__(cls)
        arguments: Any = (args, kwargs)
        leaves = optree.tree_leaves(arguments, none_is_leaf=True)
        inputs = {x for leaf in leaves for x in _inputs_of(leaf)}
        vars(self).update(_meta_inputs=inputs, _meta_parameters={}, _meta_modules={})
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __getattr__(self, name: str) -> Any:
        for members in ("_meta_parameters", "_meta_modules"):
            if name in vars(self).get(members, {}):
                return vars(self)[members][name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_meta = isinstance(value, (torch.Tensor, nn.Module)) and value in self._meta_inputs
        if isinstance(value, torch.Tensor) and (is_meta or self._is_parameter(name, value)):
            self._forget(name)
            (self.register_meta_parameter if is_meta else self.register_parameter)(name, value)
        elif name in vars(self).get("_parameters", ()) and value is not None:
            raise _cannot_assign(value, "parameter", name, "torch.Tensor")
        elif name in self._meta_parameters:
            if value is not None:
                expected = "torch.Tensor that requires grad"
                raise _cannot_assign(value, "meta-parameter", name, expected)
            self._meta_parameters[name] = None
        elif is_meta:
            self._forget(name)
            self.register_meta_module(name, value)
        elif isinstance(value, nn.Module):
            super().__setattr__(name, value)
            self._meta_modules.pop(name, None)
        elif name in self._meta_modules:
            if value is not None:
                raise _cannot_assign(value, "meta-module", name, "torch.nn.Module")
            self._meta_modules[name] = None
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        for members in (self._meta_parameters, self._meta_modules):
            if name in members:
                del members[name]
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._meta_parameters, *self._meta_modules})  # type: ignore[no-untyped-call]

    @reprlib.recursive_repr("...")
    def extra_repr(self) -> str:
        """Return the lines that show the meta-modules."""
        return "\n".join(
            f"({name}) [meta]: {module!r}" for name, module in self._meta_modules.items()
        )

    def _is_parameter(self, name: str, tensor: torch.Tensor) -> bool:
        if isinstance(tensor, nn.Parameter) or name in vars(self).get("_parameters", ()):
            return True
        return tensor.requires_grad and name not in vars(self).get("_buffers", ())

    def _forget(self, name: str) -> None:
        for kind in ("_parameters", "_buffers", "_modules", "_meta_parameters", "_meta_modules"):
            vars(self).get(kind, {}).pop(name, None)
        vars(self).get("_non_persistent_buffers_set", set()).discard(name)
        vars(self).pop(name, None)

    def register_parameter(self, name: str, param: torch.Tensor | None) -> None:
        """Add an own parameter: any tensor, a function of other tensors included.

        Raises:
            TypeError: ``param`` is not a tensor.
            ValueError: ``param`` is a meta-parameter.
        """
        if param is not None and not isinstance(param, torch.Tensor):
            raise TypeError(
                f"cannot assign '{torch.typename(param)}' object to parameter '{name}' "
                "(torch.Tensor or None required)"
            )
        if param in self._meta_inputs:
            raise ValueError(
                f"cannot assign Tensor that is a meta-parameter to parameter '{name}'. "
                "Use self.register_meta_parameter() instead."
            )
        if param is None or isinstance(param, nn.Parameter):
            super().register_parameter(name, param)
        else:
            super().register_parameter(name, None)
            self._parameters[name] = param  # type: ignore[assignment]

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add an own child module.

        Raises:
            TypeError: ``module`` is not a module.
            ValueError: ``module`` is a meta-module.
        """
        if isinstance(module, nn.Module) and module in self._meta_inputs:
            raise ValueError(
                f"cannot add module that is a meta-module to module '{name}'. "
                "Use self.add_meta_module() instead."
            )
        super().add_module(name, module)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        """Add an own child module, as :meth:`add_module` does."""
        self.add_module(name, module)

    def register_meta_parameter(self, name: str, param: torch.Tensor | None) -> None:
        """Add a meta-parameter, whether or not it is among the constructor's arguments.

        Raises:
            TypeError: ``param`` is not a tensor.
            ValueError: ``param`` does not require grad.
        """
        self._check_name("meta-parameter", name, self._meta_parameters)
        if param is not None and not isinstance(param, torch.Tensor):
            raise TypeError(
                f"cannot assign '{torch.typename(param)}' object to meta-parameter '{name}' "
                "(torch.Tensor or None required)"
            )
        if param is not None:
            if not (param.requires_grad or isinstance(param, nn.Parameter)):
                raise ValueError(
                    f"cannot assign Tensor that `requires_grad=False` to meta-parameter '{name}'"
                )
            self._meta_inputs.add(param)
        self._meta_parameters[name] = param

    def add_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module, whether or not it is among the constructor's arguments.

        Raises:
            TypeError: ``meta_module`` is not a module.
        """
        if meta_module is not None and not isinstance(meta_module, nn.Module):
            raise TypeError(f"{torch.typename(meta_module)} is not a Module subclass")
        self._check_name("meta-module", name, self._meta_modules)
        if meta_module is not None:
            self._meta_inputs.update(_inputs_of(meta_module))
        self._meta_modules[name] = meta_module

    def register_meta_module(self, name: str, meta_module: nn.Module | None) -> None:
        """Add a meta-module, as :meth:`add_meta_module` does."""
        self.add_meta_module(name, meta_module)

    def _check_name(self, kind: str, name: str, members: dict[str, Any]) -> None:
        if "_parameters" not in vars(self):
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise TypeError(f"{kind} name should be a string. Got {torch.typename(name)}")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(self, name) and name not in members:
            raise KeyError(f"attribute '{name}' already exists")

    def named_meta_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the meta-parameters with their names, each once.

        Args:
            prefix: What the names start with, followed by a dot.
            recurse: Whether to include the parameters of the meta-modules, and the meta-parameters
                of own submodules.
        """
        memo: set[torch.Tensor] = set()
        owners = self.named_modules(prefix=prefix) if recurse else [(prefix, self)]
        meta_modules = self.named_meta_modules(prefix=prefix) if recurse else ()
        members = itertools.chain(
            ((path, vars(owner).get("_meta_parameters", {})) for path, owner in owners),
            ((path, module._parameters) for path, module in meta_modules),
        )
        for path, parameters in members:
            for name, param in parameters.items():
                if param is not None and param not in memo:
                    memo.add(param)
                    yield _join(path, name), param

    def meta_parameters(self, recurse: bool = True) -> Iterator[torch.Tensor]:
        """Yield the meta-parameters; see :meth:`named_meta_parameters`."""
        for _, param in self.named_meta_parameters(recurse=recurse):
            yield param

    def named_meta_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the meta-modules that are attributes of this module with their names, each once."""
        memo: set[nn.Module] = set()
        for name, module in self._meta_modules.items():
            if module is not None and module not in memo:
                memo.add(module)
                yield name, module

    def meta_children(self) -> Iterator[nn.Module]:
        """Yield the meta-modules that are attributes of this module."""
        for _, module in self.named_meta_children():
            yield module

    def named_meta_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the meta-modules of this module and its own submodules, with all they contain.

        Args:
            memo: The modules already yielded.
            prefix: What the names start with, followed by a dot.
            remove_duplicate: Whether a module is yielded once only.
        """
        memo = set() if memo is None else memo
        for path, owner in self.named_modules(prefix=prefix):
            for name, module in vars(owner).get("_meta_modules", {}).items():
                if module is not None:
                    yield from module.named_modules(memo, _join(path, name), remove_duplicate)

    def meta_modules(self) -> Iterator[nn.Module]:
        """Yield the meta-modules; see :meth:`named_meta_modules`."""
        for _, module in self.named_meta_modules():
            yield module


def _inputs_of(leaf: Any) -> Iterator[torch.Tensor | nn.Module]:
    if isinstance(leaf, nn.Module):
        yield from leaf.modules()
        yield from leaf.parameters()
    elif isinstance(leaf, torch.Tensor) and leaf.requires_grad:
        yield leaf


def _cannot_assign(value: Any, kind: str, name: str, expected: str) -> TypeError:
    return TypeError(
        f"cannot assign '{torch.typename(value)}' as {kind} '{name}' ({expected} or None expected)"
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
