"""Try an installation as a user first meets it.

`python -I check.py DISTRIBUTION...` names the distributions of this project that must be installed;
the others must be missing. Nothing beyond them and what they depend on is needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pickle
import subprocess
import sys

HEAVY = ("functorch", "graphviz", "matplotlib", "torch._dynamo", "torch._inductor", "torchopt_")


def check_import_is_light() -> None:
    import optree  # noqa: F401
    import torch  # noqa: F401

    before = set(sys.modules)
    import torchopt  # noqa: F401

    added = sorted(name for name in set(sys.modules) - before if name.startswith(HEAVY))
    assert not added, f"import torchopt loads {added}"


def check_core_optimizes() -> None:
    import torch

    import torchopt

    params = {"w": torch.tensor([1.0, -2.0])}
    optimizer = torchopt.adam(lr=0.1)
    updates, state = optimizer.update(params, optimizer.init(params))
    stepped = torchopt.apply_updates(params, updates)
    torch.testing.assert_close(stepped["w"], torch.tensor([0.9, -1.9]))
    pickle.loads(pickle.dumps(state))

    weight = torch.nn.Parameter(torch.tensor([3.0]))
    sgd = torchopt.SGD([weight], lr=0.5)
    (weight**2).sum().backward()
    sgd.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.0]))

    model = torch.nn.Linear(1, 1, bias=False)
    initial = model.weight
    torchopt.MetaSGD(model, lr=0.25).step((model.weight**2).sum())
    (slope,) = torch.autograd.grad(model.weight.sum(), initial)
    torch.testing.assert_close(slope, torch.tensor([[0.5]]))


def check_kernels_run() -> None:
    import torch

    import torchopt

    assert torchopt.accelerated_op_available("cpu"), "the compiled steps do not load"
    assert not torchopt.accelerated_op_available("meta")
    params = [torch.tensor([1.0, -2.0], requires_grad=True)]
    optimizer = torchopt.adam(lr=0.1, use_accelerated_op=True)
    updates, _ = optimizer.update(params, optimizer.init(params), inplace=False)
    assert "Forward" in type(updates[0].grad_fn).__name__, "the step is not a compiled node"
    torch.testing.assert_close(updates[0], torch.tensor([-0.1, 0.1]))


def check_tasks_are_shared() -> None:
    import torch

    import torchopt.distributed as todist

    weight = torch.tensor(3.0, requires_grad=True)
    result = todist.map_tasks(lambda w, task: w * task, range(4), weight)
    torch.testing.assert_close(result.grads, torch.tensor(1.5))

    @todist.auto_init_rpc()
    def square() -> torch.Tensor:
        with todist.autograd.context() as context_id:
            (value,) = todist.remote_sync_call(torch.square, args=(weight,), partitioner=0)
            return todist.autograd.grad(context_id, value, weight)[0]

    torch.testing.assert_close(square(), torch.tensor(6.0))


def check_graphs_are_drawn() -> None:
    import tempfile
    from pathlib import Path

    import torch

    import torchopt

    weight = torch.tensor(3.0, requires_grad=True)
    assert "weight" in torchopt.visual.make_dot(weight.exp(), {"weight": weight}).source
    with tempfile.TemporaryDirectory() as folder:
        page = torchopt.visual.save_html(weight.exp(), path=Path(folder, "graph.html"))
        assert "<script" in page.read_text(encoding="utf-8")


def check_report(installed: set[str]) -> None:
    report = subprocess.run(
        [sys.executable, "-I", "-m", "torchopt"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    for distribution in distributions():
        (line,) = [line for line in report.splitlines() if line.split()[:1] == [distribution]]
        expected = "not installed"
        if distribution in installed:
            expected = importlib.metadata.version(distribution)
        assert expected in line, f"{distribution} must be reported as {expected}:\n{report}"


def check_front_door(installed: set[str]) -> None:
    from torchopt._extensions import EXTENSIONS, TARGETS

    for path, home in TARGETS.items():
        package = home.partition(":")[0].partition(".")[0]
        extension = EXTENSIONS[package]
        if extension.distribution in installed:
            assert load(path) is load(home), f"{path} is not {home}"
            continue
        try:
            load(path)
        except ImportError as error:
            message = str(error)
        else:
            raise AssertionError(f"{path} loads without {extension.distribution}")
        for line in (
            f"pip install {extension.distribution}\n",
            f'pip install "torchopt-core[{extension.extra}]"\n',
        ):
            assert line in message, f"using {path} must say {line!r}, but says {message!r}"


def distributions() -> set[str]:
    from torchopt._extensions import EXTENSIONS

    return {"torchopt-core", *(extension.distribution for extension in EXTENSIONS.values())}


def load(path: str) -> object:
    """Return what ``package``, ``package.name`` or ``package.module:name`` stands for."""
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        return importlib.import_module(name)
    scope: dict[str, object] = {}
    exec(f"from {module} import {name} as value", scope)
    return scope["value"]


def main() -> None:
    expected = set(sys.argv[1:])
    check_import_is_light()
    installed = {found.name for found in importlib.metadata.distributions()} & distributions()
    assert installed == expected, f"installed: {sorted(installed)}, expected: {sorted(expected)}"
    check_core_optimizes()
    if "torchopt-accel" in installed:
        check_kernels_run()
    if "torchopt-dist" in installed:
        check_tasks_are_shared()
    if "torchopt-viz" in installed:
        check_graphs_are_drawn()
    check_report(installed)
    check_front_door(installed)
    print(f"{', '.join(sorted(installed))}: works as installed")


main()
