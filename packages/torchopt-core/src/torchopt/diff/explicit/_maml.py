"""Model-agnostic meta-learning as a module, in the manner of `learn2learn`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from torchopt._module_clone import module_clone
from torchopt._types import Scalar
from torchopt.optim._loss import gradients
from torchopt.optim._meta import Group

__all__ = ["MAML"]


class MAML(nn.Module):
    r"""A module that clones itself and adapts by gradient descent, differentiably.

    A clone's parameters are functions of this module's; each :meth:`adapt` replaces them by

    .. math:: \theta - \alpha\, \nabla_\theta L(\theta).

    Other optimizers, and bounded memory, are what :func:`unroll` is for.

    Args:
        model: The module, whose parameters are the initial ones.
        lr: The rate :math:`\alpha`; a 0-dim tensor is differentiated.
        first_order: Whether gradients are constants.
        allow_unused: Whether parameters may stay on which a loss does not depend; None stands for
            ``allow_nograd``.
        allow_nograd: Whether parameters may stay that do not require grad.

    Example:
        >>> import torch, torchopt
        >>> maml = torchopt.diff.explicit.MAML(torch.nn.Linear(1, 1, bias=False), lr=0.25)
        >>> learner = maml.clone()
        >>> learner.adapt(learner(torch.ones(1)).square().sum())
        >>> learner.weight.sum().backward()
        >>> maml.weight.grad  # 1 - 2 * 0.25
        tensor([[0.5000]])

    Reference:
        Finn et al., Model-agnostic meta-learning, ICML 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: Scalar,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
    ) -> None:
        """Take the module, by reference."""
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
        self.module = model
        self.lr, self.first_order, self.allow_nograd = lr, first_order, allow_nograd
        self.allow_unused = allow_nograd if allow_unused is None else allow_unused

    def __getattr__(self, name: str) -> Any:
        """Return what the module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        return self.module(*args, **kwargs)

    def clone(
        self,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> MAML:
        """Return a copy whose parameters are clones of these, in the graph.

        Args:
            first_order: As for the class, whose choice is the default.
            allow_unused: Likewise.
            allow_nograd: Likewise.
        """
        return MAML(
            module_clone(self.module, by="clone", detach_buffers=True),
            self.lr,
            self.first_order if first_order is None else first_order,
            self.allow_unused if allow_unused is None else allow_unused,
            self.allow_nograd if allow_nograd is None else allow_nograd,
        )

    def adapt(
        self,
        loss: torch.Tensor,
        first_order: bool | None = None,
        allow_unused: bool | None = None,
        allow_nograd: bool | None = None,
    ) -> None:
        """Replace the parameters by those after one step down the gradient of ``loss``.

        Args:
            loss: A scalar that depends on them.
            first_order: As for the class, whose choice is the default.
            allow_unused: Likewise.
            allow_nograd: Likewise.

        Raises:
            ValueError: If the loss is no scalar or depends on no parameter; or if it does not
                depend on one, or one does not require grad, and that is not allowed. Nothing is
                changed then.
        """
        first_order = self.first_order if first_order is None else first_order
        allow_unused = self.allow_unused if allow_unused is None else allow_unused
        allow_nograd = self.allow_nograd if allow_nograd is None else allow_nograd
        group = Group(self.module)
        params = group.params()
        grads = gradients(loss, params, "the module", create_graph=not first_order)
        for p, g in zip(params, grads, strict=True):
            if not p.requires_grad and not allow_nograd:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} does not require grad: pass "
                    "`allow_nograd=True` to leave such parameters as they are"
                )
            if p.requires_grad and g is None and not allow_unused:
                raise ValueError(
                    f"`loss` does not depend on a parameter of shape {tuple(p.shape)}: pass "
                    "`allow_unused=True` to leave such parameters as they are"
                )
        pairs = zip(params, grads, strict=True)
        group.replace([p if g is None else p - self.lr * g for p, g in pairs])
