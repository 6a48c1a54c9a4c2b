"""Conjugate gradients as a function."""

from __future__ import annotations

from typing import Any, Literal, overload

from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._options import tolerances
from torchopt_implicit.linear_solve.cg import CG

__all__ = ["cg"]


@overload
def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    truncate: bool = False,
    return_info: Literal[False] = False,
) -> Any: ...
@overload
def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    truncate: bool = False,
    return_info: Literal[True],
) -> tuple[Any, Info]: ...
def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    truncate: bool = False,
    return_info: bool = False,
) -> Any:
    """Solve ``A x = b`` for a symmetric positive definite operator.

    Args:
        A: A function of trees, a matrix, or a :class:`~torchopt_implicit.linalg.LinearOperator`.
        b: A tree of tensors.
        x0: The tree to start from, 0 by default.
        rtol: The residual norm to reach, relative to that of ``b``.
        atol: Or absolutely; the larger of both counts.
        maxiter: Limit on iterations; ten for each unknown by default.
        M: A preconditioner, an approximate inverse: like ``A``.
        truncate: Whether ``maxiter`` iterations are what is wanted, so that ending there is no
            failure; as it is where ``maxiter`` is given and both tolerances are 0.
        return_info: Whether to return what became of the solve, too, rather than warn of a failure.

    Returns:
        The solution, shaped like ``b``; with ``return_info`` also an
        :class:`~torchopt_implicit.Info`.

    Raises:
        TypeError: If ``A`` or ``b`` is of the wrong kind.
        ValueError: If they do not fit, or an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> x, info = torchopt.linalg.cg(A, torch.tensor([5.0, 4.0]), return_info=True)
        >>> x.round(decimals=4), info.status.name
        (tensor([1., 1.]), 'CONVERGED')

    Reference:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """
    options = tolerances(maxiter, rtol, atol, truncate or None)
    solver = CG(init=x0, M=M, **options)
    return solver.solve(A, b) if return_info else solver(A, b)
