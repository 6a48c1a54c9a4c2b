"""What all linear solvers share: how they are called, and what they answer."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import torch

from torchopt_implicit._functorch import is_readable
from torchopt_implicit._operator import FlatMap, LinearOperator, as_operator
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._tree import Layout

__all__ = [
    "LinearSolver",
    "check_options",
    "default_maxiter",
    "dot",
    "has_ridge",
    "make_info",
    "norm",
    "residual_info",
    "with_ridge",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(abc.ABC):
    """A method for :math:`A x = b`, on trees. Call it as ``solver(A, b)``, which returns ``x``.

    ``A`` is a function of trees, a matrix, or a :class:`~torchopt_implicit.linalg.LinearOperator`;
    ``b`` is a tree of floating point tensors. A call warns if it fails; :meth:`solve` returns what
    became of it instead. An implicit derivative hands each method its operator and the transpose.
    By keyword, the operator is ``A`` or ``matvec``.
    """

    #: whether a failed solve raises :class:`~torchopt_implicit.FailedSolveError`, not warns
    throw: bool = False

    def __call__(self, A: Any = None, b: Any = None, *, matvec: Any = None) -> Any:
        if (A is None) is (matvec is None) or b is None:
            got = [name for name, x in (("A", A), ("matvec", matvec), ("b", b)) if x is not None]
            raise TypeError(
                f"{type(self).__name__} solves for `b` with one operator, `A` or `matvec`, got "
                f"{' and '.join(f'`{name}`' for name in got) or 'neither'}: call it as "
                "`solver(A, b)` or `solver(matvec=A, b=b)`"
            )
        A = matvec if A is None else A
        x, info = self.solve(A, b)
        if not isinstance(info.status, torch.Tensor) or is_readable(info.status):
            report(info, f"The linear solve by {type(self).__name__}", throw=self.throw)
        return x

    def solve(self, A: Any, b: Any) -> tuple[Any, Info]:
        """Return the solution, shaped like ``b``, and what became of the solve.

        Raises:
            TypeError: If ``A`` or ``b`` is of the wrong kind.
            ValueError: If ``A`` and ``b`` do not fit, or the solver needs another structure.
        """
        layout = Layout.of(b, "b")
        operator = as_operator(A, layout)
        x, info = self.run(operator, layout.ravel(b, "b"))
        return operator.domain.unravel(x), info

    @abc.abstractmethod
    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        """Solve for vectors ``b`` of shape ``(*batch, n)``, each its own problem.

        ``A.matvec`` and ``A.rmatvec`` take vectors of that shape.
        """

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Any:
        """Return what is worth keeping for further solves with ``A`` or its transpose.

        Args:
            A: An operator on ``(*batch, n)`` that may differ along the batch.
            batch: The batch.
        """
        return None

    def run_factorized(
        self, factors: Any, A: LinearOperator, b: torch.Tensor, *, transposed: bool
    ) -> tuple[torch.Tensor, Info]:
        """Solve as :meth:`run` does, given the factors of ``A`` or, if ``transposed``, of its T."""
        return self.run(A, b)


def dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the inner products of vectors ``(*batch, n)``, as ``(*batch, 1)``, or 0-dim of one."""
    if x.ndim == 1:
        return torch.dot(x, y)
    product: torch.Tensor = torch.linalg.vecdot(x, y)
    return product.unsqueeze(-1)


def norm(x: torch.Tensor) -> torch.Tensor:
    """Return the 2-norms of vectors ``(*batch, n)``, as :func:`dot` does."""
    length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=x.ndim > 1)
    return length


def make_info(
    iterations: torch.Tensor | int, residual_norm: torch.Tensor, status: torch.Tensor
) -> Info:
    """Return the info of norms and codes as :func:`dot` shapes them; of one problem as numbers."""
    residual_norm = residual_norm.detach()
    count = torch.as_tensor(iterations, device=status.device).expand(status.shape)
    if status.ndim:
        return Info(count.squeeze(-1), residual_norm.squeeze(-1), status.squeeze(-1))
    if is_readable(status) and is_readable(residual_norm):
        return Info(int(count), float(residual_norm), Status(int(status)))
    return Info(count, residual_norm, status)


def residual_info(residual: torch.Tensor, b: torch.Tensor, tolerance: float) -> Info:
    """Return the info of a direct solve: it converged if the residual is small beside ``b``."""
    size = norm(residual.detach())
    finite = torch.isfinite(size)
    status = torch.where(size <= tolerance * norm(b.detach()), 0, Status.BREAKDOWN)
    status = torch.where(finite, status, Status.BREAKDOWN)
    status = torch.where(torch.isfinite(norm(b.detach())), status, Status.NOT_FINITE)
    return make_info(0, size, status)


def has_ridge(ridge: float | torch.Tensor | None) -> bool:
    """Return whether there is a ridge, or may be."""
    return ridge is not None and (isinstance(ridge, torch.Tensor) or ridge != 0)


def with_ridge(matvec: FlatMap, ridge: float | torch.Tensor | None) -> FlatMap:
    """Return the matvec of ``A + ridge * I``."""
    if ridge is None or not has_ridge(ridge):
        return matvec
    return lambda v: matvec(v) + ridge * v


def default_maxiter(maxiter: int | None, n: int) -> int:
    """Return the iteration limit: ten for each unknown, and never none."""
    return max(10 * n, 10) if maxiter is None else maxiter


def check_options(
    *,
    ridge: Any = 0.0,
    maxiter: int | None = None,
    rtol: float = 0.0,
    atol: float = 0.0,
    truncate: bool = False,
) -> None:
    """Raise unless the options that the solvers share are in their ranges."""
    if not isinstance(truncate, bool):
        raise TypeError(f"`truncate` must be a bool, got {truncate!r}")
    if truncate and maxiter is None:
        raise ValueError("`truncate=True` needs `maxiter`, the number of iterations to do")
    if maxiter is not None and (isinstance(maxiter, bool) or not isinstance(maxiter, int)):
        raise TypeError(f"`maxiter` must be an integer or None, got {maxiter!r}")
    if maxiter is not None and maxiter < 0:
        raise ValueError(f"`maxiter` must be non-negative, got {maxiter}; None picks a default")
    for name, value in (("ridge", ridge), ("rtol", rtol), ("atol", atol)):
        if isinstance(value, torch.Tensor):
            continue
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"`{name}` must be non-negative and finite, got {value}")
