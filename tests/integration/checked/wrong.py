"""Programs with one mistake in every line marked `# error`, which every type checker must find.

A mistake in the use of an extension is marked with its import package, without which it cannot be
known: `# error: torchopt_viz`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist
from torchopt import visual
from torchopt.diff.implicit import custom_root
from torchopt.linear_solve import solve_cg
from torchopt.optim.adam import Adam as DeepAdam
from torchopt.optim.adam import MetaAdam as DeepMetaAdam
from torchopt.transform import scale_by_accelerated_adam

NET = nn.Linear(2, 1)
NORMAL = torch.distributions.Normal(0, 1)


def stateful(net: nn.Module) -> None:
    torchopt.Adam()  # error
    torchopt.Adam(net)  # error
    torchopt.Adam(net.parameters(), lrr=1)  # error
    torchopt.Adam(net.parameters(), betas=0.9)  # error
    torchopt.Adam(net.parameters(), betas=(0.9, 0.99, 0.999))  # error
    torchopt.Adam(net.parameters(), eps="small")  # error
    torchopt.Adam(net.parameters(), maximize="yes")  # error
    torchopt.Adam(net.parameters(), moment_requires_grad=True)  # error
    torchopt.Adam(net.parameters(), 1e-3, (0.9, 0.99), 1e-8, 0.0, 0.0)  # error
    torchopt.Adam(net.parameters(), lr=1e-3, mask=None)  # error
    torchopt.SGD(net.parameters(), 0.1, 0.9, 0.0, 0.0, "nesterov")  # error
    torchopt.RMSProp(net.parameters(), aplha=0.9)  # error
    torchopt.optim.Adagrad(net.parameters(), betas=(0.9, 0.99))  # error
    DeepAdam(net.parameters(), lrr=1)  # error
    torchopt.Optimizer(net.parameters(), lr=0.1)  # error
    torchopt.Adam(net.parameters()).step(1.0)  # error
    torchopt.Adam(net.parameters()).stop()  # error
    torchopt.Adamm(net.parameters())  # error
    torchopt.optim.Adamm(net.parameters())  # error


def differentiable(net: nn.Module, loss: Tensor) -> None:
    torchopt.MetaAdam()  # error
    torchopt.MetaAdam(net.parameters())  # error
    torchopt.MetaAdam(net, lrr=1)  # error
    torchopt.MetaAdam(net, use_accelerated_op="cuda")  # error
    torchopt.MetaSGD(net, momentum=(0.9, 0.99))  # error
    torchopt.optim.meta.MetaAdaDelta(net, momentum=0.9)  # error
    DeepMetaAdam(net, lrr=1)  # error
    torchopt.MetaAdam(net).step()  # error
    torchopt.MetaAdam(net).zero_grad()  # error


class Mine(torchopt.Adam):
    """A subclass that passes on what is not taken."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters(), learning_rate=0.1)  # error


def subclass(net: nn.Module) -> torchopt.SGD:
    Mine(net.parameters())  # error
    Mine(net, lr=0.1)  # error
    return Mine(net)  # error


def functional() -> None:
    torchopt.adam(lrr=1)  # error
    torchopt.adamw(betas=0.9)  # error
    torchopt.apply_updates({}, {}, True)  # error
    torchopt.chain(0.1)  # error
    torchopt.transform.scale_by_adamm()  # error
    torchopt.nn.MetaGradientModul()  # error


def implicit(a: Tensor) -> None:
    custom_root(3)  # error: torchopt_implicit
    torchopt.diff.implicit.custom_root(lambda x: x, argnum=0)  # error: torchopt_implicit
    torchopt.diff.implicit.custom_rot(lambda x: x)  # error: torchopt_implicit
    solve_cg(maxiters=3)  # error: torchopt_implicit
    torchopt.linear_solve.solve_cg(maxiter="many")  # error: torchopt_implicit
    torchopt.linear_solve.solve_gc()  # error: torchopt_implicit
    torchopt.linalg.cg(a.matmul)  # error: torchopt_implicit
    torchopt.linalg.gc(a.matmul, a)  # error: torchopt_implicit
    torchopt.linear_solve.solve_inv(maxiter=3)  # error: torchopt_implicit


def zero_order() -> None:
    torchopt.diff.zero_order()  # error: torchopt_zero
    torchopt.diff.zero_order(NORMAL, "antitetic")  # error: torchopt_zero
    torchopt.diff.zero_order(NORMAL, samples=3)  # error: torchopt_zero
    torchopt.diff.zero_order(NORMAL)(3)  # error: torchopt_zero
    torchopt.diff.zero_order.zero_order(NORMAL, sigma="wide")  # error: torchopt_zero
    torchopt.diff.zero_order.SPSA(steps=3)  # error: torchopt_zero
    torchopt.diff.zero_order.discrete.argmax(3)  # error: torchopt_zero


def extensions(loss: Tensor) -> None:
    visual.make_dot(loss, parameters={})  # error: torchopt_viz
    torchopt.visual.make_dott(loss)  # error: torchopt_viz
    torchopt.visual.save_html()  # error: torchopt_viz
    todist.get_rank(0)  # error: torchopt_dist
    torchopt.distributed.paralelize(print)  # error: torchopt_dist
    scale_by_accelerated_adam(beta=0.9)  # error: torchopt_accel
    torchopt.accelerated_op.is_available("cpu", "cuda", "mps")  # error: torchopt_accel
