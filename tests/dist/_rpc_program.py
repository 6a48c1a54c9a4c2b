"""What the tests run on several workers; prints one line of JSON for each result.

Every function here also runs without workers, which is what the results are held against.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import torchopt
import torchopt.distributed as todist
from torchopt import pytree

MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(3, 2),
    "mlp": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    "tied": lambda: Tied(),
    "recurrent": lambda: Recurrent(),
    "convolutional": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(12, 2)
    ),
}
PARTITIONERS: dict[str, Any] = {
    "batch": todist.batch_partitioner,
    "single samples": todist.exclusive_batch_partitioner,
    "one worker": 0,
    "last worker": None,  # filled in where the world is known
}


class Tied(nn.Module):
    """The same parameter in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 3)
        self.outer.weight = self.inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).tanh())[:, :2]


class Recurrent(nn.Module):
    """A module that keeps its parameters in a list of its own as well."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(self.cell(x).new_zeros(len(x), 3) + x)


def make_model(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]()


def make_batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator)


def supervised_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(model(x), y)


def maml_loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over tasks, one a sample, of the loss after two differentiable steps."""
    losses = []
    for task in range(len(x)):
        state = torchopt.extract_state_dict(model)
        inner = torchopt.MetaAdam(model, lr=0.1)
        for _ in range(2):
            inner.step(F.mse_loss(model(x[task : task + 1]), y[task : task + 1]))
        losses.append(model(x[task : task + 1]).square().sum())
        torchopt.recover_state_dict(model, state)
    return torch.stack(losses).mean()


OBJECTIVES = {"supervised": supervised_loss, "maml": maml_loss}
SIZES = (1, 2, 5)  # fewer samples than workers, as many, and an uneven number


def local_gradients(model: str, objective: str, size: int) -> list[Any]:
    net = make_model(model)
    loss = OBJECTIVES[objective](net, *make_batch(size))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return [loss.item(), *(gradient.tolist() for gradient in gradients)]


def remote_gradients(model: str, objective: str, size: int, partitioner: Any) -> list[Any]:
    net = make_model(model)
    with todist.autograd.context() as context_id:
        loss = todist.remote_sync_call(
            OBJECTIVES[objective],
            args=(net, *make_batch(size)),
            partitioner=partitioner,
            reducer=todist.mean_reducer,
        )
        todist.autograd.backward(context_id, loss)
    return [loss.item(), *(parameter.grad.tolist() for parameter in net.parameters())]


