"""Every part has one name under `torchopt`, whatever is installed.

The extensions here are stand-ins written to a temporary folder, or hidden where they are installed.
"""

from __future__ import annotations

import copy
import doctest
import importlib
import importlib.util
import inspect
import pickle
import pkgutil
import rlcompleter
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import torchopt
from torchopt import _extensions
from torchopt._extensions import MissingExtensionError, optional

# facade: import package, distribution, extra, something in it
MODULES = {
    "torchopt.accelerated_op": ("torchopt_accel", "torchopt-accel", "accel", "is_available"),
    "torchopt.diff.implicit": ("torchopt_implicit", "torchopt-implicit", "implicit", "custom_root"),
    "torchopt.linalg": ("torchopt_implicit.linalg", "torchopt-implicit", "implicit", "cg"),
    "torchopt.linear_solve": (
        "torchopt_implicit.linear_solve",
        "torchopt-implicit",
        "implicit",
        "solve_cg",
    ),
    "torchopt.diff.zero_order": ("torchopt_zero", "torchopt-zero", "zero", "zero_order"),
    "torchopt.distributed": ("torchopt_dist", "torchopt-dist", "dist", "auto_init_rpc"),
    "torchopt.visual": ("torchopt_viz", "torchopt-viz", "viz", "make_dot"),
}
OBJECTS = {
    "torchopt.nn.ImplicitMetaGradientModule": (
        "torchopt_implicit",
        "torchopt-implicit",
        "implicit",
    ),
    "torchopt.nn.ZeroOrderGradientModule": ("torchopt_zero", "torchopt-zero", "zero"),
    "torchopt.transform.scale_by_accelerated_adam": ("torchopt_accel", "torchopt-accel", "accel"),
}
PACKAGES = ["torchopt_accel", "torchopt_implicit", "torchopt_zero", "torchopt_dist", "torchopt_viz"]
PARTS = {path: row[1:3] for path, row in MODULES.items()} | {
    path: row[1:] for path, row in OBJECTS.items()
}

FILES = {
    "torchopt_accel/__init__.py": """
        import torchopt
        def is_available(devices=None): return devices in (None, "cpu")
        def scale_by_accelerated_adam(): ...
    """,
    "torchopt_implicit/__init__.py": """
        from torchopt_implicit import linalg, linear_solve
        class ImplicitMetaGradientModule(__import__("torchopt").nn.MetaGradientModule): ...
        def custom_root(): ...
    """,
    "torchopt_implicit/linalg.py": "def cg(): ...",
    "torchopt_implicit/linear_solve.py": "def solve_cg(): ...",
    "torchopt_zero/__init__.py": """
        class ZeroOrderGradientModule: ...
        def zero_order(distribution, method="naive"):
            return lambda function: (distribution, method, function)
    """,
    "torchopt_dist/__init__.py": """
        from torchopt_dist import api, autograd, world
        def auto_init_rpc(): ...
    """,
    "torchopt_dist/api.py": "def parallelize(): ...",
    "torchopt_dist/autograd.py": "class context: ...",
    "torchopt_dist/world.py": "from torchopt_dist import api",
    "torchopt_dist/late.py": "from torchopt_dist.inner import deep",
    "torchopt_dist/inner/__init__.py": "",
    "torchopt_dist/inner/deep.py": "",
    "torchopt_viz/__init__.py": "def make_dot(): ...",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))


