"""The fixed cost of a call, which decides for small networks: side by side with peers.

Each contender is a process of its own; they take turns, and every ratio is the median over turns.
One thread, the default allocator, processor time.

    python benchmarks/overhead.py --peer PYTHON    # that has TorchOpt 0.7.3, perhaps learn2learn

The networks: that of an agent in meta-gradient reinforcement learning, 8-32-32-4, a batch of 16;
and 1-40-40-1 of the sinusoid tasks of Finn, Abbeel and Levine (ICML 2017), a batch of 10.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Operation = Callable[[], float]
CALLS = 60
STEPS = 5


def network(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def timed(call: Callable[[], Any]) -> Operation:
    """Return an operation that times all of a call."""

    def operation() -> float:
        begin = time.process_time()
        for _ in range(CALLS):
            call()
        return (time.process_time() - begin) / CALLS

    return operation


def timed_inside(call: Callable[[], float]) -> Operation:
    """Return an operation that adds up what a call times of itself."""
    return lambda: sum(call() for _ in range(CALLS)) / CALLS


def agent() -> tuple[nn.Sequential, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    net, x, y = network(8, 32, 32, 4), torch.randn(16, 8), torch.randn(16, 4)
    return net, lambda: F.mse_loss(net(x), y)


def of_torchopt(accelerated: bool) -> dict[str, Operation]:
    import torchopt

    options: dict[str, Any] = {} if accelerated else {"use_accelerated_op": False}
    net, loss = agent()
    params = list(net.parameters())
    state = torchopt.extract_state_dict(net)
    inner = torchopt.MetaSGD(net, lr=0.1, **options)

    def meta_step() -> float:
        value = loss()
        begin = time.process_time()
        inner.step(value)
        taken = time.process_time() - begin
        torchopt.recover_state_dict(net, state)
        return taken

    def outer_backward() -> float:
        inner.step(loss())
        value = loss()
        begin = time.process_time()
        torch.autograd.grad(value, params)
        taken = time.process_time() - begin
        torchopt.recover_state_dict(net, state)
        return taken

    own = [p.detach().clone().requires_grad_() for p in params]
    outer = torchopt.SGD(own, lr=1e-3, **options)
    for p in own:
        p.grad = torch.randn_like(p)
    zeros = [torch.zeros_like(p) for p in own]

    def zero_grad() -> float:
        for p, zero in zip(own, zeros, strict=True):
            p.grad = zero
        begin = time.process_time()
        outer.zero_grad()
        taken = time.process_time() - begin
        for p, zero in zip(own, zeros, strict=True):
            p.grad = zero
        return taken

    big = [torch.zeros(512, 512, requires_grad=True) for _ in range(16)]
    for p in big:
        p.grad = torch.full_like(p, 0.1)
    scheduled = torchopt.AdamW(
        big, lr=torchopt.schedule.linear_schedule(1e-3, 1e-4, 10**6, 0), **options
    )
    return {
        "MetaSGD.step": timed_inside(meta_step),
        "outer backward": timed_inside(outer_backward),
        "SGD.step": timed(outer.step),
        "zero_grad": timed_inside(zero_grad),
        "MetaSGD(net, lr)": timed(lambda: torchopt.MetaSGD(net, lr=0.1, **options)),
        "extract and recover": timed(
            lambda: torchopt.recover_state_dict(net, torchopt.extract_state_dict(net))
        ),
        "task of MAML, SGD": timed(task(torchopt, "MetaSGD", options)),
        "task of MAML, Adam": timed(task(torchopt, "MetaAdam", options)),
        "clone": timed(lambda: torchopt.module_clone(net, by="copy")),
        "clone and adapt": timed(adapted(torchopt, net, loss, options, learned=False)),
        "clone and adapt, learned rates": timed(adapted(torchopt, net, loss, options, True)),
        "AdamW(schedule), 16 x 512 x 512": timed(scheduled.step),
    }


def task(torchopt: Any, name: str, options: dict[str, Any]) -> Callable[[], None]:
    """Five steps on a sinusoid, and the outer gradient."""
    torch.manual_seed(0)
    net, x, y = network(1, 40, 40, 1), torch.randn(10, 1), torch.randn(10, 1)
    params = list(net.parameters())
    inner = getattr(torchopt, name)(net, lr=0.01, **options)
    state, own = torchopt.extract_state_dict(net), torchopt.extract_state_dict(inner)

    def run() -> None:
        for _ in range(STEPS):
            inner.step(F.mse_loss(net(x), y))
        torch.autograd.grad(F.mse_loss(net(x), y), params)
        torchopt.recover_state_dict(net, state)
        torchopt.recover_state_dict(inner, own)

    return run


def bare() -> dict[str, Operation]:
    """Gradient descent by hand: what no library can do without."""
    net, loss = agent()
    params = list(net.parameters())
    slots = [(m._parameters, n) for m in net.modules() for n in m._parameters]

    def put(values: list[torch.Tensor]) -> None:
        for (place, name), p in zip(slots, values, strict=True):
            place[name] = p  # type: ignore[assignment]

    def descend(value: torch.Tensor, now: list[torch.Tensor]) -> list[torch.Tensor]:
        grads = torch.autograd.grad(value, now, create_graph=True)
        stepped = [torch.sub(p, g, alpha=0.1) for p, g in zip(now, grads, strict=True)]
        put(stepped)
        return stepped

    def meta_step() -> float:
        value = loss()
        begin = time.process_time()
        descend(value, params)
        taken = time.process_time() - begin
        put(params)
        return taken

    def outer_backward() -> float:
        descend(loss(), params)
        value = loss()
        begin = time.process_time()
        torch.autograd.grad(value, params)
        taken = time.process_time() - begin
        put(params)
        return taken

    return {
        "MetaSGD.step": timed_inside(meta_step),
        "outer backward": timed_inside(outer_backward),
        "task of MAML, SGD": (episode := timed(bare_task())),
        "task of MAML, Adam": episode,
    }


def bare_task() -> Callable[[], None]:
    """The task with gradient descent by hand."""
    torch.manual_seed(0)
    net, x, y = network(1, 40, 40, 1), torch.randn(10, 1), torch.randn(10, 1)
    params = list(net.parameters())
    slots = [(m._parameters, n) for m in net.modules() for n in m._parameters]

    def run() -> None:
        now: list[torch.Tensor] = list(params)
        for _ in range(STEPS):
            grads = torch.autograd.grad(F.mse_loss(net(x), y), now, create_graph=True)
            now = [torch.sub(p, g, alpha=0.01) for p, g in zip(now, grads, strict=True)]
            for (place, name), p in zip(slots, now, strict=True):
                place[name] = p  # type: ignore[assignment]
        torch.autograd.grad(F.mse_loss(net(x), y), params)
        for (place, name), p in zip(slots, params, strict=True):
            place[name] = p

    return run


def adapted(
    torchopt: Any, net: nn.Module, loss: Any, options: dict[str, Any], learned: bool
) -> Callable[[], None]:
    """A copy of a module, three steps of it, and the gradients of the module."""
    x, y = torch.randn(16, 8), torch.randn(16, 4)
    rates = [torch.full_like(p, 0.1, requires_grad=True) for p in net.parameters()]
    lr: Any = rates if learned else 0.1

    def run() -> None:
        copy = torchopt.module_clone(net, by="copy")
        inner = torchopt.MetaSGD(copy, lr=lr, **options)
        for _ in range(3):
            inner.step(F.mse_loss(copy(x), y))
        wanted = [*net.parameters(), *(rates if learned else [])]
        torch.autograd.grad(F.mse_loss(copy(x), y), wanted)

    return run


def of_learn2learn() -> dict[str, Operation]:
    import learn2learn  # type: ignore[import-not-found]

    net, _ = agent()
    x, y = torch.randn(16, 8), torch.randn(16, 4)

    def adapt(learner: Any) -> Callable[[], None]:
        def run() -> None:
            copy = learner.clone()
            for _ in range(3):
                copy.adapt(F.mse_loss(copy(x), y))
            torch.autograd.grad(F.mse_loss(copy(x), y), list(learner.parameters()))

        return run

    maml = learn2learn.algorithms.MAML(net, lr=0.1)
    meta_sgd = learn2learn.algorithms.MetaSGD(agent()[0], lr=0.1)
    return {
        "clone": timed(lambda: learn2learn.utils.clone_module(net)),
        "clone and adapt": timed(adapt(maml)),
        "clone and adapt, learned rates": timed(adapt(meta_sgd)),
    }


CONTENDERS: dict[str, Callable[[], dict[str, Operation]]] = {
    "ours": lambda: of_torchopt(True),
    "ours, without accel": lambda: of_torchopt(False),
    "TorchOpt 0.7.3": lambda: without_rates(of_torchopt(True)),
    "learn2learn": of_learn2learn,
    "by hand": bare,
}
# by contender; by hand there is no target
TARGETS = {"ours, without accel": 1.05, "TorchOpt 0.7.3": 0.9, "learn2learn": 0.9}


def without_rates(operations: dict[str, Operation]) -> dict[str, Operation]:
    """Leave out what 0.7.3 has not."""
    del operations["clone and adapt, learned rates"]
    return operations


def serve(name: str) -> None:
    """Time all operations once for each line on stdin."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    operations = CONTENDERS[name]()
    for operation in operations.values():
        operation()
    gc.collect()
    gc.freeze()
    for _ in sys.stdin:
        taken = {key: operation() for key, operation in operations.items()}
        print(json.dumps(taken), file=answers, flush=True)


