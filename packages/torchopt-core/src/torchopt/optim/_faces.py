"""What the stateful and the differentiable face share: signatures, hyperparameters, losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optree
import torch

from torchopt.base import (
    ChainedGradientTransformation,
    GradientTransformation,
    as_rule,
    chain,
    check_transformation,
)
from torchopt.optim._descent import OptimizerTransformation

if TYPE_CHECKING:
    from torchopt._rule import Rule

__all__ = ["Implementation", "check_loss", "derived_signature", "gradients"]


class Implementation:
    """A transformation, and its hyperparameters if it is, or has as its one link, an optimizer."""

    def __init__(self, impl: GradientTransformation) -> None:
        """Find the hyperparameters of ``impl``."""
        check_transformation(impl, "`impl`")
        links: tuple[GradientTransformation, ...] = (impl,)
        if isinstance(impl, ChainedGradientTransformation):
            links = impl.transformations
        optimizers = [i for i, x in enumerate(links) if isinstance(x, OptimizerTransformation)]
        self._links = links
        self._position = optimizers[0] if len(optimizers) == 1 else None
        #: The hyperparameters by name; none if the transformation is not an optimizer's.
        self.hyperparameters: dict[str, Any] = {}
        if self._position is not None:
            link = links[self._position]
            assert isinstance(link, OptimizerTransformation)
            self.hyperparameters = link.hyperparameters

    @property
    def name(self) -> str:
        """What the transformation is, up to its hyperparameters."""
        return " -> ".join(map(_name, self._links))

    def rule(self, hyperparameters: dict[str, Any]) -> Rule:
        """Return the rule with other hyperparameters."""
        links = list(self._links)
        if self._position is not None:
            link = links[self._position]
            assert isinstance(link, OptimizerTransformation)
            links[self._position] = link.factory(**hyperparameters)
        return as_rule(chain(*links))


def _name(link: GradientTransformation) -> str:
    if isinstance(link, OptimizerTransformation):
        return link.factory.__name__
    return type(as_rule(link)).__name__.lstrip("_")


def derived_signature(
    functional: Callable[..., Any],
    first: str,
    positional: Sequence[str] | None,
    drop: Sequence[str] = (),
    **defaults: Any,
) -> inspect.Signature:
    """Return the signature of a class derived from an optimizer's functional form.

    Args:
        functional: The functional form.
        first: The name of the first parameter, which stands for the parameters or the module.
        positional: The names of the positional hyperparameters where they differ.
        drop: Hyperparameters that the class does not take.
        **defaults: Defaults that differ.
    """
    hyperparameters = {
        name: parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in inspect.signature(functional).parameters.items()
        if name not in drop
    }
    kinds = inspect.Parameter
    if positional is None:
        ordered = list(hyperparameters.values())
    else:
        ordered = [
            hyperparameters.pop(name).replace(kind=kinds.POSITIONAL_OR_KEYWORD)
            for name in positional
        ]
        ordered += [p.replace(kind=kinds.KEYWORD_ONLY) for p in hyperparameters.values()]
    return inspect.Signature([kinds(first, kinds.POSITIONAL_OR_KEYWORD), *ordered])


def check_loss(loss: Any) -> None:
    """Raise unless ``loss`` is a scalar tensor that requires a gradient."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"`loss` must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"`loss` must be a scalar, got shape {tuple(loss.shape)}: reduce it, "
            "for example by `loss.mean()`"
        )
    if not loss.requires_grad:
        raise ValueError(
            "`loss` does not require grad: it does not depend on the parameters, or was computed "
            "under `torch.no_grad()` or from detached tensors"
        )


def gradients(
    loss: torch.Tensor, params: Sequence[torch.Tensor | None], owner: str, create_graph: bool
) -> list[torch.Tensor | None]:
    """Return the gradients of ``loss``, ``None`` for what it does not depend on.

    Raises:
        ValueError: If it depends on none of the parameters.
    """
    check_loss(loss)
    wanted = [i for i, p in enumerate(params) if p is not None and p.requires_grad]
    grads: list[torch.Tensor | None] = [None] * len(params)
    if wanted:
        found = torch.autograd.grad(
            loss,
            [p for p in params if p is not None and p.requires_grad],
            create_graph=create_graph,
            allow_unused=True,
        )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    if all(grad is None for grad in grads):
        raise ValueError(f"`loss` does not depend on any parameter of {owner}")
    return grads


def list_structure(length: int) -> optree.PyTreeSpec:
    """Return the tree structure of a list of parameters."""
    return optree.tree_structure([0] * length, none_is_leaf=True)  # type: ignore[arg-type]
