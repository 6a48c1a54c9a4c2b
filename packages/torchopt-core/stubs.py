"""Write what type checkers and editors read of that which is only known at run time.

`nox -s stubs` installs the packages and runs this; a test holds the files against it. Nothing is
listed here: the classes are those that derive from `DerivedOptimizer` and `DerivedMetaOptimizer`,
annotations and defaults those of their functional forms, names resolved as where they are written.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

NOTICE = "# Written by stubs.py (`nox -s stubs`): do not edit."
#: What derived classes derive from, and where it is.
_BASES = {
    "DerivedMetaOptimizer": "torchopt.optim._meta",
    "DerivedOptimizer": "torchopt.optim._stateful",
}
FOLDER = Path(__file__).resolve().parent / "src" / "torchopt"


class Names:
    """The import statements that give a stub the names in its annotations."""

    def __init__(self) -> None:
        # by name, the module and the name there; None stands for the module itself
        self._origins: dict[str, tuple[str, str | None]] = {}

    def add(self, name: str, module: str, attribute: str | None) -> None:
        """Import what a module has by the name of `attribute`, or, without one, the module."""
        origin = module, attribute
        known = self._origins.setdefault(name, origin)
        if known != origin and _resolve(*known) is not _resolve(*origin):
            raise ValueError(
                f"`{name}` stands for different things in {known[0]} and in {module}: rename one"
            )

    def add_all(self, annotation: str, module: ModuleType) -> None:
        """Import what an annotation in a module refers to."""
        here = _imports(module)
        for node in ast.walk(ast.parse(annotation, mode="eval")):
            if not isinstance(node, ast.Name):
                continue
            if node.id in here:
                self.add(node.id, *here[node.id])
            elif hasattr(module, node.id):
                self.add(node.id, module.__name__, node.id)
            elif not hasattr(builtins, node.id):
                raise NameError(f"`{node.id}` in {annotation!r} is unknown in {module.__name__}")

    def __str__(self) -> str:
        statements = []
        for name, (module, attribute) in self._origins.items():
            what = f"import {module}" if attribute is None else f"from {module} import {attribute}"
            statements.append(what if name == (attribute or module) else f"{what} as {name}")
        return "\n".join(sorted(statements))


def _resolve(module: str, attribute: str | None) -> Any:
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def _imports(module: ModuleType) -> dict[str, tuple[str, str | None]]:
    """Return the names that a module imports, for type checkers only too, and from where."""
    found: dict[str, tuple[str, str | None]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found[alias.asname or root] = (alias.name if alias.asname else root, None)
        elif isinstance(node, ast.ImportFrom):
            target = "." * node.level + (node.module or "")
            home = importlib.util.resolve_name(target, module.__package__ or "")
            for alias in node.names:
                found[alias.asname or alias.name] = (home, alias.name)
    return found


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _default(value: Any) -> str:
    """Return a default as an expression; `...` where it is not one that a stub can hold."""
    try:
        shown = ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        shown = False
    return f" = {value!r}" if shown else " = ..."


def _inherited_annotation(cls: type[Any], name: str) -> tuple[str, ModuleType]:
    """Return the annotation of a constructor's parameter in the nearest class that has one."""
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameter = inspect.signature(vars(base)["__init__"]).parameters.get(name)
            if parameter is not None and parameter.annotation is not parameter.empty:
                return parameter.annotation, sys.modules[base.__module__]
    raise TypeError(f"nothing annotates `{name}` of {cls.__name__}")


def _parameters(cls: type[Any], names: Names) -> Iterator[str]:
    kinds = inspect.Parameter
    keyword_only = False
    for name, parameter in inspect.signature(cls).parameters.items():
        annotation, module = parameter.annotation, sys.modules[cls._functional.__module__]
        if annotation is parameter.empty:
            annotation, module = _inherited_annotation(cls, name)
        if not isinstance(annotation, str):
            raise TypeError(
                f"the annotation of `{name}` in {module.__name__} is not text: begin the module "
                "with `from __future__ import annotations`"
            )
        names.add_all(annotation, module)
        if parameter.kind is kinds.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        prefix = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else _default(parameter.default)
        yield f"{prefix}{name}: {annotation}{default}"


def derived_classes() -> list[type[Any]]:
    """Return the classes of the package that have the signature of a functional form."""
    importlib.import_module("torchopt")
    bases = [getattr(importlib.import_module(module), name) for name, module in _BASES.items()]
    found = {
        cls.__name__: cls
        for base in bases
        for cls in _subclasses(base)
        if "_functional" in vars(cls) and cls.__module__.startswith("torchopt.")
    }
    return [found[name] for name in sorted(found)]


def derived() -> str:
    """Return the stub of the bases of derived classes."""
    names = Names()
    blocks = []
    for cls in derived_classes():
        base = next(base.__name__ for base in cls.__mro__ if base.__name__ in _BASES)
        names.add(base, _BASES[base], base)
        lines = [
            f"class {cls.__name__}({base}):",
            "    def __init__(",
            "        self,",
            *(f"        {parameter}," for parameter in _parameters(cls, names)),
            "    ) -> None:",
            *textwrap.indent(f'r"""{(cls.__doc__ or "").rstrip()}\n"""', " " * 8).splitlines(),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join([f"{NOTICE}\n\n{names}", *blocks]) + "\n"


def _module_class(name: str, module: ModuleType) -> Iterator[str]:
    """Return the lines of a class with the members of a module, which may be modules, too."""
    yield f"class {name}(ModuleType):"
    for member in sorted(module.__all__):
        value, place = getattr(module, member), f"{module.__name__}.{member}"
        if isinstance(value, ModuleType):
            nested = f"{member.title()}Module"
            yield from (f"    {line}" for line in _module_class(nested, value))
            yield f"    {member}: {nested}"
        else:
            yield f"    {member} = " + (
                f"staticmethod({place})" if inspect.isfunction(value) else place
            )


def zero_order() -> str:
    """Return the stub of the module `torchopt_zero`, which is its decorator, too."""
    lines = _module_class("ZeroOrder", importlib.import_module("torchopt_zero"))
    imports = ["from types import ModuleType", "import torchopt_zero"]
    call = "    __call__ = staticmethod(torchopt_zero.zero_order)"
    return "\n".join([NOTICE, "", *imports, "", *lines, call, ""])


#: What is written, by its place in the import package.
STUBS: dict[str, Callable[[], str]] = {
    "optim/_derived.pyi": derived,
    "diff/_zero_order.pyi": zero_order,
}


if __name__ == "__main__":
    for place, write in STUBS.items():
        (FOLDER / place).write_text(write(), encoding="utf-8")
