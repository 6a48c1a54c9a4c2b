"""Calls on other workers that end in unusual ways, or carry unusual values; prints JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import torch
from torch import nn

import torchopt.distributed as todist


class Tagged(torch.Tensor):
    """A subclass with an attribute."""

    tag: str


class Wrapper(torch.Tensor):
    """A subclass that has its numbers elsewhere."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Scale(nn.Parameter):
    """A parameter of a class of its own."""


def leave(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    raise KeyboardInterrupt


def describe(x: Any) -> str:
    return f"{type(x).__name__} {getattr(x, 'tag', '')}"


def doubled(x: torch.Tensor) -> torch.Tensor:
    return (x.as_subclass(torch.Tensor) * 2).sum()


@todist.parallelize(reducer=todist.sum_reducer)
def weighted(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    return (x * options["w"]).sum()


@todist.parallelize()
def all_true(x: torch.Tensor) -> torch.Tensor:
    return (x > 0).all()


unnamed = todist.parallelize(partitioner=0)(lambda x: x)


def hidden() -> Any:
    @todist.parallelize(partitioner=0)
    def inside(x: Any) -> Any:
        return x

    return inside


def error(function: Any, *args: Any, **kwargs: Any) -> str:
    try:
        return f"no error: {function(*args, **kwargs)}"
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"


def interrupted() -> dict[str, Any]:
    """Interrupt this worker while it waits for a call."""
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        todist.remote_sync_call(time.sleep, args=(6.0,), partitioner=1, timeout=20)
    except KeyboardInterrupt:
        return {"seconds": time.monotonic() - start}
    return {"seconds": float("inf")}


def found() -> dict[str, Any]:
    results: dict[str, Any] = {
        f"{how} on {rank}": error(todist.remote_sync_call, leave, args=(how,), partitioner=rank)
        for how in ("exit", "interrupt")
        for rank in (0, 1)
    }
    results["alive"] = todist.remote_sync_call(len, args=("four",), partitioner=1)
    results["lambda"], results["hidden"] = error(unnamed, 1), error(hidden(), 1)
    tagged = torch.ones(2, requires_grad=True)
    value = tagged.as_subclass(Tagged)
    value.tag = "here"
    results["subclass"] = todist.remote_sync_call(describe, args=(value,), partitioner=1)
    with todist.autograd.context() as context:
        (loss,) = todist.remote_sync_call(doubled, args=(value,), partitioner=1)
        todist.autograd.backward(context, loss)
    results["gradient of a subclass"] = tagged.grad.tolist()
    for name, tensor in {
        "wrapper": torch.ones(2, requires_grad=True).as_subclass(Wrapper),
        "parameter": Scale(torch.ones(2)),
    }.items():
        results[name] = error(todist.remote_sync_call, describe, args=(tensor,), partitioner=1)
    constant = Tagged(torch.ones(2))
    constant.tag = "constant"
    results["constant"] = todist.remote_sync_call(describe, args=(constant,), partitioner=1)
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with todist.autograd.context() as context:
        total = weighted(torch.ones(5, 2), {"w": todist.Replicated(w)})
        todist.autograd.backward(context, total)
    results["replicated"] = [total.item(), w.grad.tolist()]
    results["to one"] = todist.remote_sync_call(
        describe, args=(todist.Replicated(w),), partitioner=1
    )
    results["bools"] = all_true(torch.ones(3)).item()
    results["interrupted"] = interrupted()
    return results


@todist.auto_init_rpc()
def main() -> None:
    if todist.get_rank() == 0:
        print(json.dumps(found()), flush=True)


if __name__ == "__main__":
    main()
