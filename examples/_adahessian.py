"""AdaHessian, a second-order optimizer for large networks, written from its paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdaHessian(torch.optim.Optimizer):
    r"""Adam with the diagonal of the Hessian in place of the gradient's squares.

    With Rademacher vectors :math:`z`, that is, random signs,

    .. math::
        D_t &= z \odot (H_t z), \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, D_t^2, \\
        \theta_t &= \theta_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t)}
        {\left(v_t / (1 - \beta_2^t)\right)^{k / 2} + \epsilon} + \lambda\, \theta_{t-1} \right) .

    :math:`D_t` estimates the diagonal of the Hessian without bias (Hutchinson). The gradients must
    carry their graph: ``loss.backward(create_graph=True)``. The paper's averages of :math:`D_t`
    over convolution kernels are left out.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate :math:`\eta`. Default: 0.15.
        betas: Decays of the moments. Default: (0.9, 0.999).
        eps: :math:`\epsilon`. Default: 1e-4.
        weight_decay: :math:`\lambda`, decoupled. Default: 0.
        hessian_power: :math:`k`. Default: 1.
        generator: Draws the signs. Default: torch's own.

    References:
        Z. Yao et al. ADAHESSIAN: An adaptive second order optimizer for machine learning. AAAI
        (2021), algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "hessian_power": hessian_power,
            },
        )
        self.generator = generator

    def diagonals(self, params: list[Tensor]) -> list[Tensor]:
        """Return one estimate of the Hessian's diagonal at each parameter."""
        grads = [p.grad for p in params]
        signs = [
            2 * torch.randint(0, 2, p.shape, generator=self.generator, device=p.device).to(p) - 1
            for p in params
        ]
        products = torch.autograd.grad(grads, params, signs, retain_graph=True)
        return [z * hz for z, hz in zip(signs, products, strict=True)]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take one step."""
        loss = None if closure is None else closure()
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        diagonals = dict(zip(every, self.diagonals(every), strict=True))
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._update(p, diagonals[p], group)
        return loss

    def _update(self, p: Tensor, diagonal: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["m"].lerp_(p.grad, 1 - beta1)
        state["v"].lerp_(diagonal.square(), 1 - beta2)
        m = state["m"] / (1 - beta1 ** state["step"])
        v = state["v"] / (1 - beta2 ** state["step"])
        direction = m / (v ** (group["hessian_power"] / 2) + group["eps"])
        p.sub_(direction + group["weight_decay"] * p, alpha=group["lr"])
