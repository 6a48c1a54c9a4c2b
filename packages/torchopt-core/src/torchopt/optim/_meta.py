"""The differentiable face: steps that replace the parameters inside a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import optree
import torch
from torch import nn

from torchopt._workspace import Workspace
from torchopt.base import GradientTransformation, UninitializedState, as_rule, check_params
from torchopt.optim._docs import derived_docstring
from torchopt.optim._faces import Implementation, derived_signature, gradients, list_structure

if TYPE_CHECKING:
    from torchopt.typing import OptState

__all__ = ["DerivedMetaOptimizer", "MetaOptimizer"]


class MetaOptimizer:
    """An optimizer whose steps are differentiable: for the inner loop of a meta-learner.

    A step replaces the module's parameters by non-leaf tensors, which depend on the parameters
    before the step, on the loss, on the state and on hyperparameters that are tensors. Save the
    module's state before an episode by :func:`~torchopt.extract_state_dict`, bring it back by
    :func:`~torchopt.recover_state_dict`.

    Args:
        module: The module to optimize. Parameters shared by several submodules stay shared.
        impl: The transformation, for example ``torchopt.sgd(0.1)`` or a chain.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> initial = net.weight
        >>> inner = torchopt.MetaOptimizer(net, torchopt.sgd(lr=0.1))
        >>> inner.step(net(torch.ones(1)).square().sum())
        >>> torch.autograd.grad(net.weight.sum(), initial)
        (tensor([[0.8000]]),)
    """

    def __init__(self, module: nn.Module, impl: GradientTransformation) -> None:
        """Take the module; the state is made in the first step."""
        Implementation(impl)
        self.impl = impl
        self._groups: list[_Group] = []
        self.state_groups: list[OptState] = []
        self.add_param_group(module)

    def add_param_group(self, module: nn.Module) -> None:
        """Optimize the parameters of another module, too.

        Raises:
            ValueError: If the module has no parameters, or shares some with an earlier one.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
        group = _Group(module)
        if not group.slots:
            raise ValueError("optimizer got an empty parameter list: the module has no parameters")
        check_params(group.params())
        taken = {id(param) for other in self._groups for param in other.params()}
        if not taken.isdisjoint(map(id, group.params())):
            raise ValueError("some parameters appear in more than one parameter group")
        self._groups.append(group)
        self.state_groups.append(UninitializedState())

    def step(self, loss: torch.Tensor) -> None:
        """Replace the parameters by those after one step down the gradient of ``loss``.

        Args:
            loss: A scalar that depends on the modules' parameters.

        Raises:
            ValueError: If ``loss`` is not a scalar, does not require grad, or depends on none of
                the parameters. Parameters and state are then as before.
        """
        every = [group.params() for group in self._groups]
        grads = iter(
            gradients(
                loss, list(chain.from_iterable(every)), "the optimizer's modules", create_graph=True
            )
        )
        rule = as_rule(self.impl)
        results = []
        for params, state in zip(every, self.state_groups, strict=True):
            group_grads = [next(grads) for _ in params]
            if isinstance(state, UninitializedState):
                state = rule.init(params)
            work = Workspace.over(
                group_grads, list_structure(len(params)), False, params, checked=True
            )
            chosen = work.select(group_grads)
            if chosen:
                news, state = rule.step(chosen, state, work.select(params), work)
                params = work.merge(news, params, like=params)
            results.append((params, state))
        for group, (params, _) in zip(self._groups, results, strict=True):
            group.replace(params)
        self.state_groups[:] = [state for _, state in results]

    def state_dict(self) -> tuple[OptState, ...]:
        """Return the state of each module, by reference; before the first step there is none."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[OptState]) -> None:
        """Continue from a state that :meth:`state_dict` returned.

        Raises:
            ValueError: If it belongs to another optimizer or to other modules.
        """
        if not isinstance(state_dict, (tuple, list)) or len(state_dict) != len(self._groups):
            raise ValueError(
                f"the state must be a tuple with one entry for each of {len(self._groups)} "
                f"modules, got {type(state_dict).__name__}"
            )
        for group, state in zip(self._groups, state_dict, strict=True):
            if not isinstance(state, UninitializedState):
                _check_state(state, group.expected_state(self.impl))
        self.state_groups[:] = state_dict


class DerivedMetaOptimizer(MetaOptimizer):
    """A differentiable class with the signature of an optimizer's functional form.

    Args:
        module: The module to optimize. Parameters shared by several submodules stay shared.
        lr: A dict gives every parameter its own, by name.
    """

    _functional: ClassVar[Callable[..., GradientTransformation]]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(
        cls,
        functional: Callable[..., GradientTransformation] | None = None,
        positional: Sequence[str] | None = None,
        moment_requires_grad: bool = True,
        **kwargs: Any,
    ) -> None:
        """Take the functional form, and what differs from its signature."""
        super().__init_subclass__(**kwargs)
        if functional is not None:
            cls._functional = staticmethod(functional)
            cls.__signature__ = derived_signature(
                functional, "module", positional, moment_requires_grad=moment_requires_grad
            )
            cls.__doc__ = derived_docstring(
                cls.__doc__,
                functional.__doc__,
                DerivedMetaOptimizer.__doc__,
                cls.__signature__.parameters,
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the module, and the hyperparameters of the functional form.

        A learning rate for each parameter may be given by name, as a dict.
        """
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        module = arguments.pop("module")
        if isinstance(arguments["lr"], Mapping) and isinstance(module, nn.Module):
            arguments["lr"] = _by_name(arguments["lr"], module)
        super().__init__(module, self._functional(**arguments))


