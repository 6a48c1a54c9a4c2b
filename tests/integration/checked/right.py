"""Programs that every type checker must accept, whichever distributions are installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist
from torchopt import linalg, visual
from torchopt.diff.implicit import custom_fixed_point, custom_root
from torchopt.diff.zero_order import Antithetic, Gaussian
from torchopt.linear_solve import solve_cg
from torchopt.nn import ImplicitMetaGradientModule
from torchopt.optim.adam import Adam as DeepAdam
from torchopt.optim.meta import MetaAdam
from torchopt.transform import scale_by_accelerated_adam

NET = nn.Linear(2, 1)


def stateful(net: nn.Module) -> list[torch.optim.Optimizer]:
    groups = [{"params": list(net.parameters()), "lr": 0.1}]
    schedule = torchopt.schedule.linear_schedule(1e-2, 1e-3, transition_steps=10)
    return [
        torchopt.Adam(net.parameters()),
        torchopt.Adam(params=net.parameters(), lr=1e-2, betas=(0.9, torch.tensor(0.99))),
        torchopt.Adam(list(net.parameters()), 1e-2, (0.9, 0.99), 1e-8, 0.1, maximize=True),
        torchopt.Adam(net.named_parameters(), lr=schedule),
        torchopt.AdamW(groups, mask=lambda params: params),
        torchopt.SGD(net.parameters(), 0.1, 0.9, 1e-4, 0.0, False, True),
        torchopt.RMSProp(net.parameters(), centered=True),
        torchopt.optim.Adagrad(net.parameters(), lr_decay=0.1, use_accelerated_op=False),
        torchopt.Optimizer(net.parameters(), torchopt.chain(torchopt.clip_grad_norm(1.0))),
    ]


def differentiable(net: nn.Module, rate: Tensor) -> list[torchopt.MetaOptimizer]:
    by_name = {name: rate for name, _ in net.named_parameters()}
    return [
        torchopt.MetaAdam(net, lr=rate, moment_requires_grad=False),
        torchopt.MetaSGD(module=net, lr=by_name, momentum=rate),
        torchopt.MetaAdaMax(net, 0.1, (0.9, 0.999)),
        MetaAdam(net, use_accelerated_op=True),
    ]


class Mine(torchopt.Adam):
    """An optimizer of one's own."""

    def __init__(self, net: nn.Module, lr: float = 1e-2) -> None:
        super().__init__(net.parameters(), lr=lr, maximize=True)

    def learning_rate(self) -> float:
        return float(self.param_groups[0]["lr"])


class OwnForm(torchopt.MetaSGD, positional=("lr", "momentum")):
    """A subclass that passes keywords on."""


def one_class_whatever_the_path(optimizer: torch.optim.Optimizer) -> torchopt.Adam | None:
    if isinstance(optimizer, torchopt.Adam):
        optimizer.add_param_group({"params": [torch.zeros(1)]})
        front: torchopt.Adam = DeepAdam([torch.zeros(1)], lr=0.1)
        deep: DeepAdam = torchopt.optim.Adam([torch.zeros(1)], lr=0.1)
        assert type(front) is type(deep)
        return optimizer
    return Mine(NET)


def steps(optimizer: torchopt.Adam, meta: torchopt.MetaAdam, loss: Tensor) -> Tensor:
    meta.step(loss)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return optimizer.step(lambda: loss)


def factories() -> dict[str, type[torchopt.Optimizer] | type[torchopt.MetaOptimizer]]:
    return {"adam": torchopt.Adam, "sgd": torchopt.SGD, "meta": torchopt.MetaAdamW}


def functional(params: dict[str, Tensor]) -> Any:
    optimizer: torchopt.GradientTransformation = torchopt.adam(1e-2, eps_root=1e-8)
    updates, _ = optimizer.update(params, optimizer.init(params), params=params)
    return torchopt.apply_updates(params, updates)


@custom_root(lambda x, a: x**2 - a, argnums=1, solve=solve_cg(maxiter=5))
def square_root(x: Tensor, a: Tensor) -> Tensor:
    return x


@torchopt.diff.implicit.custom_fixed_point(lambda x, a: a / x, argnums=(1,))
def fixed_point(x: Tensor, a: Tensor) -> Tensor:
    return x


class Inner(ImplicitMetaGradientModule):
    """A solution that differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def objective(self) -> Tensor:
        return self.x.square().sum()

    def solve(self, info: torchopt.diff.implicit.Info | None = None) -> Inner:
        return self


def modules(net: nn.Module) -> torchopt.nn.ZeroOrderGradientModule | Inner:
    assert isinstance(net, (torchopt.nn.ZeroOrderGradientModule, Inner))
    return net


def linear(matvec: Callable[[Tensor], Tensor], b: Tensor) -> Any:
    linalg.cg(matvec, b, rtol=1e-3)
    torchopt.linalg.cg(matvec, b, rtol=1e-3)
    return torchopt.linear_solve.solve_normal_cg(maxiter=3)(matvec, b)


@torchopt.diff.zero_order(torch.distributions.Normal(0, 1), "antithetic", num_samples=2)
def sampled(x: Tensor) -> Tensor:
    return x.sum()


@torchopt.diff.zero_order.zero_order(Gaussian(), method=Antithetic(), argnums=(0,))
def sampled_too(x: Tensor) -> Tensor:
    return torchopt.diff.zero_order.discrete.straight_through(x.sign(), x).sum()


def estimators() -> list[Any]:
    return [torchopt.diff.zero_order.SPSA(), torchopt.diff.zero_order.Naive()]


def pictures(loss: Tensor) -> None:
    visual.make_dot(loss, params=dict(NET.named_parameters()))
    graph = torchopt.visual.gradient_graph(loss)
    torchopt.visual.save_html(graph, path="graph.html")


@todist.rank_zero_only
def announce() -> None:
    print(todist.get_world_info(), torchopt.distributed.get_rank())


def kernels() -> bool:
    scale_by_accelerated_adam()
    torchopt.transform.scale_by_accelerated_adam(b1=0.8)
    return torchopt.accelerated_op_available("cpu") and torchopt.accelerated_op.is_available()


def version() -> str:
    assert custom_fixed_point is torchopt.diff.implicit.custom_fixed_point
    return torchopt.__version__
