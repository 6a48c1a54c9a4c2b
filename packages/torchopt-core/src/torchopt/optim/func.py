"""The functional optimizer that keeps its own state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optree

from torchopt.base import GradientTransformation, UninitializedState
from torchopt.optim._faces import Implementation, gradients
from torchopt.update import apply_updates

if TYPE_CHECKING:
    import torch

    from torchopt.typing import OptState, Params

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
        Implementation(impl)
        if not isinstance(inplace, bool):
            raise TypeError(f"`inplace` must be a bool, got {inplace!r}")
        self.impl = impl
        self.inplace = inplace
        self.optim_state: OptState = UninitializedState()

    def step(self, loss: torch.Tensor, params: Params, inplace: bool | None = None) -> Params:
        """Return the parameters after one step down the gradient of ``loss``.

        Args:
            loss: A scalar that depends on the parameters.
            params: A tree of tensors; ``None`` and what ``loss`` does not depend on stay.
            inplace: Whether this step overwrites; the optimizer's choice by default.

        Raises:
            ValueError: If ``loss`` is not a scalar, does not require grad, or depends on none of
                the parameters.
        """
        inplace = self.inplace if inplace is None else inplace
        leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
        grads = gradients(loss, leaves, "`params`", create_graph=not inplace)
        state = self.optim_state
        if isinstance(state, UninitializedState):
            state = self.impl.init(params)
        updates, state = self.impl.update(
            optree.tree_unflatten(spec, grads), state, params=params, inplace=inplace
        )
        params = apply_updates(params, updates, inplace=inplace)
        self.optim_state = state
        return params

    def state_dict(self) -> OptState:
        """Return the state, by reference."""
        return self.optim_state

    def load_state_dict(self, state_dict: OptState) -> None:
        """Continue from a state that :meth:`state_dict` returned."""
        self.optim_state = state_dict
