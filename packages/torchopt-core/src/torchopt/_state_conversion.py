"""States of other origin: of TorchOpt 0.7, and of `torch.optim`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import nn

from torchopt._chain import Chain
from torchopt._driver import as_chain, check_params, flat_state, initial_tree, open_step
from torchopt._legacy_state import converted, is_legacy
from torchopt._types import OptState, Params
from torchopt.base import GradientTransformation, as_rule, check_transformation
from torchopt.optim._checkpoint import check_owner, loaded_rows, plain_options, plain_rows
from torchopt.optim._hyperparameters import Hyperparameters, name_of
from torchopt.optim._layout import Layout
from torchopt.optim._meta import Group
from torchopt.optim._signature import TORCH_OPTIONS

__all__ = ["convert_state", "from_torch_state_dict", "to_torch_state_dict"]


def convert_state(
    transformation: GradientTransformation,
    state: OptState,
    params: Params | nn.Module,
    *,
    names_sorted: bool | None = None,
) -> OptState:
    """Return a state that TorchOpt 0.7 made as one of this version.

    There is seldom a need to call it: states of 0.7 are taken as they are by ``update``, by
    :class:`~torchopt.FuncOptimizer` and by ``load_state_dict`` of the other faces. In 0.7 the
    fields of an optimizer's state were flat lists, in the order of `optree`, in which the keys of
    dicts are sorted; here they are trees like the parameters. What is unchanged is not copied.

    Schedules counted for each leaf and count once here: the largest count is taken. What 0.7 did
    not keep is as before the first step: the buffers of leaves that had lost them in a step without
    a gradient, and step counts on which nothing depends.

    Args:
        transformation: The transformation that was made of the same arguments in 0.7.
        state: The state; one of this version is returned as it is.
        params: The tree of parameters that the state was made for; for one of the states in the
            tuple of a meta-optimizer, its module.
        names_sorted: For a module, whether the parameters of each submodule are in the order of
            their names rather than in that of their registration, which depends on the version of
            torch beside 0.7: by names where modules keep them in plain dicts, as they do today. By
            default whichever the shapes fit.

    Returns:
        The state, with trees like ``params``; lists for a module.

    Raises:
        ValueError: If the state belongs to another transformation or to other parameters; or if it
            fits a module in both orders, in different ways.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.transform import TraceState  # what a checkpoint of 0.7 refers to
        >>> saved = (TraceState(trace=[torch.zeros(1), torch.ones(2)]), torchopt.base.EmptyState())
        >>> params = {"weight": torch.zeros(2), "bias": torch.zeros(1)}
        >>> state = torchopt.utils.convert_state(torchopt.sgd(0.1, momentum=0.9), saved, params)
        >>> torchopt.pytree.tree_get(state, "trace")
        {'weight': tensor([1., 1.]), 'bias': tensor([0.])}
    """
    check_transformation(transformation, "`transformation`")
    rule = as_rule(transformation)
    if isinstance(params, nn.Module):
        return Group(params).upgraded(rule, state, names_sorted) if is_legacy(state) else state
    if names_sorted is not None:
        raise ValueError("`names_sorted` is for a module: in a tree the order is known")
    check_params(params)
    if not is_legacy(state):
        return state
    leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
    return initial_tree(rule, converted(rule, state, leaves, spec, params), spec)


def to_torch_state_dict(
    transformation: GradientTransformation, state: OptState, params: Params
) -> dict[str, Any]:
    """Return a functional state as the state dict of `torch.optim`'s optimizer of the same kind.

    That goes on with the same numbers: ``torch.optim.Adam(...).load_state_dict(...)`` after
    :func:`torchopt.adam`. So does the stateful form of this package.

    Args:
        transformation: The transformation, with one optimizer in it.
        state: Its state, of the functional face or of a meta-optimizer.
        params: The tree of parameters; for a meta-optimizer the list of its module's.

    Returns:
        Plain data, copied. The parameters are in the order in which the tree lists them, dicts as
        they were filled: that of ``dict(net.named_parameters())`` is that of ``net.parameters()``.
        There is one parameter group. Its ``lr`` is the one of the coming step if it is scheduled:
        schedules are beside the optimizers in `torch.optim`. Options that torch has not (``mask``,
        ``eps_root``) mean nothing to it.

    Raises:
        ValueError: If there is no optimizer in the transformation, or more than one; if each leaf
            has a learning rate of its own; if the state belongs to other parameters; or for
            :func:`torchopt.lbfgs`, whose stateful form goes both ways.
        TypeError: If the state belongs to another transformation.

    Example:
        >>> import torch, torchopt
        >>> params = {"w": torch.ones(2)}
        >>> adam = torchopt.adam(lr=0.1)
        >>> updates, state = adam.update({"w": torch.ones(2)}, adam.init(params))
        >>> params = torchopt.apply_updates(params, updates)
        >>> theirs = torch.optim.Adam(params.values())
        >>> theirs.load_state_dict(torchopt.utils.to_torch_state_dict(adam, state, params))
        >>> theirs.param_groups[0]["lr"], theirs.state[params["w"]]["exp_avg"]
        (0.1, tensor([0.1000, 0.1000]))
    """
    state = convert_state(transformation, state, params)
    chain, bare = _chain_of(transformation)
    leaves, spec, order = _listed(params)
    flat = flat_state(chain, (state,) if bare else state, spec)
    layout = Layout(chain, leaves, params, spec)
    options = _options(transformation, chain, flat, leaves, spec, params)
    found = layout.rows(flat)
    rows: Any = [found[i] for i in order]
    for entry in layout.entries:
        if entry.is_shared and rows:
            rows[0].setdefault(entry.name, found[0][entry.name])
            for row in rows[1:]:
                row.pop(entry.name, None)
    copied: Any = optree.tree_map(
        lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, rows, none_is_leaf=True
    )
    return {
        "state": plain_rows({k: row for k, row in enumerate(copied) if not _is_fresh(row)}),
        "param_groups": [{**options, "params": list(range(len(order)))}],
        "transformation": name_of(transformation),
    }


def _is_fresh(row: dict[str, Any]) -> bool:
    """Return whether a parameter is as before its first step, of which torch keeps nothing.

    To a buffer of zeros it would apply the dampening, which the first step is without.
    """
    return not row or (row.keys() == {"momentum_buffer", "step"} and int(row["step"]) == 0)


def from_torch_state_dict(
    transformation: GradientTransformation, state_dict: dict[str, Any], params: Params
) -> OptState:
    """Return the functional state that a state dict of `torch.optim`, or of a stateful form, holds.

    Args:
        transformation: The transformation; the options in the state dict are not looked at.
        state_dict: The state dict, of `torch.optim`'s optimizer of the same kind or of the stateful
            form of this one, or of :func:`to_torch_state_dict`.
        params: The tree of parameters, in the order of :func:`to_torch_state_dict`, whatever their
            groups; for a meta-optimizer the list of its module's.

    Returns:
        The state, copied. Parameters without a state there are as before their first step. A
        schedule goes on from the largest step count.

    Raises:
        ValueError: If the state dict was made by another optimizer or for other parameters, or is
            damaged; or for :func:`torchopt.lbfgs`.

    Example:
        >>> import torch, torchopt
        >>> w = torch.ones(2, requires_grad=True)
        >>> theirs = torch.optim.Adam([w])
        >>> w.sum().backward()
        >>> theirs.step()
        >>> packed = theirs.state_dict()
        >>> state = torchopt.utils.from_torch_state_dict(torchopt.adam(), packed, {"w": w})
        >>> torchopt.pytree.tree_get(state, "mu")
        {'w': tensor([0.1000, 0.1000])}
    """
    check_transformation(transformation, "`transformation`")
    check_params(params)
    check_owner(name_of(transformation), state_dict)
    leaves, spec, order = _listed(params)
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    if len(keys) != len(order):
        raise ValueError(
            f"the state dict has {len(keys)} parameters, `params` has {len(order)} leaves"
        )
    rows = dict(state_dict["state"])
    mine = [rows.pop(key, {}) for key in keys]
    if any(rows.values()):
        raise ValueError(f"the state dict has state beyond its parameters, for {sorted(rows)}")
    chain, bare = _chain_of(transformation)
    layout = Layout(chain, leaves, params, spec)
    found = loaded_rows(layout, [leaves[i] for i in order], mine, "the state dict")
    steps = max((int(row["step"]) for row in found if row.get("step") is not None), default=0)
    columns = []
    for entry, column in zip(
        layout.entries, layout.initial(leaves, params, sorted(order)), strict=True
    ):
        if entry.is_shared:
            value = found[0].get(entry.name, column) if found else column
            columns.append(value.clamp(min=steps) if entry.counts_steps else value)
            continue
        values = list(column)
        for i, row in zip(order, found, strict=True):
            if entry.name in row:
                values[i] = row[entry.name]
        columns.append(values)
    state = initial_tree(chain, layout.state(columns), spec)
    return state[0] if bare else state


def _chain_of(transformation: GradientTransformation) -> tuple[Chain, bool]:
    """Return the transformation as a chain, and whether it is none by itself.

    Raises:
        ValueError: If its state does not lie by parameter.
    """
    rule = as_rule(transformation)
    if rule.joint:
        raise ValueError(
            f"{name_of(transformation)} keeps all leaves as one vector, in the order of its tree: "
            "go by its stateful form, which has that of `torch.optim`"
        )
    chain = as_chain(rule)
    return chain, chain is not rule


def _listed(params: Params) -> tuple[list[Any], optree.PyTreeSpec, list[int]]:
    """Return leaves and structure, and the positions of what is not None as the tree lists it."""
    leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
    places = optree.tree_unflatten(spec, range(len(leaves)))
    with optree.dict_insertion_ordered(True, namespace="torchopt"):
        order = optree.tree_leaves(places, namespace="torchopt")
    return leaves, spec, [i for i in order if leaves[i] is not None]


def _options(
    transformation: GradientTransformation,
    chain: Chain,
    state: Any,
    leaves: Sequence[Any],
    spec: optree.PyTreeSpec,
    tree: Any,
) -> dict[str, Any]:
    """Return the hyperparameters as those of a parameter group."""
    values = Hyperparameters(transformation).values
    if "lr" not in values:
        raise ValueError(
            "a parameter group of `torch.optim` has the hyperparameters of one optimizer, but "
            f"{name_of(transformation)} has none in it, or several"
        )
    if not isinstance(values["lr"], (int, float)):
        step = open_step(chain, leaves, state, spec, leaves, tree)
        rate: Any = chain.rate(step.context)
        if not isinstance(rate, (int, float)) and getattr(rate, "ndim", 1) != 0:
            raise ValueError(
                "a parameter group of `torch.optim` has one learning rate: each leaf has its own"
            )
        values = {**values, "lr": float(_plain(rate))}
    options = {option.name: option.default for option in TORCH_OPTIONS}
    for name, value in values.items():
        options[name] = optree.tree_map(_plain, value, none_is_leaf=True)
    return plain_options(options)


def _plain(x: Any) -> Any:
    return x.item() if isinstance(x, torch.Tensor) and x.ndim == 0 else x
