"""The front door: which name of `torchopt` lives in which extension, and how it gets here.

`TARGETS` maps each name to its home, written like an entry point: ``"package.module"`` for a
module, ``"package.module:attribute"`` for anything else. Nothing is copied or wrapped. A facade
such as ``torchopt/visual.py`` puts the extension's module into ``sys.modules`` under its own name,
and submodules follow through :class:`_AliasFinder`, so ``torchopt.distributed.autograd`` is
``torchopt_dist.autograd``, loaded once.

Adding an extension is one row of `EXTENSIONS`, its rows of `TARGETS`, and a facade for each module.
"""

from __future__ import annotations

import dis
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from torchopt.kernels import PROTOCOL

__all__ = [
    "EXTENSIONS",
    "TARGETS",
    "Extension",
    "MissingExtensionError",
    "accelerated_op_available",
    "alias",
    "attributes",
    "is_installed",
    "kernel_provider",
    "optional",
    "require",
]


class Extension(NamedTuple):
    """A distribution that adds to `torchopt`."""

    distribution: str
    # of `torchopt-core`, that asks for it
    extra: str
    # what it is for, in a few words
    purpose: str


EXTENSIONS = {
    "torchopt_accel": Extension("torchopt-accel", "accel", "compiled optimizer steps"),
    "torchopt_implicit": Extension(
        "torchopt-implicit", "implicit", "implicit differentiation and linear solvers"
    ),
    "torchopt_zero": Extension("torchopt-zero", "zero", "zero-order gradient estimators"),
    "torchopt_dist": Extension("torchopt-dist", "dist", "task parallelism"),
    "torchopt_viz": Extension(
        "torchopt-viz", "viz", "pictures of gradient graphs and optimizer trajectories"
    ),
}

TARGETS = {
    "torchopt.accelerated_op": "torchopt_accel",
    "torchopt.transform.scale_by_accelerated_adam": "torchopt_accel:scale_by_accelerated_adam",
    "torchopt.diff.ImplicitMetaGradientModule": "torchopt_implicit:ImplicitMetaGradientModule",
    "torchopt.diff.ZeroOrderGradientModule": "torchopt_zero:ZeroOrderGradientModule",
    "torchopt.diff.implicit": "torchopt_implicit",
    "torchopt.linalg": "torchopt_implicit.linalg",
    "torchopt.linear_solve": "torchopt_implicit.linear_solve",
    "torchopt.nn.ImplicitMetaGradientModule": "torchopt_implicit:ImplicitMetaGradientModule",
    "torchopt.diff.zero_order": "torchopt_zero",
    "torchopt.nn.ZeroOrderGradientModule": "torchopt_zero:ZeroOrderGradientModule",
    "torchopt.distributed": "torchopt_dist",
    "torchopt.visual": "torchopt_viz",
}

# below a facade, what has another place in the extension than in 0.7
SUBMODULES = {
    "torchopt.diff.implicit.decorator": "torchopt_implicit._root",
    "torchopt.diff.implicit.nn": "torchopt_implicit",
    "torchopt.diff.implicit.nn.module": "torchopt_implicit._module",
    "torchopt.diff.zero_order.decorator": "torchopt_zero._decorator",
    "torchopt.diff.zero_order.nn": "torchopt_zero",
    "torchopt.diff.zero_order.nn.module": "torchopt_zero._module",
    "torchopt.linalg.utils": "torchopt_implicit._matvecs",
    "torchopt.linear_solve.utils": "torchopt_implicit._matvecs",
}


class MissingExtensionError(ImportError):
    """A part of `torchopt` was used whose distribution is not installed."""


def is_installed(package: str) -> bool:
    """Return whether an extension's import package can be found, without importing it."""
    if sys.modules.get(package) is not None:
        return True
    spec = importlib.util.find_spec(package)
    # Without an origin it is a bare folder of that name, such as an uninstallation leaves behind.
    return spec is not None and spec.origin is not None


def require(path: str) -> Any:
    """Return what a name of `TARGETS` stands for, importing its extension.

    Args:
        path: The name behind the front door, e.g. ``"torchopt.linalg"``.

    Raises:
        MissingExtensionError: If the distribution is not installed. An extension that is installed
            and fails to import raises its own error.
    """
    module, _, attribute = TARGETS[path].partition(":")
    package = module.partition(".")[0]
    if not is_installed(package):
        raise MissingExtensionError(_missing(path), name=package)
    target = importlib.import_module(module)
    return getattr(target, attribute) if attribute else target


_optional: dict[str, ModuleType | None] = {}


