"""A primal-dual interior-point method for a batch of quadratic programs."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status
from torchopt_implicit.solvers._kkt import REFINEMENTS, Data, Factors, Solved, factorize, times
from torchopt_implicit.solvers._loop import Search, search
from torchopt_implicit.solvers._numbers import select

__all__ = ["solve"]

#: share of the way to the boundary that a step goes
TO_BOUNDARY = 0.995
#: steps shorter than this make no progress
SHORTEST_STEP = 1e-9
#: after so many iterations steps are shorter, and aim to keep this much of the complementarity
CAUTIOUS_FROM, CAUTIOUS_SHARE, CAUTIOUS_CENTER = 20, 0.75, 0.1
#: weight of active inequalities: the larger, the fewer refinements but the more rounding
ACTIVE_WEIGHT = 1e8
#: error at which to guess for the first time which inequalities are active, and iterations to get
#: there without iterative refinement
EARLY, FEW = 1e-7, 13
#: guesses of which inequalities are active
POLISHES = 2
#: how well a certificate of infeasibility has to hold: it then excludes all feasible points but
#: those larger than the iterate by the inverse
INFEASIBLE = 1e-4
#: likewise of unboundedness: it then excludes all multipliers, and minimizers, below the inverse
UNBOUNDED = 1e-8
#: iterations at which a certificate has to hold, or half as many where none can follow: near a
#: start far from the solution one may hold until the iterate has grown as large as feasible points
HOLD = 4


class State(NamedTuple):
    # the point: multipliers of inequalities and equalities, slacks
    x: torch.Tensor
    lam: torch.Tensor
    nu: torch.Tensor
    s: torch.Tensor
    # by how much the optimality conditions fail: stationarity, inequalities, equalities
    dual: torch.Tensor
    primal: torch.Tensor
    equality: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor
    # the status of which there was a certificate last, and at how many iterates
    claim: torch.Tensor
    held: torch.Tensor
    # taken so far
    steps: torch.Tensor


def solve(data: Data, *, tol: float, maxiter: int) -> tuple[State, Solved, Info]:
    r"""Solve the programs by Mehrotra's predictor-corrector method.

    Starts at a point that need not satisfy any constraint. At a first, moderate tolerance it
    already tells which inequalities are active, solves for these exactly, and is done where that
    succeeds; the other programs go on to the tolerance asked for. The error is the largest relative
    residual of stationarity, of both kinds of constraints, and of the duality gap. In an infeasible
    program the multipliers diverge along a direction that proves it,
    :math:`\lambda \ge 0, G^\top \lambda + A^\top \nu = 0, h^\top \lambda + b^\top \nu < 0`; in an
    unbounded one the point does, :math:`Qz = Az = 0, Gz \le 0, q^\top z < 0`.

    Returns:
        The last states; the factors there, for derivatives; and how each ended.

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), algorithm 16.4.
        S. Mehrotra: On the implementation of a primal-dual interior point method (1992).
    """
    state = _start(data)
    for target, refinements, most in ((max(tol, EARLY), 0, FEW), (tol, 1, maxiter)):
        step = functools.partial(_step, data, refinements, maxiter)
        now = search(step, Search(state, torch.zeros_like(state.steps), target), min(most, maxiter))
        state, info = now.state, now.info
        reached = state.error <= target
        state, factors, exact = _polish(data, state, reached, tol)
        if unwrap(exact | (state.failure != Status.CONVERGED)).all():
            break
    if not unwrap(exact).all():
        weights = torch.where(exact.unsqueeze(-1), factors.weights, state.lam / state.s)
        factors = factorize(data, weights, factors.exact & exact.unsqueeze(-1))
    solved = Solved(state.lam, state.s, factors)
    # the early target may have been met by a program whose iterations ended before `tol` was
    status = torch.as_tensor(info.status)
    status = torch.where(status == Status.CONVERGED, state.failure, status)
    status = torch.where(state.error <= tol, int(Status.CONVERGED), status)
    return state, solved, Info(state.steps, state.error, status)


def _polish(
    data: Data, state: State, wanted: torch.Tensor, tol: float
) -> tuple[State, Factors, torch.Tensor]:
    """Solve the program in which active inequalities are equalities and the others are left out.

    If these are told apart rightly, that is the exact solution, and the factors are those of its
    derivative. If not, the signs of the result tell better. Near the interior-point iterate the
    right-hand sides are small, and so are rounding errors in spite of large weights.

    Returns:
        The states, replaced where this succeeded; factors for these; and where it did.
    """
    active = state.lam > state.s * data.unit
    exact = torch.zeros_like(wanted)
    result = state
    for _ in range(POLISHES):
        weights = torch.where(active, ACTIVE_WEIGHT * data.unit, 0.0)
        factors = factorize(data, weights, active)
        kept = torch.where(active, state.lam, 0.0)
        dz, dlam, dnu = factors.solve(
            times(data.G.mT, state.lam - kept) - state.dual,
            -weights * (times(data.G, state.x) - data.h),
            -state.equality,
            refinements=REFINEMENTS,
        )
        z, lam = state.x + dz, torch.where(active, state.lam + dlam, 0.0)
        room = data.h - times(data.G, z)
        s = torch.where(active, 0.0, room.clamp_min(0.0))
        polished = _measure(data, z, lam.clamp_min(0.0), state.nu + dnu, s)
        polished = polished._replace(steps=state.steps)
        # what succeeded before succeeds again: its active inequalities are the same
        exact = wanted & (polished.error <= tol)
        result = select(exact, polished, result)
        if unwrap(exact | ~wanted).all():
            break
        active = torch.where(exact.unsqueeze(-1), active, torch.where(active, lam > 0, room < 0))
    return result, factors, exact


def _start(data: Data) -> State:
    """Return the minimizer without inequalities of the objective plus half their squares."""
    shapes = [x.shape[:-2] for x in (data.Q, data.G, data.A)]
    shapes += [x.shape[:-1] for x in (data.q, data.h, data.b)]
    batch = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    q, h, b = (x.expand(*batch, x.shape[-1]) for x in (data.q, data.h, data.b))
    z, lam, nu = factorize(data, torch.ones_like(h)).solve(-q, h, b, refinements=0)
    return _measure(data, z, _positive(lam), nu, _positive(-lam))


def _positive(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] == 0:
        return x
    lowest = x.amin(-1, keepdim=True)
    return torch.where(lowest > 0, x, x - lowest + 1)


def _largest(x: torch.Tensor) -> torch.Tensor:
    return x.abs().amax(-1) if x.shape[-1] else x.sum(-1)


def _relative(residual: torch.Tensor, *terms: torch.Tensor) -> torch.Tensor:
    scale = functools.reduce(torch.maximum, [_largest(term) for term in terms])
    return _largest(residual) / (1 + scale)


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x * y).sum(-1)


def _measure(
    data: Data, z: torch.Tensor, lam: torch.Tensor, nu: torch.Tensor, s: torch.Tensor
) -> State:
    Qz, Gz, Az = times(data.Q, z), times(data.G, z), times(data.A, z)
    Glam, Anu = times(data.G.mT, lam), times(data.A.mT, nu)
    dual, primal, equality = Qz + data.q + Glam + Anu, Gz + s - data.h, Az - data.b
    objective = _dot(z, 0.5 * Qz + data.q)
    errors = (
        _relative(dual, Qz, data.q, Glam, Anu),
        _relative(primal, Gz, data.h, s),
        _relative(equality, Az, data.b),
        _dot(s, lam) / (1 + objective.abs()),
    )
    error = functools.reduce(torch.maximum, errors)

    bound = -(_dot(data.h, lam) + _dot(data.b, nu))
    infeasible = (bound > 0) & (_largest(Glam + Anu) * (1 + _largest(z)) <= INFEASIBLE * bound)
    descent = -_dot(data.q, z)
    ray = functools.reduce(torch.maximum, (_largest(Qz), _largest(Az), _largest(Gz.clamp_min(0))))
    unbounded = (descent > 0) & (ray <= UNBOUNDED * descent)
    claim = torch.where(unbounded, int(Status.UNBOUNDED), int(Status.CONVERGED))
    claim = torch.where(infeasible, int(Status.INFEASIBLE), claim)
    none = torch.zeros_like(claim)
    held = (claim != none).long()
    return State(z, lam, nu, s, dual, primal, equality, error, none, claim, held, none)


def _longest(x: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    """Return how far one can go until an entry vanishes, of shape (..., 1)."""
    ratio = torch.where(dx < 0, -x / dx, torch.inf)
    return ratio.amin(-1, keepdim=True) if x.shape[-1] else x.sum(-1, keepdim=True) + torch.inf


def _direction(
    factors: Factors, state: State, complementarity: torch.Tensor, *, refinements: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return Newton's step, in which slacks times multipliers change by ``-complementarity``."""
    right = complementarity / state.s - factors.weights * state.primal
    dz, dlam, dnu = factors.solve(-state.dual, right, -state.equality, refinements=refinements)
    return dz, dlam, dnu, -(complementarity + state.s * dlam) / state.lam


