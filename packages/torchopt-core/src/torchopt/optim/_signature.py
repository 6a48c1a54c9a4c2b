"""The signature of a class that is derived from an optimizer's functional form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["TORCH_OPTIONS", "check_torch_options", "derived_signature"]


def _option(name: str, default: bool | None, annotation: str) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


#: Keywords of `torch.optim` that choose between equal implementations there.
TORCH_OPTIONS = (
    _option("foreach", None, "bool | None"),
    _option("capturable", False, "bool"),
    _option("differentiable", False, "bool"),
    _option("fused", None, "bool | None"),
)


def derived_signature(
    functional: Callable[..., Any],
    first: str,
    positional: Sequence[str] | None,
    drop: Sequence[str] = (),
    options: Sequence[inspect.Parameter] = (),
    **defaults: Any,
) -> inspect.Signature:
    """Return the signature of a class derived from an optimizer's functional form.

    Args:
        functional: The functional form.
        first: The name of the first parameter, which stands for the parameters or the module.
        positional: The names of the positional hyperparameters where they differ.
        drop: Hyperparameters that the class does not take.
        options: Keywords that the class takes beside them.
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
    return inspect.Signature([kinds(first, kinds.POSITIONAL_OR_KEYWORD), *ordered, *options])


def check_torch_options(hyperparameters: dict[str, Any], options: dict[str, Any]) -> None:
    """Raise for what `torch.optim` refuses, and for the option that would change results."""
    if options["differentiable"]:
        raise ValueError(
            "`differentiable=True` is not supported by the stateful optimizers: use the "
            "differentiable form (`MetaAdam` and its kin) or the functional one"
        )
    if options["foreach"] and options["fused"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    lr, betas = hyperparameters.get("lr"), hyperparameters.get("betas", ())
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if isinstance(betas, tuple) and len({isinstance(x, torch.Tensor) for x in betas}) > 1:
        raise ValueError("betas must be either both floats or both Tensors")
    if not options["foreach"] or options["capturable"]:
        return
    if isinstance(lr, torch.Tensor):
        raise ValueError("lr as a Tensor is not supported for capturable=False and foreach=True")
    for i, beta in enumerate(betas if isinstance(betas, tuple) else ()):
        if isinstance(beta, torch.Tensor):
            raise ValueError(
                f"betas[{i}] as a Tensor is not supported for capturable=False and foreach=True"
            )
