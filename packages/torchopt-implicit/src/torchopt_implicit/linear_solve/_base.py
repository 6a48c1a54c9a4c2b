"""What all linear solvers share: how they are called, and what they answer."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, TypeGuard

import torch

from torchopt_implicit._compiler import eager
from torchopt_implicit._conversion import as_operator
from torchopt_implicit._functorch import is_readable, unwrap, without_autocast
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._tree import Layout

__all__ = [
    "Factorization",
    "LinearSolver",
    "check_options",
    "dot",
    "has_ridge",
    "make_info",
    "norm",
    "power_of_two",
    "scaled_norm",
    "working_dtype",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearSolver(abc.ABC):
    """A method for :math:`A x = b`, on trees. Call it as ``solver(A, b)``, which returns ``x``.

    ``A`` is a function of trees, a matrix, or a :class:`~torchopt_implicit.linalg.LinearOperator`;
    ``b`` is a tree of floating point tensors. A call warns if it fails; :meth:`solve` returns what
    became of it instead. An implicit derivative hands each method its operator and the transpose.
    By keyword, the operator is ``A`` or ``matvec``.
    """

    #: whether the operator need not be square
    takes_rectangular: ClassVar[bool] = False

    #: whether a failed solve raises :class:`~torchopt_implicit.FailedSolveError`, not warns
    throw: bool = False

    @eager
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
        report(_plain(info), f"The linear solve by {type(self).__name__}", throw=self.throw)
        return x

    @eager
    def solve(self, A: Any, b: Any) -> tuple[Any, Info]:
        """Return the solution, shaped like ``b``, and what became of the solve.

        The solution has derivatives of any order, in ``b``, in ``A``, and in what a function or
        operator ``A`` closes over. As :func:`torch.linalg.solve`, it computes without autocast; a
        function ``A`` is evaluated with that of the call, and its result cast back.

        Raises:
            TypeError: If ``A`` or ``b`` is of the wrong kind.
            ValueError: If ``A`` and ``b`` do not fit, or the solver needs another structure.
        """
        layout = Layout.of(b, "b")
        operator = as_operator(A, layout, square=not self.takes_rectangular)
        with without_autocast():
            x, info = self.solve_vector(operator, layout.ravel(b, "b"))
            return operator.domain.unravel(x), info

    def solve_vector(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        """Solve for a vector ``(n,)``, with derivatives: by a :meth:`run` that has them."""
        return self.run(A, b)

    @property
    def T(self) -> LinearSolver:
        """The method for the transpose of the operator that this one is for."""
        return self

    @abc.abstractmethod
    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        """Solve for vectors ``b`` of shape ``(*batch, n)``, each its own problem.

        Implicit derivatives call this, below all transforms, with plain tensors. Nothing given may
        be written to, and ``A`` may be called as often as it takes.

        Args:
            A: Its ``matvec`` and ``rmatvec`` take vectors of the shape of ``b``, which may differ
                in size if the method is one for rectangular operators.
            b: The right-hand sides.
        """

    def factorize(self, A: LinearOperator, batch: torch.Size) -> Factorization | None:
        """Return what is worth keeping for further solves with ``A`` or its transpose.

        Args:
            A: An operator on ``(*batch, n)`` that may differ along the batch.
            batch: The batch.
        """
        return None


class Factorization(abc.ABC):
    """An operator, decomposed: for as many solves as it takes."""

    @property
    @abc.abstractmethod
    def T(self) -> Factorization:
        """That of the transpose, which shares all memory with this one."""

    @abc.abstractmethod
    def solve(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        """Solve for vectors ``(*extra, *batch, n)``, as :meth:`LinearSolver.run` does.

        Args:
            A: The operator that was decomposed, for the residual; of :attr:`T` its transpose.
            b: The right-hand sides.
        """


def _plain(info: Info) -> Info:
    """Return the info underneath the transforms of `torch.func`, of all problems of a batch."""
    if not isinstance(info.status, torch.Tensor):
        return info
    iterations, residual_norm, status = (unwrap(torch.as_tensor(field)) for field in info)
    return Info(iterations, residual_norm, status)


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


def power_of_two(x: torch.Tensor) -> torch.Tensor:
    """Return powers of two ``(*batch, 1)`` near the largest entries of vectors ``(*batch, n)``.

    It is 1 where that is 0 or not finite. Dividing by it rounds nothing.
    """
    if x.shape[-1] == 0:
        return x.new_ones(*x.shape[:-1], 1)
    largest = x.abs().amax(-1, keepdim=True)
    regular = torch.isfinite(largest) & (largest > 0)
    exponent = torch.where(regular, largest, 1).to(torch.float64).log2().floor()
    return torch.exp2(exponent.clamp(min=math.log2(torch.finfo(x.dtype).tiny))).to(x.dtype)


def scaled_norm(x: torch.Tensor) -> torch.Tensor:
    """Return the 2-norms of vectors of any size, where squares would vanish or overflow."""
    scale = power_of_two(x)
    return norm(x / scale) * (scale if x.ndim > 1 else scale.squeeze(-1))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: half precision has neither the digits nor the routines."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def has_ridge(
    ridge: float | torch.Tensor | None,
) -> TypeGuard[float | torch.Tensor]:
    """Return whether there is a ridge, or may be."""
    return ridge is not None and (isinstance(ridge, torch.Tensor) or ridge != 0)


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
