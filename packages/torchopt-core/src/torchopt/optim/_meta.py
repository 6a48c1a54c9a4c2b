"""The differentiable face: steps that replace the parameters inside a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn

from torchopt._chain import Chain
from torchopt._context import Evaluate
from torchopt._driver import Extras, as_chain, check_params, init, initial_tree, open_step, run
from torchopt._factory import Binder
from torchopt._legacy_state import Order, converted, is_legacy
from torchopt._rule import Rule, same
from torchopt._state import Field, Kind
from torchopt._structure import tuple_structure
from torchopt._submodules import submodules
from torchopt._types import Leaves, OptState
from torchopt.base import GradientTransformation, UninitializedState, as_rule, check_transformation
from torchopt.optim._docs import derived_docstring
from torchopt.optim._loss import gradients
from torchopt.optim._signature import derived_signature

__all__ = ["DerivedMetaOptimizer", "Group", "MetaOptimizer"]


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
        check_transformation(impl, "`impl`")
        self.impl = impl
        self._found: tuple[GradientTransformation, Rule, Chain] | None = None
        self._groups: list[Group] = []
        self.state_groups: list[OptState] = []
        self.add_param_group(module)

    def add_param_group(self, module: nn.Module) -> None:
        """Optimize the parameters of another module, too.

        Raises:
            ValueError: If the module has no parameters, or shares some with an earlier one.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
        group = Group(module)
        if not group.slots:
            raise ValueError("optimizer got an empty parameter list: the module has no parameters")
        check_params(group.params())
        taken = {id(param) for other in self._groups for param in other.params()}
        if not taken.isdisjoint(map(id, group.params())):
            raise ValueError("some parameters appear in more than one parameter group")
        self._groups.append(group)
        self.state_groups.append(UninitializedState())

    def step(self, loss: torch.Tensor | Callable[[], torch.Tensor]) -> None:
        """Replace the parameters by those after one step down the gradient of ``loss``.

        Args:
            loss: A scalar that depends on the modules' parameters; or a function without arguments
                that computes it from them as they are. Transformations that evaluate the loss
                again (`sam`, `lbfgs`) need the function, and call it with other parameters in the
                modules.

        Raises:
            ValueError: If ``loss`` is not a scalar, does not require grad, or depends on none of
                the parameters. Parameters and state are then as before.
        """
        every = [group.params() for group in self._groups]
        function = None if isinstance(loss, torch.Tensor) or not callable(loss) else loss
        value: Any = loss if function is None else function()
        owner = "the optimizer's modules"
        params_of_all = every[0] if len(every) == 1 else list(chain.from_iterable(every))
        grads = gradients(value, params_of_all, owner, create_graph=True)
        rule, links = self._rules()
        if links.reevaluates and function is None:
            raise ValueError(
                "the transformation evaluates the loss again in a step: pass `step` a function "
                "that computes the loss, instead of the loss"
            )
        steps, stepped, bare = [], [], rule is not links
        states: list[Any] = list(self.state_groups)
        for k, (group, params) in enumerate(zip(self._groups, every, strict=True)):
            group_grads, grads = grads[: len(params)], grads[len(params) :]
            spec = tuple_structure(len(params))
            if isinstance(states[k], UninitializedState):
                states[k] = init(rule, params, spec, tuple(params))
            if not [g for g in group_grads if g is not None]:
                continue
            evaluate = None if function is None else group.evaluation(function)
            extras = Extras(value=value, value_and_grad=evaluate)
            own = (states[k],) if bare else states[k]
            steps.append(open_step(links, group_grads, own, spec, params, tuple(params), extras))
            stepped.append(k)
        results = run(steps, inplace=False, stepping=True)
        for k, (news, state) in zip(stepped, results, strict=True):
            pairs = zip(news, every[k], strict=True)
            self._groups[k].replace([p if new is None else new for new, p in pairs])
            states[k] = state[0] if bare else state
        self.state_groups[:] = states

    def _rules(self) -> tuple[Rule, Chain]:
        """Return the rule, and it as a chain."""
        if self._found is None or self._found[0] is not self.impl:
            rule = as_rule(self.impl)
            self._found = self.impl, rule, as_chain(rule)
        return self._found[1:]

    def state_dict(self) -> tuple[OptState, ...]:
        """Return the state of each module, by reference; before the first step there is none."""
        return tuple(self.state_groups)

    def load_state_dict(self, state_dict: Sequence[OptState]) -> None:
        """Continue from a state that :meth:`state_dict` returned, here or in TorchOpt 0.7.

        Raises:
            ValueError: If it belongs to another optimizer or to other modules; or if it is of 0.7
                and does not tell which parameter is which, see
                :func:`torchopt.utils.convert_state`.
        """
        if not isinstance(state_dict, Sequence) or len(state_dict) != len(self._groups):
            raise ValueError(
                f"the state must be a sequence with one entry for each of {len(self._groups)} "
                f"modules, got {type(state_dict).__name__}"
            )
        rule = as_rule(self.impl)
        states = [
            group.upgraded(rule, state) if is_legacy(state) else state
            for group, state in zip(self._groups, state_dict, strict=True)
        ]
        for group, state in zip(self._groups, states, strict=True):
            if not isinstance(state, UninitializedState):
                _check_state(rule, state, group.params())
        self.state_groups[:] = states


