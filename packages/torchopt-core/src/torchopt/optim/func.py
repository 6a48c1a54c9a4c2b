"""The functional optimizer that keeps its own state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt._types import OptState, Params
from torchopt.base import (
    GradientTransformation,
    RuleTransformation,
    UninitializedState,
    check_transformation,
)
from torchopt.optim._loss import gradients
from torchopt.update import apply_updates

__all__ = ["FuncOptimizer"]


class FuncOptimizer:
    """An optimizer of trees of tensors: takes parameters, returns parameters, keeps the state.

    Args:
        impl: The transformation, for example ``torchopt.adam(1e-3)``.
        inplace: Whether steps overwrite parameters and state; by default they are differentiable.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.FuncOptimizer(torchopt.sgd(lr=0.1))
        >>> params = {"w": torch.tensor([1.0], requires_grad=True)}
        >>> new = optim.step(params["w"].square().sum(), params)
        >>> torch.autograd.grad(new["w"].sum(), params["w"])
        (tensor([0.8000]),)
    """

    def __init__(self, impl: GradientTransformation, *, inplace: bool = False) -> None:
        """Take the transformation; the state is made in the first step."""
        check_transformation(impl, "`impl`")
        if not isinstance(inplace, bool):
            raise TypeError(f"`inplace` must be a bool, got {inplace!r}")
        self.impl = impl
        self.inplace = inplace
        self.optim_state: OptState = UninitializedState()

    def step(
        self,
        loss: torch.Tensor | Callable[[Params], torch.Tensor],
        params: Params,
        inplace: bool | None = None,
    ) -> Params:
        """Return the parameters after one step down the gradient of ``loss``.

        Args:
            loss: A scalar that depends on the parameters; or a function from them to it, which
                transformations that evaluate the loss again (`sam`, `lbfgs`) need.
            params: A tree of tensors; ``None`` and what ``loss`` does not depend on stay.
            inplace: Whether this step overwrites; the optimizer's choice by default.

        Raises:
            ValueError: If ``loss`` is not a scalar, does not require grad, or depends on none of
                the parameters.
        """
        inplace = self.inplace if inplace is None else inplace
        leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
        extras: dict[str, Any] = {}
        if not isinstance(loss, torch.Tensor) and callable(loss):
            function = loss

            def value_and_grad(moved: Params) -> tuple[torch.Tensor, Params]:
                value = function(moved)
                found = gradients(
                    value,
                    optree.tree_leaves(moved, none_is_leaf=True),
                    "`params`",
                    create_graph=not inplace,
                )
                return value, optree.tree_unflatten(spec, found)

            loss, grads = value_and_grad(params)
            if isinstance(self.impl, RuleTransformation):
                extras = {"value": loss, "value_and_grad": value_and_grad}
        else:
            found = gradients(loss, leaves, "`params`", create_graph=not inplace)
            grads = optree.tree_unflatten(spec, found)
        state = self.optim_state
        if isinstance(state, UninitializedState):
            state = self.impl.init(params)
        updates, state = self.impl.update(grads, state, params=params, inplace=inplace, **extras)
        params = apply_updates(params, updates, inplace=inplace)
        self.optim_state = state
        return params

    def state_dict(self) -> OptState:
        """Return the state, by reference."""
        return self.optim_state

    def load_state_dict(self, state_dict: OptState) -> None:
        """Continue from a state that :meth:`state_dict` returned, here or in TorchOpt 0.7."""
        self.optim_state = state_dict
