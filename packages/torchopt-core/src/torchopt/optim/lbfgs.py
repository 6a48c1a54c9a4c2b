"""L-BFGS."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch

from torchopt._context import Context
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import record, shared
from torchopt._types import Leaves, ScalarOrSchedule
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.optim import _derived
from torchopt.optim._line_search import Point, strong_wolfe

__all__ = ["LBFGS", "MetaLBFGS", "lbfgs"]

# the least curvature for a pair to be remembered
_CURVATURE = 1e-10

Vector = torch.Tensor


@record(
    direction=shared("d"),
    step_size=shared("t"),
    grad_changes=shared("old_dirs"),
    moves=shared("old_stps"),
    curvatures=shared("ro"),
    scale=shared("H_diag"),
    grad=shared("prev_flat_grad"),
    value=shared("prev_loss"),
    iterations=shared("n_iter"),
    evaluations=shared("func_evals"),
)
class LbfgsState(NamedTuple):
    """The state of :func:`lbfgs`, over all leaves as one vector."""

    # the last direction and the last step size; None before the first step
    direction: Vector | None = None
    step_size: Any = None
    # the pairs remembered, oldest first: changes of the gradient y, moves s, and 1 / <y, s>
    grad_changes: list[Vector] | None = None
    moves: list[Vector] | None = None
    curvatures: list[torch.Tensor] | None = None
    # scale of the initial inverse Hessian
    scale: Any = None
    # gradient and value that the last direction started from
    grad: Vector | None = None
    value: Any = None
    # iterations and evaluations made
    iterations: int = 0
    evaluations: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class LbfgsDirection(Rule):
    """The rule of L-BFGS, learning rate included; see :func:`lbfgs`."""

    max_iter: int
    max_eval: int | None
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search_fn: str | None

    # all leaves are one vector; it evaluates the loss, which may fail
    elementwise = False
    joint = True
    fallible = True
    reevaluates = True
    absorbs_rate = True
    state_type = LbfgsState

    def __post_init__(self) -> None:
        if self.line_search_fn not in (None, "strong_wolfe"):
            raise ValueError(
                f"only 'strong_wolfe' is supported as `line_search_fn`, got {self.line_search_fn!r}"
            )
        for name in ("tolerance_grad", "tolerance_change"):
            check_non_negative(name, getattr(self, name))
        for name in ("max_iter", "history_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be an int of at least 1, got {getattr(self, name)!r}"
                )
        if self.max_eval is not None and not (isinstance(self.max_eval, int) and self.max_eval > 0):
            raise ValueError(f"`max_eval` must be an int of at least 1, got {self.max_eval!r}")

    def init(self, params: Leaves, context: Context) -> LbfgsState:
        return LbfgsState()

    def prepare(self, state: Any, context: Context) -> None:
        if context.params is None or context.value_and_grad is None:
            raise ValueError(
                "`lbfgs` evaluates loss and gradient at other parameters: pass `params=` and "
                "`value_and_grad=` to `update`"
            )
        if isinstance(context.lr, (tuple, list)):
            raise ValueError("`lbfgs` has one learning rate for all leaves, got a tree")

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        problem = _Problem(context)
        value = context.value
        if value is None:
            assert context.value_and_grad is not None
            assert context.params is not None
            value = context.value_and_grad(context.params)[0]
        grad = _flat(updates.materialize(context))
        try:
            end, state = self._minimize(problem, problem.number(value), grad, state, context.lr)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise RuntimeError(
                "`lbfgs` decides by values how to go on, so it cannot run under `torch.vmap`: loop "
                "over the problems, or give it all of them as one"
            ) from error
        return FactoredUpdates(problem.leaves(problem.start - end), borrowed=False), state

    def _minimize(
        self, problem: _Problem, value: Any, grad: Vector, state: LbfgsState, lr: Any
    ) -> tuple[Vector, LbfgsState]:
        """Return where the parameters end, and the next state."""
        position, evaluations = problem.start, 1
        state = state._replace(evaluations=state.evaluations + 1)
        if _largest(grad) <= self.tolerance_grad:
            return position, state
        max_eval = self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval
        for k in range(1, self.max_iter + 1):
            first = state.iterations == 0
            state = self._remember(grad, value, state, problem.exact)
            direction = state.direction
            assert direction is not None
            t = lr * min(1.0, 1.0 / grad.abs().sum()) if first else lr
            state = state._replace(step_size=t)
            slope = grad.dot(direction)
            if slope > -self.tolerance_change:
                break

            used = 0
            before = value
            if self.line_search_fn is not None:
                point, used = strong_wolfe(
                    problem.along(direction, position),
                    Point(0.0, value, grad, slope),
                    t,
                    _largest(direction),
                    max_eval - evaluations,
                )
                t, value, grad = point.t, point.value, point.grad
                state = state._replace(step_size=t)
            position = problem.move(position, direction, t)
            if self.line_search_fn is None and k < self.max_iter:
                value, grad = problem(position)
                used = 1
            evaluations += used
            state = state._replace(evaluations=state.evaluations + used)
            if (
                k == self.max_iter
                or evaluations >= max_eval
                or (used and _largest(grad) <= self.tolerance_grad)
                or _largest(direction * t) <= self.tolerance_change
                or abs(value - before) < self.tolerance_change
            ):
                break
        return position, state

    def _remember(self, grad: Vector, value: Any, state: LbfgsState, exact: bool) -> LbfgsState:
        """Return the state with the pair of the last move, and with the next direction."""
        if state.iterations == 0:
            return LbfgsState(
                direction=-grad,
                grad_changes=[],
                moves=[],
                curvatures=[],
                scale=1.0,
                grad=grad,
                value=value,
                iterations=1,
                evaluations=state.evaluations,
            )
        assert state.direction is not None
        assert state.grad is not None
        ys, moves = list(state.grad_changes or ()), list(state.moves or ())
        curvatures, scale = list(state.curvatures or ()), state.scale
        y, s = grad - state.grad, state.direction * state.step_size
        curvature = y.dot(s)
        if curvature > _CURVATURE:
            if len(ys) == self.history_size:
                del ys[0], moves[0], curvatures[0]
            ys.append(y)
            moves.append(s)
            curvatures.append(1.0 / curvature)
            scale = curvature / y.dot(y)
        return state._replace(
            direction=_two_loops(-grad, ys, moves, curvatures, scale, exact),
            grad_changes=ys,
            moves=moves,
            curvatures=curvatures,
            scale=scale,
            grad=grad,
            value=value,
            iterations=state.iterations + 1,
        )


class _Problem:
    """The loss as a function of the parameters as one vector."""

    def __init__(self, context: Context) -> None:
        assert context.params is not None
        self._context = context
        #: Whether values stay tensors, which can be differentiated.
        self.exact = context.differentiable
        self._params = context.params
        self.start = _flat(context.params)

    def number(self, value: Any) -> Any:
        """Return a value as a number, but for where it is differentiated."""
        return value.reshape(()) if self.exact and isinstance(value, torch.Tensor) else float(value)

    def move(self, position: Vector, direction: Vector, t: Any) -> Vector:
        """Return the position after a step along a direction."""
        moved: Vector = (
            position + direction * t if self.exact else position.add(direction, alpha=float(t))
        )
        return moved

    def leaves(self, vector: Vector) -> Leaves:
        """Return a vector as leaves."""
        found, begin = [], 0
        for p in self._params:
            size = p.numel() * (2 if p.is_complex() else 1)
            part = vector[begin : begin + size].to(p.device)
            shape = (*p.shape, 2) if p.is_complex() else p.shape
            leaf = part.view(shape).to(torch.view_as_real(p).dtype if p.is_complex() else p.dtype)
            found.append(torch.view_as_complex(leaf) if p.is_complex() else leaf)
            begin += size
        return found

    def __call__(self, position: Vector) -> tuple[Any, Vector]:
        """Return value and gradient."""
        assert self._context.value_and_grad is not None
        value, grads = self._context.value_and_grad(self.leaves(position))
        return self.number(value), _flat(grads)

    def along(self, direction: Vector, position: Vector) -> Callable[[Any], Point]:
        """Return the loss along a direction as a function of the step size."""

        def evaluate(t: Any) -> Point:
            value, grad = self(self.move(position, direction, t))
            return Point(t, value, grad, grad.dot(direction))

        return evaluate


def _flat(leaves: Leaves) -> Vector:
    """Return leaves as one vector, complex ones as pairs of real numbers."""
    parts = [(torch.view_as_real(x) if x.is_complex() else x).reshape(-1) for x in leaves]
    return torch.cat([part.to(parts[0].device) for part in parts])


def _largest(x: Vector) -> float:
    """Return the largest absolute value."""
    return float(x.detach().abs().max()) if x.numel() else 0.0


def _two_loops(
    q: Vector,
    ys: list[Vector],
    moves: list[Vector],
    curvatures: list[torch.Tensor],
    scale: Any,
    exact: bool,
) -> Vector:
    """Return the approximate inverse Hessian times ``q``.

    Nocedal, Wright, "Numerical Optimization", 2nd edition, Algorithm 7.4.
    """
    pairs = list(zip(ys, moves, curvatures, strict=True))
    alphas = []
    for y, s, rho in reversed(pairs):
        alpha = s.dot(q) * rho
        q = q - alpha * y if exact else q.add_(y, alpha=-float(alpha))
        alphas.append(alpha)
    q = q * scale
    for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        factor = alpha - y.dot(q) * rho
        q = q + factor * s if exact else q.add_(s, alpha=float(factor))
    return q


@optimizer
def lbfgs(
    lr: ScalarOrSchedule = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: Literal["strong_wolfe"] | None = None,
) -> Rule:
    r"""L-BFGS, as in :class:`torch.optim.LBFGS`.

    A step makes up to ``max_iter`` iterations

    .. math::
        \theta \leftarrow \theta - t\, H\, \nabla f(\theta),

    with :math:`H` the approximation of the inverse Hessian by the last moves and changes of the
    gradient, over all leaves as one vector. Every iteration evaluates the loss again: by the
    closure given to ``step`` in the stateful face, by the loss function given to ``step`` (in place
    of a loss) in the differentiable one, by ``value_and_grad`` in the functional one, where
    ``value`` saves an evaluation at the parameters.

    A differentiable step is differentiated through its iterations, the line search included; the
    decisions it takes are constants. As they depend on values, it runs neither under
    ``torch.vmap`` nor in a graph of ``torch.compile``.

    Args:
        lr: The step size :math:`t`, or the first to try: a number, a 0-dim tensor or a schedule.
        max_iter: The most iterations in a step.
        max_eval: The most evaluations in a step; 1.25 ``max_iter`` by default.
        tolerance_grad: The largest entry of a gradient that is taken for zero.
        tolerance_change: The change of the parameters or of the loss that is taken for none.
        history_size: The number of moves that are remembered.
        line_search_fn: ``"strong_wolfe"`` for a line search, None for steps of fixed size.

    Raises:
        ValueError: If a number is out of range, there is a second parameter group, or nothing to
            evaluate the loss with.

    Example:
        >>> import torch, torchopt
        >>> x = torch.tensor([-1.5, 2.0], requires_grad=True)
        >>> optim = torchopt.LBFGS([x], max_iter=100, line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optim.zero_grad()
        ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        ...     loss.backward()
        ...     return loss
        >>> _ = optim.step(closure)
        >>> torch.allclose(x, torch.ones(2), atol=1e-3)
        True

    Reference:
        Nocedal, Wright, "Numerical Optimization", 2nd edition, 2006, Algorithm 7.5.
    """
    return GradientStep(
        direction=LbfgsDirection(
            max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn
        ),
        lr=lr,
    )


class LBFGS(_derived.LBFGS, functional=lbfgs):
    """L-BFGS as a :class:`torch.optim.Optimizer`; see :func:`lbfgs`."""

    def add_param_group(self, param_group: dict[str, Any] | Iterable[torch.Tensor]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["max_eval"] is None:  # as in torch, which reads it from state dicts
            group["max_eval"] = group["max_iter"] * 5 // 4


class MetaLBFGS(_derived.MetaLBFGS, functional=lbfgs):
    """Differentiable L-BFGS on a module; see :func:`lbfgs`."""