class DerivedMetaOptimizer(MetaOptimizer):
    """A differentiable class with the signature of an optimizer's functional form.

    Args:
        module: The module to optimize. Parameters shared by several submodules stay shared.
        lr: A dict gives every parameter its own, by name.
    """

    _functional: ClassVar[Callable[..., GradientTransformation]]
    __signature__: ClassVar[inspect.Signature]
    _bind: ClassVar[Binder]

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
            cls._bind = Binder(cls.__signature__, cls.__name__)
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
        arguments = self._bind(args, kwargs)
        module = arguments.pop("module")
        if isinstance(arguments.get("lr"), Mapping) and isinstance(module, nn.Module):
            arguments["lr"] = _by_name(arguments["lr"], module)
        super().__init__(module, self._functional(**arguments))


class Group:
    """The parameters of one module, wherever they are in it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._find()

    def _find(self) -> None:
        # by parameter, the places that hold it: more than one if it is shared
        self.slots: list[list[tuple[dict[str, Any], str]]] = []
        self._containers: list[dict[str, Any]] = []
        index: dict[int, int] = {}
        for submodule in submodules(self._module):
            self._containers.append(submodule._parameters)
            for name, param in submodule._parameters.items():
                if param is not None:
                    position = index.setdefault(id(param), len(self.slots))
                    if position == len(self.slots):
                        self.slots.append([])
                    self.slots[position].append((submodule._parameters, name))
        self._shared = [places for places in self.slots if len(places) > 1]

    def params(self) -> list[torch.Tensor]:
        """Return the tensors that stand for the parameters now."""
        for (first, key), *others in self._shared:
            if any(container[name] is not first[key] for container, name in others):
                self._find()  # they have been given tensors of their own since
                break
        return [container[name] for (container, name), *_ in self.slots]

    def upgraded(self, rule: Rule, state: OptState, names_sorted: bool | None = None) -> OptState:
        """Return a state of TorchOpt 0.7 for the module as one of this version.

        Raises:
            ValueError: If it belongs to another transformation or module, or fits two orders.
        """
        params = tuple(self.params())
        spec = tuple_structure(len(params))
        found: list[Any] = []
        problem = None
        for is_sorted in (True, False) if names_sorted is None else (names_sorted,):
            try:
                found.append(converted(rule, state, params, spec, params, self._order(is_sorted)))
            except ValueError as error:
                problem = problem or error
        if not found:
            assert problem is not None
            raise problem
        if not same(found[0], found[-1]):
            raise ValueError(
                "the state of TorchOpt 0.7 does not tell the parameters of a submodule apart: they "
                "are in the order of their names or, with the torch of its time, in that of their "
                "registration, and their shapes fit both. Say which by `names_sorted` in "
                "`torchopt.utils.convert_state(impl, state, module, names_sorted=...)`, and load "
                "what it returns"
            )
        return initial_tree(rule, found[0], spec)

    def _order(self, names_sorted: bool) -> Order:
        """Return where the parameters are in lists of TorchOpt 0.7, which repeat shared ones."""
        index: dict[tuple[int, str], int] = {}
        for container in self._containers:
            names = [name for name, p in container.items() if p is not None]
            for name in sorted(names) if names_sorted else names:
                index[id(container), name] = len(index)
        firsts = [places[0] for places in self.slots]
        return Order([index[id(container), name] for container, name in firsts], len(index))

    def replace(self, params: list[torch.Tensor]) -> None:
        """Put other tensors in the parameters' places."""
        for param, places in zip(params, self.slots, strict=True):
            for container, name in places:
                container[name] = param

    def evaluation(self, loss: Callable[[], torch.Tensor]) -> Evaluate:
        """Return a function from other parameters to the loss and its gradients there."""

        def evaluate(moved: Leaves) -> tuple[torch.Tensor, Leaves]:
            kept = self.params()
            self.replace(moved)
            try:
                value = loss()
                found = gradients(value, moved, "the module", create_graph=True)
            finally:
                self.replace(kept)
            pairs = zip(found, moved, strict=True)
            return value, [torch.zeros_like(p) if g is None else g for g, p in pairs]

        return evaluate


def _by_name(rates: Mapping[str, Any], module: nn.Module) -> list[Any]:
    names = [name for name, _ in module.named_parameters()]
    if set(rates) != set(names):
        raise ValueError(f"`lr` has the names {sorted(rates)}, the module has {sorted(names)}")
    return [rates[name] for name in names]


def _check_state(rule: Rule, state: OptState, params: list[torch.Tensor]) -> None:
    """Raise unless a state is one of the rule's for such parameters."""

    # each leaf has its moments, unless some leaves are left to others
    is_whole = not rule.partial

    def check(field: Field, value: Any) -> Any:
        if field.is_shared:  # it may change its shape from step to step
            return value
        if not isinstance(value, (list, tuple)) or len(value) != len(params):
            raise ValueError(
                f"the state belongs to another module: `{field.name}` must be a list with an entry "
                f"for each of {len(params)} parameters, got {_shown(value)}"
            )
        if field.kind is not Kind.MOMENT:
            return value
        for i, (x, p) in enumerate(zip(value, params, strict=True)):
            if (x is None and is_whole) or (x is not None and x.shape != p.shape):
                raise ValueError(
                    f"the state belongs to another module: entry {i} of `{field.name}` is "
                    f"{_shown(x)}, expected shape {tuple(p.shape)}"
                )
        return value

    try:
        rule.map_state(check, state)
    except TypeError as error:
        raise ValueError(f"the state belongs to another optimizer: {error}") from error


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"of shape {tuple(value.shape)}"
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