class _Group:
    """The parameters of one module, wherever they are in it."""

    def __init__(self, module: nn.Module) -> None:
        # by parameter, the places that hold it: more than one if it is shared
        self.slots: list[list[tuple[dict[str, Any], str]]] = []
        self._expected: OptState | None = None
        index: dict[int, int] = {}
        for submodule in module.modules():
            for name, param in submodule._parameters.items():
                if param is not None:
                    position = index.setdefault(id(param), len(self.slots))
                    if position == len(self.slots):
                        self.slots.append([])
                    self.slots[position].append((submodule._parameters, name))

    def params(self) -> list[torch.Tensor]:
        """Return the tensors that stand for the parameters now."""
        return [container[name] for (container, name), *_ in self.slots]

    def replace(self, params: list[torch.Tensor]) -> None:
        """Put other tensors in the parameters' places."""
        for param, places in zip(params, self.slots, strict=True):
            for container, name in places:
                container[name] = param

    def expected_state(self, impl: GradientTransformation) -> OptState:
        """Return a state with the structure and the shapes that the module's has."""
        if self._expected is None:
            self._expected = impl.init([x.detach().to("meta") for x in self.params()])
        return self._expected


def _by_name(rates: Mapping[str, Any], module: nn.Module) -> list[Any]:
    names = [name for name, _ in module.named_parameters()]
    if set(rates) != set(names):
        raise ValueError(f"`lr` has the names {sorted(rates)}, the module has {sorted(names)}")
    return [rates[name] for name in names]


def _leaves(state: OptState) -> Iterator[tuple[str, Any]]:
    accessors, leaves, _ = optree.tree_flatten_with_accessor(state, none_is_leaf=True)
    for accessor, leaf in zip(accessors, leaves, strict=True):
        yield accessor.codify("state"), leaf


def _check_state(state: OptState, expected: OptState) -> None:
    mine_spec = optree.tree_structure(expected, none_is_leaf=True)
    theirs_spec = optree.tree_structure(state, none_is_leaf=True)
    if mine_spec != theirs_spec:
        raise ValueError(
            "the state belongs to another optimizer or module: it has the structure "
            f"{theirs_spec}, expected {mine_spec}"
        )
    for (name, mine), (_, theirs) in zip(_leaves(expected), _leaves(state), strict=True):
        if getattr(mine, "shape", None) != getattr(theirs, "shape", None):
            raise ValueError(
                f"the state belongs to another module: `{name}` is {_shape(theirs)}, "
                f"expected {_shape(mine)}"
            )


def _shape(leaf: Any) -> str:
    return f"of shape {tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf)