def start(name: str, python: str) -> subprocess.Popen[str]:
    command = [python, "-W", "ignore", __file__, "--serve", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default=os.environ.get("TORCHOPT_PEER_PYTHON"))
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--serve", choices=CONTENDERS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    pythons = dict.fromkeys(("ours", "ours, without accel", "by hand"), sys.executable)
    if options.peer:
        pythons |= {"TorchOpt 0.7.3": options.peer, "learn2learn": options.peer}
    processes = {name: start(name, python) for name, python in pythons.items()}
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for _ in range(options.turns):
        for name, process in [*processes.items()]:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                print(file=process.stdin, flush=True)
                turns[name].append(json.loads(process.stdout.readline()))
            except (BrokenPipeError, ValueError):
                print(f"left out: {name} does not run under {pythons[name]}")
                del processes[name], turns[name]
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
    ours = turns["ours"]
    others = [name for name in turns if name != "ours"]
    print(f"torch {torch.__version__}; time of ours, with accel, / time of the other\n")
    print(f"{'':32} {'us':>8}  " + "  ".join(f"{name:>19}" for name in others))
    for key in ours[0]:
        cells = []
        for name in others:
            if key not in turns[name][0]:
                cells.append("")
                continue
            ratio = statistics.median(
                a[key] / b[key] for a, b in zip(ours, turns[name], strict=True)
            )
            bound = TARGETS.get(name)
            met = "" if bound is None else "met" if ratio <= bound else f"NOT <= {bound}"
            cells.append(f"{ratio:.2f} {met:11}")
        median = statistics.median(turn[key] for turn in ours) * 1e6
        print(f"{key:32} {median:8.1f}  " + "  ".join(f"{cell:>19}" for cell in cells))
    pairs = list(zip(ours, turns["by hand"], strict=True))
    excess = statistics.median(a["task of MAML, Adam"] - b["task of MAML, Adam"] for a, b in pairs)
    print(f"\ntask of MAML, Adam: {excess * 1e3:.2f} ms more than with bare descent by hand")


if __name__ == "__main__":
    main()
