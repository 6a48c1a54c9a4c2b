"""Modules that are solved for their parameters, with gradients for meta-parameters."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from torchopt.nn import MetaGradientModule
from torchopt_implicit._capture import has_derivatives
from torchopt_implicit._implicit_solver import ImplicitSolver
from torchopt_implicit._solution import implicit_solution
from torchopt_implicit.linear_solve import solve_normal_cg

__all__ = ["ImplicitMetaGradientModule"]


class ImplicitMetaGradientModule(MetaGradientModule):
    r"""A module whose own parameters solve an equation that depends on meta-parameters.

    Own parameters :math:`x` are found by :meth:`solve`, such that

    .. math:: F(x, \theta) = 0, \quad\text{or}\quad x = \arg\min_x f(x, \theta),

    where the meta-parameters :math:`\theta` are those given to the constructor, as in
    :class:`torchopt.nn.MetaGradientModule`, and tensors that the equation has from elsewhere, as
    :func:`custom_root` says; the arguments of :meth:`solve` are constants. After
    ``module.solve(...)`` the own parameters are functions of these, with derivatives by the
    implicit function theorem: whatever is computed from them can be differentiated. The next
    ``solve`` starts from their values. Under :func:`torch.no_grad` it only solves.

    A subclass defines :meth:`solve`, and :meth:`optimality` or :meth:`objective`, all with the same
    arguments. The class argument ``linear_solve`` is the solver of linear systems, one of
    :mod:`torchopt.linear_solve`; by default ``solve_normal_cg()``.

    Args:
        *args: The arguments of the subclass's constructor.
        **kwargs: Likewise.

    Raises:
        TypeError: At the definition of a subclass, if it has neither :meth:`optimality` nor
            :meth:`objective`, or one is not a method, or does not take the arguments of
            :meth:`solve`. When instantiated, if it has no :meth:`solve`.

    Example:
        >>> import torch, torchopt
        >>> solve_cg = torchopt.linear_solve.solve_cg
        >>> class Mean(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve_cg()):
        ...     def __init__(self, prior):
        ...         super().__init__()
        ...         self.prior = prior
        ...         self.x = torch.nn.Parameter(torch.zeros(()))
        ...
        ...     def objective(self, data):
        ...         return ((self.x - data) ** 2).mean() + (self.x - self.prior) ** 2
        ...
        ...     def solve(self, data):
        ...         self.x.copy_((data.mean() + self.prior) / 2)
        ...         return self
        >>> prior = torch.tensor(1.0, requires_grad=True)
        >>> Mean(prior).solve(torch.tensor([2.0, 4.0])).x.backward()
        >>> prior.grad
        tensor(0.5000)
    """

    _linear: ClassVar[ImplicitSolver]

    def __init_subclass__(
        cls, linear_solve: Callable[[Any, Any], Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if linear_solve is not None and not callable(linear_solve):
            raise TypeError(
                f"`linear_solve` of {cls.__name__} must be callable, such as solve_cg(), got "
                f"{linear_solve!r}"
            )
        inherited = getattr(cls, "_linear", None)
        solver = linear_solve or (inherited.solve if inherited else solve_normal_cg())
        cls._linear = ImplicitSolver(solver, f"{cls.__name__}.solve")
        for name in ("solve", "optimality", "objective"):
            _check_method(cls, name)
        base = ImplicitMetaGradientModule
        has_optimality = cls.optimality is not base.optimality
        if not has_optimality and cls.objective is base.objective:
            raise TypeError(
                f"{cls.__name__} must define optimality(), the residual that vanishes at the "
                "solution, or objective(), the function that is minimized"
            )
        if cls.solve is not base.solve:
            _check_signatures(cls, "optimality" if has_optimality else "objective")
        if "solve" in vars(cls):
            cls.solve = _implicit(vars(cls)["solve"])  # type: ignore[method-assign]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if type(self).solve is ImplicitMetaGradientModule.solve:
            raise TypeError(f"{type(self).__name__} must define solve() to be instantiated")
        super().__init__(*args, **kwargs)

    def solve(self, *args: Any, **kwargs: Any) -> Any:
        """Set the own parameters to a solution, in place or by assignment; return the module.

        Runs without gradients; use :func:`torch.enable_grad` for steps that need them.
        """
        raise NotImplementedError

    def objective(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the 0-dim tensor that is minimized over the own parameters."""
        raise NotImplementedError

    def optimality(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Return the residual that vanishes at a solution: one tensor like each own parameter.

        In the order of ``self.parameters()``, those that require grad. By default, the gradient of
        :meth:`objective`.
        """
        own = _own(self)

        def loss(parameters: tuple[torch.Tensor, ...]) -> torch.Tensor:
            with own.holding(parameters):
                return self.objective(*args, **kwargs)

        gradient: tuple[torch.Tensor, ...] = torch.func.grad(loss)(own.tensors)
        return gradient


def _implicit(solve: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method ``solve``, after which own parameters depend on meta-parameters."""

    @functools.wraps(solve)
    def solve_implicitly(self: ImplicitMetaGradientModule, *args: Any, **kwargs: Any) -> Any:
        start = _own(self)
        start.put([x if x.is_leaf else nn.Parameter(x.detach().clone()) for x in start.tensors])
        with torch.no_grad():
            result = solve(self, *args, **kwargs)
        own, meta = _own(self), _meta(self)

        def residual(
            x: tuple[torch.Tensor, ...],
            theta: tuple[torch.Tensor, ...],
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
        ) -> Any:
            with own.holding(x), meta.holding(theta):
                value: Any = self.optimality(*args, **kwargs)
            is_single = isinstance(value, torch.Tensor)  # as where there is one parameter
            return (value,) if is_single else tuple(value)

        # without gradients, or within the solve() of a subclass, only values are asked for
        if torch.is_grad_enabled() and own.tensors:
            solution = implicit_solution(
                residual,
                own.tensors,
                (meta.tensors, args, kwargs),
                (0,),
                self._linear,
                name="optimality",
            )
            # a solution that depends on nothing leaves parameters to be parameters
            if any(has_derivatives(x) for x in solution):
                own.put(solution)
        return result

    return solve_implicitly


class _Slots:
    """Places in modules that hold tensors; tied parameters are one tensor in many places."""

    def __init__(self, places: Iterable[tuple[dict[str, Any], str]]) -> None:
        self.places = list(places)
        unique = {id(entries[key]): entries[key] for entries, key in self.places}
        self.tensors: tuple[torch.Tensor, ...] = tuple(unique.values())
        order = {identity: i for i, identity in enumerate(unique)}
        self.index = [order[id(entries[key])] for entries, key in self.places]

    def put(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put others in the places of ``self.tensors``."""
        for (entries, key), i in zip(self.places, self.index, strict=True):
            entries[key] = tensors[i]

    @contextlib.contextmanager
    def holding(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Put others in their places inside a ``with`` block."""
        before = [entries[key] for entries, key in self.places]
        self.put(tensors)
        try:
            yield
        finally:
            for (entries, key), tensor in zip(self.places, before, strict=True):
                entries[key] = tensor


def _own(module: nn.Module) -> _Slots:
    return _Slots(
        (owner._parameters, key)
        for owner in module.modules()
        for key, tensor in owner._parameters.items()
        if tensor is not None and tensor.requires_grad
    )


def _meta(module: MetaGradientModule) -> _Slots:
    direct = (vars(owner).get("_meta_parameters", {}) for owner in module.modules())
    members = [*direct, *(owner._parameters for owner in module.meta_modules())]
    return _Slots(
        (entries, key)
        for entries in members
        for key, tensor in entries.items()
        if tensor is not None
    )


def _check_method(cls: type, name: str) -> None:
    attribute = inspect.getattr_static(cls, name)
    if isinstance(attribute, (staticmethod, classmethod, property)) or not callable(attribute):
        raise TypeError(
            f"{cls.__name__}.{name} must be a method, `def {name}(self, ...)`, got "
            f"{type(attribute).__name__}"
        )
    if not inspect.signature(attribute).parameters:
        raise TypeError(f"{cls.__name__}.{name}() must take `self` as its first argument")


def _check_signatures(cls: type[ImplicitMetaGradientModule], name: str) -> None:
    """Raise unless a method takes all that ``solve`` takes."""
    solve = inspect.signature(cls.solve)
    other = inspect.signature(getattr(cls, name))
    given, taken = (list(signature.parameters.values())[1:] for signature in (solve, other))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(parameter.kind in variadic for parameter in (*given, *taken)):
        return
    needs = [p for p in taken if p.default is p.empty]
    has = [p for p in given if p.default is p.empty]
    named = {p.name for p in given if p.kind is p.KEYWORD_ONLY}
    fits = len(taken) >= len(given) and len(needs) <= len(has)
    if not fits or not named <= {p.name for p in taken}:
        raise TypeError(
            f"{cls.__name__}.{name}() must take the arguments of solve(), as it is called with "
            f"them: got {name}{other} and solve{solve}"
        )