def optional(package: str) -> ModuleType | None:
    """Return an extension, imported, or ``None`` if its distribution is not installed.

    The answer is kept for the life of the process, so asking on every step costs a dict look-up.

    Args:
        package: The import package, e.g. ``"torchopt_accel"``.
    """
    try:
        return _optional[package]
    except KeyError:
        if package not in EXTENSIONS:
            raise ValueError(
                f"`package` must be one of {', '.join(EXTENSIONS)}, got {package!r}"
            ) from None
    found = importlib.import_module(package) if is_installed(package) else None
    return _optional.setdefault(package, found)


def kernel_provider() -> Any:
    """Return what offers kernels, or None if nothing does by this version of the protocol."""
    if not is_installed("torchopt_accel"):
        return None
    try:
        provider = getattr(optional("torchopt_accel"), "PROVIDER", None)
    except ImportError as error:
        provider, reason = None, f": {error}"
    else:
        reason = ""
    if getattr(provider, "protocol", None) == PROTOCOL:
        return provider
    warnings.warn(
        "the installed torchopt-accel does not go with this torchopt-core, so its kernels are not "
        f"used{reason}. Upgrade it with `pip install --upgrade torchopt-accel`, or take it out "
        "with `pip uninstall torchopt-accel`",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def accelerated_op_available(devices: Any = None) -> bool:
    """Return whether the compiled optimizer steps of `torchopt-accel` are ready to run.

    Args:
        devices: A device or a sequence of devices that must all have them; ``None`` asks for every
            kind of device that the extension supports.

    Returns:
        ``False`` if the extension is not installed, else its own answer.

    Example:
        >>> import torchopt
        >>> isinstance(torchopt.accelerated_op_available("cpu"), bool)
        True
    """
    accel = optional("torchopt_accel")
    return accel is not None and bool(accel.is_available(devices))


def alias(facade: str) -> ModuleType:
    """Put the extension's module in the place of the facade that calls this.

    Args:
        facade: The facade's ``__name__``.

    Raises:
        MissingExtensionError: If the distribution is not installed.
    """
    module: ModuleType = require(facade)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)  # ahead of the one that would load submodules again
    sys.modules[facade] = module
    return module


def attributes(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the ``__getattr__`` and ``__dir__`` of a module, which load extensions on first use.

    Using a part whose distribution is missing is an :class:`ImportError`. Asking whether it is
    there (``hasattr``, ``getattr`` with a default, `inspect`, `pickle`) is answered by an
    :class:`AttributeError`, the only "no" that these understand; `dir` leaves it out, as it does
    what the module imports for its own use.

    Args:
        module: The module's ``__name__``.
    """
    prefix = f"{module}."
    names = {path[len(prefix) :]: path for path in TARGETS if path.rpartition(".")[0] == module}

    def __getattr__(name: str) -> Any:
        path = names.get(name)
        if path is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            is_module = ":" not in TARGETS[path]
            value = importlib.import_module(path) if is_module else require(path)
        except MissingExtensionError as error:
            # One class cannot derive from both errors: their C layouts conflict.
            if _is_used(sys._getframe(1)):
                raise
            raise AttributeError(str(error)) from error
        setattr(sys.modules[module], name, value)
        return value

    def __dir__() -> list[str]:
        own = vars(sys.modules[module])
        public = {name for name in own if name.startswith("_") or name in own.get("__all__", ())}
        return sorted(public | {name for name in names if is_installed(_package(names[name]))})

    return __getattr__, __dir__


def _is_used(frame: FrameType | None) -> bool:
    """Return whether a frame is at an attribute access or an import, not at a call that asks."""
    while frame is not None and frame.f_code.co_name == "__getattr__":  # asks for its caller
        frame = frame.f_back
    if frame is None:
        return True
    instruction = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return instruction in {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"}


def _package(path: str) -> str:
    return TARGETS[path].partition(":")[0].partition(".")[0]


def _missing(path: str) -> str:
    distribution, extra, purpose = EXTENSIONS[_package(path)]
    return (
        f"`{path}` is part of `{distribution}` ({purpose}), which is not installed. "
        f"Install it with\n\n"
        f"    pip install {distribution}\n\n"
        f"or, as an extra of the core,\n\n"
        f'    pip install "torchopt-core[{extra}]"\n'
    )


class _AliasFinder(MetaPathFinder):
    """Finds the submodules of facades: the extension's own, under the facade's name."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        for facade, home in TARGETS.items():
            if fullname.startswith(f"{facade}."):
                real = SUBMODULES.get(fullname, home + fullname[len(facade) :])
                if importlib.util.find_spec(real) is not None:
                    return ModuleSpec(fullname, _AliasLoader(real))
        return None


class _AliasLoader(Loader):
    """Loads a module that has another name, by putting it in the place of the new, empty one."""

    def __init__(self, real: str) -> None:
        self.real = real

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self.real)


_finder = _AliasFinder()