@todist.parallelize()
def scaled(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return x * factor


@todist.parallelize_async(reducer=todist.sum_reducer)
def total(x: torch.Tensor) -> torch.Tensor:
    return x.sum()


def logged(func: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@logged
@todist.parallelize(partitioner=0)
def decorated_twice(x: int) -> int:
    return x + 1


class Model:
    @staticmethod
    @todist.parallelize(partitioner=0)
    def method(x: int) -> int:
        return 2 * x


@todist.parallelize()
def scaled_by_reference(x: torch.Tensor, factors: Any) -> torch.Tensor:
    return x * pytree.tree_to_here(factors)["factor"]


def keep(x: torch.Tensor) -> Any:
    """Return a reference to what stays here."""
    return {"kept": todist.rpc.RRef(x + todist.get_rank())}


def owners(*references: Any) -> list[Any]:
    return [references[0] is references[1], *(reference.owner().id for reference in references)]


def to_last(*args: Any, **kwargs: Any) -> list[Any]:
    """Share nothing out: two calls as partitioners for 0.7 write them, and one by name."""
    last = todist.get_world_size() - 1
    return [(last, args, None), (0, None, {"x": 1}), (f"worker{last}", ("named",), {})]


def describe(x: Any) -> str:
    return f"{todist.get_rank()}: {x}"


def grad_enabled() -> bool:
    return torch.is_grad_enabled()


def listening() -> list[str]:
    """Return the addresses that this process listens on, as the kernel writes them."""
    own = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.append(fields[1].split(":")[0])
    return found


def results() -> dict[str, Any]:
    """Return what rank zero sees."""
    last = todist.get_world_size() - 1
    x = torch.arange(5.0)
    found: dict[str, Any] = {
        "by rank": todist.remote_sync_call(describe, args=("a",), partitioner=last),
        "by name": todist.remote_sync_call(
            describe, args=("a",), partitioner=f"worker{last}", reducer=lambda r: next(iter(r))
        ),
        "keyword": todist.remote_sync_call(describe, kwargs={"x": 3}, partitioner=last),
        "no tensors": todist.remote_sync_call(describe, args=(None,)),
        "split": [y.tolist() for y in todist.remote_sync_call(torch.neg, args=(x,))],
        "future": todist.remote_async_call(describe, args=("b",), partitioner=0).wait(),
        "mean by default": scaled(torch.arange(6.0), factor=3.0).tolist(),
        "async": total(x).wait().item(),
        "decorated twice": decorated_twice(1),
        "method": Model.method(4),
        "partitioner of 0.7": todist.remote_sync_call(describe, args=("a",), partitioner=to_last),
        "undecorated": todist.remote_sync_call(scaled, args=(x[:1],))[0].tolist(),
        "grad mode": todist.remote_sync_call(grad_enabled, partitioner=last),
        "listening": todist.remote_sync_call(listening, partitioner=last),
        "id of name": todist.get_worker_id(f"worker{last}"),
        "parameter": todist.remote_sync_call(type, args=(nn.Parameter(x),), partitioner=last)[
            0
        ].__name__,
    }
    with torch.no_grad():
        found["no_grad"] = todist.remote_sync_call(grad_enabled, partitioner=last)
    weight = torch.ones(2, requires_grad=True)
    cut = todist.remote_sync_call(torch.square, args=(weight,), partitioner=last)[0]
    found["outside a context"] = cut.requires_grad
    return found


def references() -> dict[str, Any]:
    """Return what came of references as arguments and as results."""
    last = todist.get_world_size() - 1
    x = torch.arange(6.0)
    here = pytree.tree_as_rref({"factor": torch.tensor(3.0)})
    there = todist.rpc.remote(f"worker{last}", torch.neg, args=(torch.tensor(2.0),))
    (kept,) = todist.remote_sync_call(keep, args=(x,), partitioner=last)
    known = todist.remote_sync_call(
        owners, args=(here["factor"], here["factor"], there, kept["kept"]), partitioner=last
    )
    return {
        "argument": scaled_by_reference(x, here).tolist(),
        "another's": scaled_by_reference(x, factors={"factor": there}).tolist(),
        "result": pytree.tree_to_here(kept)["kept"].tolist(),
        "owners": known[0],
        "both ways": todist.remote_sync_call(list, args=([kept["kept"]],), partitioner=0)[0][0]
        .to_here()
        .tolist(),
    }


def gradients() -> dict[str, Any]:
    """Return losses and gradients of every model, objective, size and partitioner."""
    last = todist.get_world_size() - 1
    found = {}
    for model in MODELS:
        for objective in OBJECTIVES:
            for size in SIZES:
                for name, partitioner in PARTITIONERS.items():
                    chosen = last if partitioner is None else partitioner
                    values = remote_gradients(model, objective, size, chosen)
                    found[f"{model}, {objective}, {size}, {name}"] = values
    return found


def passes() -> dict[str, Any]:
    """Return gradients of several passes over one graph, and of tensors that are no leaves."""
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.tensor(1.0, requires_grad=True)
    last = todist.get_world_size() - 1
    with todist.autograd.context() as context_id:
        middle = weight * 3
        (square,) = todist.remote_sync_call(torch.square, args=(middle,), partitioner=last)
        loss = square.sum()
        todist.autograd.backward(context_id, loss, retain_graph=True, inputs=[weight])
        once = weight.grad.tolist()
        todist.autograd.backward(context_id, loss, retain_graph=True)
        twice = weight.grad.tolist()
        both = todist.autograd.grad(context_id, loss, [weight, middle], retain_graph=True)
        some = todist.autograd.grad(
            context_id, loss, [weight, unused], retain_graph=True, allow_unused=True
        )
        in_context = todist.autograd.get_gradients(context_id)[weight].tolist()
    return {
        "once": once,
        "twice": twice,
        "grad": [gradient.tolist() for gradient in both],
        "unused": some[1],
        "after grad": weight.grad.tolist(),
        "in context": in_context,
    }


def show(name: str, value: Any) -> None:
    """Print a result in one piece: other workers print as well."""
    os.write(sys.stdout.fileno(), f"{json.dumps({name: value})}\n".encode())


greeted: list[int] = []


@todist.auto_init_rpc(lambda: greeted.append(todist.get_rank()))
def main() -> int:
    warnings.simplefilter("error")
    here = todist.get_world_info()
    show(f"place {here.rank}", [*here, here.worker_name, *greeted])
    todist.barrier()
    if here.rank == 0:
        for part in (results, references, gradients, passes):
            show(part.__name__, part())
    todist.barrier([f"worker{todist.get_rank()}"])
    return here.rank


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rank = main()
    show(f"returned {rank}", rank)
