"""Implicit differentiation: beside the predecessor, the closed form, and a loop over problems.

::

    python benchmarks/implicit.py --peer path/to/python

where that Python has ``torchopt==0.7.3``; without it those rows are left out. The two sides of a
row are timed in turn, A B A B ..., in processor time on one thread, in a process each; each pair
gives one ratio, and the table shows their median and range. Results are compared before.

The process of a side is this file, called with ``--serve``: it answers JSON lines.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Case = Callable[[], list[torch.Tensor]]


class Row(NamedTuple):
    """One line of the table: the time of ``slow`` over that of ``fast``."""

    title: str
    slow: str
    fast: str
    target: float
    #: relative difference of results that is an error
    tolerance: float


ROWS = [
    Row("iMAML, CG 5: 0.7.3 / ours", "peer:imaml_5", "imaml_5", 2.0, 1e-3),
    Row("iMAML, CG 20: 0.7.3 / ours", "peer:imaml_20", "imaml_20", 2.0, 1e-3),
    Row("iMAML, CG 20, ridge=2: 0.7.3 / ours", "peer:imaml_20", "imaml:ridge_20", 1.6, 1e-3),
    Row("iMAML, CG 20: 0.7.3 / ours, compiled", "peer:imaml_20", "imaml_20:compiled", 2.2, 1e-3),
    Row("iMAML, CG 20: ours / ours, compiled", "imaml_20", "imaml_20:compiled", 0.0, 1e-3),
    Row("iMAML, CG 20, 16 tasks: loop / vmap", "tasks_20:loop", "tasks_20:vmap", 1.8, 1e-3),
    Row(
        "iMAML, CG 20, 16 tasks: loop / vmap, compiled",
        "tasks_20:loop",
        "tasks_20:vmap,compiled",
        1.8,
        1e-3,
    ),
    Row("iMAML, CG 5: 5 Hessian-vector products / ours", "products_5", "imaml_5", 0.0, math.inf),
    Row("iMAML, CG 20: 20 products / ours", "products_20", "imaml_20", 0.0, math.inf),
    Row(
        "ridge, n = 500, gradient: closed / ours", "ridge_closed:grad", "ridge_ours:grad", 0.5, 1e-8
    ),
    Row("ridge, n = 500, all: closed / ours", "ridge_closed:all", "ridge_ours:all", 0.0, 1e-8),
    Row("ridge, n = 500, all: closed / CG", "ridge_closed:all", "ridge_cg:all", 0.0, 1e-8),
    Row("64 roots: loop / vmap", "roots_loop", "roots_vmap", 10.0, 1e-8),
]


def imaml(
    iterations: int,
    *,
    products: bool = False,
    tasks: str = "",
    compiled: bool = False,
    ridge: float = 0.0,
) -> Case:
    """Return the meta-gradient through an inner problem, or as many Hessian-vector products.

    Or the sum of those of 16 tasks, by a loop or by `vmap`. With ``ridge=2`` the proximal term,
    whose Hessian that is, is a constant to differentiation.
    """
    import torchopt

    net = torch.nn.Sequential(
        torch.nn.Linear(784, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    names = [name for name, _ in net.named_parameters()]
    meta = tuple(p.detach().clone().requires_grad_() for p in net.parameters())
    data = (torch.randn(25, 784), torch.randint(0, 10, (25,)))
    solution = tuple(p.detach() + 0.01 * torch.randn_like(p) for p in meta)

    def loss(params: Any, data: Any) -> torch.Tensor:
        x, y = data
        logits = torch.func.functional_call(net, dict(zip(names, params, strict=True)), (x,))
        return F.cross_entropy(logits, y)

    def objective(params: Any, meta: Any, data: Any) -> torch.Tensor:
        distance = sum(((p - q) ** 2).sum() for p, q in zip(params, meta, strict=True))
        return loss(params, data) + distance

    if products:
        params = tuple(p.clone().requires_grad_() for p in solution)
        gradient = torch.autograd.grad(objective(params, meta, data), params, create_graph=True)

        def multiply() -> list[torch.Tensor]:
            v = gradient
            for _ in range(iterations):
                v = torch.autograd.grad(gradient, params, gradient, retain_graph=True)
            return list(v)

        return multiply

    def split(params: Any, meta: Any, data: Any) -> Any:
        slope = torch.func.grad(loss)(params, data)
        return tuple(
            s + ridge * (p.detach() - q) for s, p, q in zip(slope, params, meta, strict=True)
        )

    settings = {"ridge": ridge} if ridge else {}
    solve = torchopt.linear_solve.solve_cg(maxiter=iterations, rtol=0.0, atol=0.0, **settings)
    stationary = split if ridge else torch.func.grad(objective)
    options = {}
    if compiled:
        options["differentiation"] = torchopt.diff.implicit.differentiation.Implicit(compiled=True)
    decorate = torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=solve, **options)
    solver = decorate(lambda params, meta, data: tuple(p.clone() for p in solution))
    if tasks:
        batches = (torch.randn(16, 25, 784), torch.randint(0, 10, (16, 25)))

        def outer(meta: Any, *data: Any) -> torch.Tensor:
            return sum((p**2).sum() for p in solver(meta, meta, data))

        def of_all_tasks() -> list[torch.Tensor]:
            if tasks == "vmap":
                losses = torch.func.vmap(outer, in_dims=(None, 0, 0))(meta, *batches)
                return list(torch.autograd.grad(losses.sum(), meta))
            each = [torch.autograd.grad(outer(meta, *b), meta) for b in zip(*batches, strict=True)]
            return [torch.stack(gradients).sum(0) for gradients in zip(*each, strict=True)]

        return of_all_tasks

    def meta_gradient() -> list[torch.Tensor]:
        params = solver(meta, meta, data)
        return list(torch.autograd.grad(sum((p**2).sum() for p in params), meta))

    return meta_gradient


def ridge(option: str) -> Case:
    """Return the derivative of a ridge regression in its penalty, in float64.

    ``grad`` leaves out the regression itself, which the closed form and ours factorize.
    """
    method, _, part = option.partition(":")
    X = torch.randn(1000, 500, dtype=torch.float64)
    y = torch.randn(1000, dtype=torch.float64)
    valid = torch.randn(500, dtype=torch.float64)
    zeros = torch.zeros(500, dtype=torch.float64)
    penalty = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)

    def closed_form(init: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        gram = X.T @ X + penalty * torch.eye(500, dtype=torch.float64)
        return torch.linalg.solve(gram, X.T @ y)

    def residual(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        return X.T @ (X @ w - y) + penalty * w

    solver: Callable[..., torch.Tensor] = closed_form
    if method != "closed":
        from torchopt_implicit import affine_root, custom_root, linear_solve

        if method == "cg":
            solve = linear_solve.solve_cg(rtol=1e-10)
            solver = custom_root(residual, argnums=1, solve=solve)(closed_form)
        else:
            solver = affine_root(residual, argnums=1, solve=linear_solve.solve_cholesky())
    if part == "all":
        return lambda: list(torch.autograd.grad(solver(zeros, penalty) @ valid, penalty))
    outer = solver(zeros, penalty) @ valid
    return lambda: list(torch.autograd.grad(outer, penalty, retain_graph=True))


def roots(how: str) -> Case:
    """Return the gradients of 64 systems of equations, each with five unknowns."""
    from torchopt_implicit import custom_root, linear_solve

    A = torch.randn(64, 5, 5, dtype=torch.float64) / 5 + 2 * torch.eye(5, dtype=torch.float64)
    b = torch.randn(64, 5, dtype=torch.float64)

    @custom_root(
        lambda x, A, b: A @ x + torch.sin(x) / 2 - b,
        argnums=(1, 2),
        solve=linear_solve.solve_normal_cg(rtol=1e-10),
    )
    def solver(init: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = init
        for _ in range(30):
            x = x - 0.4 * (A @ x + torch.sin(x) / 2 - b)
        return x

    gradient = torch.func.grad(lambda A, b: solver(torch.zeros_like(b), A, b).sum(), (0, 1))
    if how == "vmap":
        return lambda: list(torch.func.vmap(gradient)(A, b))

    def loop() -> list[torch.Tensor]:
        rows = [gradient(*row) for row in zip(A, b, strict=True)]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    return loop


def build(name: str) -> Case:
    """Return the case of a name in `ROWS`."""
    torch.manual_seed(0)
    kind, _, option = name.rpartition("_")
    if kind in ("imaml", "imaml:ridge", "products", "tasks"):
        number, _, how = option.partition(":")
        return imaml(
            int(number),
            products=kind == "products",
            tasks=how.partition(",")[0] if kind == "tasks" else "",
            compiled="compiled" in how,
            ridge=2.0 if kind == "imaml:ridge" else 0.0,
        )
    return ridge(option) if kind == "ridge" else roots(option)


def serve() -> None:
    """Answer requests, ``[case, number]``, with results or with seconds."""
    import warnings

    warnings.simplefilter("ignore")  # of truncated solves
    torch.set_num_threads(1)
    cases: dict[str, Case] = {}
    for line in sys.stdin:
        name, number = json.loads(line)
        if name not in cases:
            cases[name] = build(name)
        case = cases[name]
        if number == 0:
            answer: Any = [float(x.double().norm()) for x in case()]
        else:
            start = time.process_time()
            for _ in range(number):
                case()
            answer = time.process_time() - start
        print(json.dumps(answer), flush=True)


class Side:
    """A process that runs cases under some Python."""

    def __init__(self, python: str) -> None:
        from compare import KEEP_MEMORY, environment

        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(python, sys.executable) | KEEP_MEMORY,
        )

    def ask(self, case: str, number: int) -> Any:
        """Return the norms of results for 0 runs, else the seconds that they take."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([case, number]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def measure(row: Row, slow: Side, fast: Side, pairs: int) -> str:
    """Return a line of the table."""
    names = row.slow.removeprefix("peer:"), row.fast
    first, second = slow.ask(names[0], 0), fast.ask(names[1], 0)
    difference = max(abs(x - y) / max(abs(y), 1e-12) for x, y in zip(first, second, strict=True))
    if difference > row.tolerance:
        raise RuntimeError(f"{row.title}: results differ by {difference:.1e}")
    number = max(1, math.ceil(0.05 / fast.ask(names[1], 3) * 3))
    for side, name in ((slow, names[0]), (fast, names[1])):
        side.ask(name, 3)
    ratios = sorted(slow.ask(names[0], number) / fast.ask(names[1], number) for _ in range(pairs))
    median = ratios[len(ratios) // 2]
    verdict = "" if not row.target else f"at least {row.target}: "
    verdict += "" if not row.target else ("yes" if median >= row.target else "NO")
    return f"{row.title:50} {median:6.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]  {verdict}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--peer", help="a Python that has torchopt==0.7.3")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    ours = Side(sys.executable)
    other = Side(sys.executable)
    peer = Side(options.peer) if options.peer else None
    for row in ROWS:
        slow = peer if row.slow.startswith("peer:") else other
        if slow is not None:
            print(measure(row, slow, ours, options.pairs), flush=True)
    for side in (ours, other, peer):
        if side is not None:
            side.process.communicate()


if __name__ == "__main__":
    main()