def is_part(name: str) -> bool:
    """Return whether a module is an extension's, under either of its names."""
    return any(name == part or name.startswith(f"{part}.") for part in [*PACKAGES, *MODULES])


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The state of a process that has used no extension."""
    attributes = [path.rpartition(".")[::2] for path in PARTS]
    for parent, name in attributes:
        monkeypatch.delitem(vars(importlib.import_module(parent)), name, raising=False)
    for name in filter(is_part, list(sys.modules)):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(_extensions, "_optional", {})
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield
    for parent, name in attributes:
        vars(sys.modules[parent]).pop(name, None)
    for name in filter(is_part, list(sys.modules)):
        del sys.modules[name]


@pytest.fixture
def missing(unloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No extension is installed."""
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def installed(unloaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for all five extensions are installed in the folder."""
    write(tmp_path, FILES)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def check_message(error: ImportError, path: str) -> None:
    distribution, extra = PARTS[path]
    for words in (
        f"`{path}`",
        f"`{distribution}`",
        "not installed",
        f"pip install {distribution}\n",
        f'pip install "torchopt-core[{extra}]"',
    ):
        assert words in str(error)


class TestWithoutExtensions:
    pytestmark = pytest.mark.usefixtures("missing")

    @pytest.mark.parametrize("path", PARTS)
    def test_using_a_part_says_what_to_install(self, path: str) -> None:
        with pytest.raises(MissingExtensionError) as caught:
            eval(path, {"torchopt": torchopt})
        check_message(caught.value, path)

    @pytest.mark.parametrize("path", MODULES)
    @pytest.mark.parametrize(
        "statement",
        [
            "import {path}",
            "import {path} as part",
            "from {parent} import {name}",
            "from {path} import {content}",
            "import {path}.submodule",
        ],
    )
    def test_importing_a_module_says_what_to_install(self, path: str, statement: str) -> None:
        parent, _, name = path.rpartition(".")
        with pytest.raises(ImportError) as caught:
            exec(statement.format(path=path, parent=parent, name=name, content=MODULES[path][3]))
        check_message(caught.value, path)

    @pytest.mark.parametrize("path", OBJECTS)
    def test_importing_an_object_says_what_to_install(self, path: str) -> None:
        parent, _, name = path.rpartition(".")
        with pytest.raises(ImportError) as caught:
            exec(f"from {parent} import {name}")
        check_message(caught.value, path)

    def test_using_a_part_in_a_warm_function_says_what_to_install(self) -> None:
        for _ in range(100):  # past the interpreter's specialization of instructions
            with pytest.raises(ImportError):
                torchopt.visual.make_dot()
            assert not hasattr(torchopt, "visual")

    @pytest.mark.parametrize("path", PARTS)
    def test_a_missing_part_answers_no_to_questions(self, path: str) -> None:
        parent_path, _, name = path.rpartition(".")
        parent = importlib.import_module(parent_path)
        assert not hasattr(parent, name)
        assert getattr(parent, name, "default") == "default"
        assert name not in dir(parent)
        assert name not in dict(inspect.getmembers(parent))

    @pytest.mark.parametrize("module", [torchopt, torchopt.nn, torchopt.diff, torchopt.transform])
    def test_whatever_is_listed_can_be_had(self, module: ModuleType) -> None:
        assert all(hasattr(module, name) for name in dir(module))
        assert set(getattr(module, "__all__", ())) <= set(dir(module))

    @pytest.mark.parametrize("module", [torchopt, torchopt.nn, torchopt.diff, torchopt.transform])
    def test_what_is_imported_for_own_use_is_not_listed(self, module: ModuleType) -> None:
        public = {name for name in dir(module) if not name.startswith("_")}
        assert public <= set(module.__all__)

    def test_tab_completion_works(self) -> None:
        completer = rlcompleter.Completer({"torchopt": torchopt})
        matches = []
        while (match := completer.complete("torchopt.ad", len(matches))) is not None:
            matches.append(match)
        assert "torchopt.adam(" in matches
        assert completer.complete("torchopt.vis", 0) is None

    def test_pickling_looks_through_all_modules_unharmed(self) -> None:
        class Unplaced:  # an object that does not say its module is searched for in every one
            __module__ = None

        Unplaced.__qualname__ = "visual"
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(Unplaced)
        state = torchopt.adam().init({"w": torch.zeros(2)})
        assert torch.equal(
            torchopt.pytree.tree_leaves(pickle.loads(pickle.dumps(copy.deepcopy(state))))[0],
            torchopt.pytree.tree_leaves(state)[0],
        )

    def test_inspection_works(self) -> None:
        assert inspect.unwrap(torchopt) is torchopt  # type: ignore[arg-type]
        assert doctest.DocTestFinder().find(torchopt.diff) is not None
        walked = {module.name for module in pkgutil.walk_packages(torchopt.__path__, "torchopt.")}
        assert set(MODULES) <= walked

    def test_star_imports_leave_missing_parts_out(self) -> None:
        for package in ("torchopt", "torchopt.diff", "torchopt.nn", "torchopt.transform"):
            exec(f"from {package} import *", {})

    @pytest.mark.parametrize("name", ["no_such_name", "__wrapped__"])
    def test_unknown_names_are_ordinary_attribute_errors(self, name: str) -> None:
        with pytest.raises(AttributeError, match=f"module 'torchopt' has no attribute '{name}'"):
            eval(f"torchopt.{name}")

    def test_kernels_are_not_available(self) -> None:
        assert torchopt.accelerated_op_available() is False
        assert torchopt.accelerated_op_available("cpu") is False
        assert optional("torchopt_accel") is None

    def test_the_folder_an_uninstallation_leaves_is_not_an_extension(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "torchopt_viz" / "__pycache__").mkdir(parents=True)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])  # not where it may be installed
        monkeypatch.delitem(sys.modules, "torchopt_viz")
        with pytest.raises(MissingExtensionError):
            torchopt.visual  # noqa: B018
        assert "visual" not in dir(torchopt)


class TestWithExtensions:
    pytestmark = pytest.mark.usefixtures("installed")

    @pytest.mark.parametrize("path", MODULES)
    @pytest.mark.parametrize("first", ["extension", "facade", "attribute"])
    def test_modules_are_the_extensions_own(self, path: str, first: str) -> None:
        home, _, _, content = MODULES[path]
        if first == "extension":
            importlib.import_module(home)
        if first == "facade":
            importlib.import_module(path)
        module = eval(path)
        assert module is importlib.import_module(home) is importlib.import_module(path)
        assert module.__name__ == home == module.__spec__.name
        assert getattr(module, content) is getattr(sys.modules[home], content)

    @pytest.mark.parametrize("path", OBJECTS)
    def test_objects_are_the_extensions_own(self, path: str) -> None:
        home, name = OBJECTS[path][0], path.rpartition(".")[2]
        assert eval(path) is getattr(importlib.import_module(home), name)

    @pytest.mark.parametrize(
        "statement",
        [
            "import torchopt.distributed.autograd as autograd",
            "from torchopt.distributed import autograd",
            "from torchopt import distributed; autograd = distributed.autograd",
            "import torchopt; autograd = torchopt.distributed.autograd",
            "import torchopt.distributed as todist; autograd = todist.autograd",
        ],
    )
    def test_submodules_are_the_extensions_own(self, statement: str) -> None:
        names: dict[str, Any] = {}
        exec(statement, names)
        assert names["autograd"] is importlib.import_module("torchopt_dist.autograd")
        assert sys.modules["torchopt_dist.autograd"].__name__ == "torchopt_dist.autograd"

    @pytest.mark.parametrize(
        ("facade", "home"),
        [
            ("torchopt.distributed.late", "torchopt_dist.late"),
            ("torchopt.distributed.inner.deep", "torchopt_dist.inner.deep"),
            ("torchopt.diff.implicit.linalg", "torchopt_implicit.linalg"),
        ],
    )
    @pytest.mark.parametrize("facade_first", [True, False])
    def test_no_file_is_loaded_twice(self, facade: str, home: str, facade_first: bool) -> None:
        order = (facade, home) if facade_first else (home, facade)
        first, second = map(importlib.import_module, order)
        assert first is second
        loaded: dict[str, set[int]] = {}
        for name, module in list(sys.modules.items()):
            if is_part(name):
                loaded.setdefault(str(module.__file__), set()).add(id(module))
        assert all(len(modules) == 1 for modules in loaded.values()), loaded

    def test_submodules_that_do_not_exist_are_not_found(self) -> None:
        assert importlib.util.find_spec("torchopt.distributed.nothing") is None
        with pytest.raises(ModuleNotFoundError, match=r"torchopt\.distributed\.nothing"):
            importlib.import_module("torchopt.distributed.nothing")
        with pytest.raises(ImportError, match="cannot import name 'nothing'"):
            exec("from torchopt.distributed import nothing")

    def test_the_estimator_module_is_its_decorator(self) -> None:
        def loss() -> None: ...

        assert torchopt.diff.zero_order("noise", method="forward")(loss) == (
            "noise",
            "forward",
            loss,
        )
        assert torchopt.diff.zero_order.zero_order("noise")(loss) == ("noise", "naive", loss)
        assert str(inspect.signature(torchopt.diff.zero_order)) == "(distribution, method='naive')"

    def test_a_module_that_can_be_called_already_stays_as_it_is(self, installed: Path) -> None:
        source = """
            import sys, types
            class Own(types.ModuleType):
                def __call__(self): return "own"
            sys.modules[__name__].__class__ = Own
        """
        write(installed, {"torchopt_zero/__init__.py": source})
        assert torchopt.diff.zero_order() == "own"

    def test_listing_names_loads_nothing(self) -> None:
        assert "visual" in dir(torchopt)
        assert {"implicit", "zero_order"} <= set(dir(torchopt.diff))
        assert not any(map(is_part, sys.modules))

    def test_a_part_is_looked_up_once(self) -> None:
        assert hasattr(torchopt.nn, "ImplicitMetaGradientModule")
        assert "ImplicitMetaGradientModule" in vars(torchopt.nn)

    def test_the_extension_says_whether_kernels_are_available(self) -> None:
        assert torchopt.accelerated_op_available("cpu") is True
        assert torchopt.accelerated_op_available("cuda") is False
        assert torchopt.accelerated_op.is_available("cpu") is True
        assert optional("torchopt_accel") is sys.modules["torchopt_accel"]

    @pytest.mark.parametrize(
        "failure", ["import no_such_dependency", "raise RuntimeError('built for another machine')"]
    )
    @pytest.mark.parametrize(
        "use", ["torchopt.visual", "__import__('torchopt.visual')", "hasattr(torchopt, 'visual')"]
    )
    def test_an_extension_that_fails_shows_its_own_error(
        self, installed: Path, failure: str, use: str
    ) -> None:
        write(installed, {"torchopt_viz/__init__.py": failure})
        with pytest.raises((ImportError, RuntimeError)) as caught:
            eval(use)
        assert not isinstance(caught.value, MissingExtensionError)
        assert str(caught.value) in (
            "No module named 'no_such_dependency'",
            "built for another machine",
        )


def test_asking_for_an_unknown_extension_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"`package` must be one of torchopt_accel, .*'torchopt_x'"
    ):
        optional("torchopt_x")


def test_import_is_light(tmp_path: Path) -> None:
    """Neither installed extensions nor anything of weight is loaded by `import torchopt`."""
    write(tmp_path, FILES)
    heavy = ["graphviz", "matplotlib", "torch._dynamo", "torch._inductor", "sympy", *PACKAGES]
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import torch, optree
        before = set(sys.modules)
        import torchopt
        added = {{name for name in set(sys.modules) - before if not name.startswith("torchopt")}}
        assert not any("rpc" in name for name in added), added
        assert not any(name.startswith("torch.") for name in added), added
        loaded = {{name for name in {heavy!r} if name in sys.modules and name not in before}}
        assert not loaded, loaded
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