def _step(data: Data, refinements: int, maxiter: int, state: State) -> State:
    factors = factorize(data, state.lam / state.s)
    lam, s = state.lam, state.s
    products = s * lam
    _, dlam, _, ds = _direction(factors, state, products)
    length = torch.minimum(_longest(s, ds), _longest(lam, dlam)).clamp_max(1.0)
    count = max(s.shape[-1], 1)
    mean = products.sum(-1, keepdim=True) / count
    predicted = ((s + length * ds) * (lam + length * dlam)).sum(-1, keepdim=True) / count
    center = torch.where(mean > 0, (predicted / mean) ** 3, 0.0) * mean
    # a few programs in ten thousand make the method cycle, which shorter, more central steps break
    cautious = (state.steps >= CAUTIOUS_FROM).unsqueeze(-1)
    center = torch.where(cautious, torch.maximum(center, CAUTIOUS_CENTER * mean), center)
    curved = torch.where(cautious, 0.0, ds * dlam)
    dz, dlam, dnu, ds = _direction(
        factors, state, products + curved - center, refinements=refinements
    )
    share = torch.where(cautious, CAUTIOUS_SHARE, TO_BOUNDARY)
    length = share * torch.minimum(_longest(s, ds), _longest(lam, dlam)).clamp_max(1 / TO_BOUNDARY)
    new = _measure(
        data, state.x + length * dz, lam + length * dlam, state.nu + length * dnu, s + length * ds
    )
    broken = ~torch.isfinite(new.error)
    stuck = length.squeeze(-1) < SHORTEST_STEP
    steps = state.steps + 1
    failure = torch.where(steps >= maxiter, int(Status.ITERATION_LIMIT), int(Status.CONVERGED))
    failure = torch.where(stuck, int(Status.STAGNATED), failure)
    claim = torch.where(new.claim == Status.CONVERGED, state.claim, new.claim)
    held = torch.where(claim == state.claim, state.held, 0) + new.held
    proven = (held >= HOLD) | (stuck & (2 * held >= HOLD))
    failure = torch.where(proven, claim, failure)
    new = new._replace(failure=failure, claim=claim, held=held, steps=steps)
    # of a step that failed only the verdict is kept
    kept: State = select(~broken, new, state)
    ending = torch.where(2 * state.held >= HOLD, state.claim, int(Status.BREAKDOWN))
    failure = torch.where(broken, ending, kept.failure)
    return kept._replace(failure=failure)
