"""Task parallelism: each rank differentiates its share of a meta-batch, then one collective."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import optree
import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchopt import extract_state_dict, recover_state_dict
from torchopt_dist._errors import TaskError, TaskFailure
from torchopt_dist._group import Ranks, naming_lost_ranks
from torchopt_dist._leaves import Leaves
from torchopt_dist._reduce_tree import RunningSum, Summation, TreeSum

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from torchopt.utils import ModuleState

# by how much the norms of parameters may differ between ranks that compute the same
_DRIFT = 1e-5


class Tasks(Protocol):
    """A meta-batch: what has a length and items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class TaskGradients(NamedTuple):
    """What a meta-step found, equal on all ranks. Tensors are detached."""

    # 0-dim: the mean or sum of the losses, weighted
    loss: Tensor
    # of that, like `params`, a module as a dict by name; ``None`` where no task depends on it
    grads: Any
    # (tasks,): the loss of each task, unweighted
    losses: Tensor
    # (tasks,) for each name
    metrics: dict[str, Tensor]

    def accumulate_grad(self, params: Any) -> None:
        """Add the gradients to ``.grad`` of the parameters, as a backward pass does.

        Args:
            params: What :func:`map_tasks` was called with.

        Raises:
            ValueError: If its structure is another one.
        """
        leaves = Leaves(params)
        try:
            grads = leaves.treedef.flatten_up_to(self.grads)
        except ValueError as error:
            raise ValueError(f"`params` must be what map_tasks was called with: {error}") from error
        pairs = {id(pair[0]): pair for pair in zip(leaves.flat, grads, strict=True)}
        for leaf, grad in pairs.values():  # each tensor once, also where it is tied
            if grad is not None:
                leaf.grad = grad if leaf.grad is None else leaf.grad + grad


def map_tasks(
    fn: Callable[[Any, Any], Any],
    tasks: Tasks,
    params: Any,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    weights: Sequence[float] | Tensor | None = None,
    metrics: Sequence[str] = (),
    deterministic: bool = False,
    seed: int | None = None,
    group: ProcessGroup | None = None,
) -> TaskGradients:
    r"""Evaluate the tasks of a meta-batch on all ranks; return the mean loss and its gradient.

    .. math:: L(\theta) = \sum_i w_i \, \ell(\theta, \tau_i) \Big/ \sum_i w_i

    Every rank calls this with the same arguments, takes a contiguous block of the tasks, and runs
    ``fn`` and the backward pass for one after the other, so that one graph is in memory at a time.
    One collective then carries gradients, losses, metrics and the news of failures, and all ranks
    return the same. Without a process group this is an ordinary function of one process.

    Args:
        fn: Takes `params` and a task, returns the loss: a real scalar tensor that depends on
            `params`. With `metrics`, returns a pair of the loss and a mapping with these names.
            Inside, any differentiable program: inner loops by functional or meta-optimizers,
            implicit and zero-order gradients. It must not carry anything from task to task.
        tasks: Anything with a length and items, the same on each rank; only a rank's own items are
            taken. A ``range(n)`` makes the index the task.
        params: A module, a tensor, or a tree of both. What requires a gradient is differentiated,
            and must be equal on all ranks. A module's parameters and buffers are put back after
            each task, so a meta-optimizer may step the module.
        reduction: ``"mean"`` (default), or ``"sum"``: the above without the denominator.
        weights: A weight :math:`w_i` for each task. Default: 1.
        metrics: Names of further real scalars of a task, such as an accuracy.
        deterministic: Whether the result is the same to the last bit for any number of ranks:
            gradients are added along a binary tree over the tasks. A rank then needs memory for
            one gradient per level of the tree, and to gather those of the subtrees of all ranks:
            one a rank where the shares are a power of two, else up to two per level. The tasks'
            own arithmetic has to round alike on each rank: the same kind of machine, and the same
            number of threads, which `torchrun` sets to 1 and a single process does not. Default:
            ``False``, equal to rounding.
        seed: Makes randomness inside `fn` independent of the ranks: before each task, torch's
            generators for the CPU and for the device of `params` start from this and the index,
            and are put back afterwards. Pass another one for each meta-step. Default: they go on
            from where they are on each rank.
        group: The process group. Default: the default group. Its backend has to know the device
            of `params`; its timeout bounds the wait for other ranks.

    Returns:
        A :class:`TaskGradients`. Put its gradients into ``.grad`` by
        :meth:`~TaskGradients.accumulate_grad`, or give ``grads`` to a functional optimizer.
        Numbers travel in the widest real dtype of `params`, float32 at least; losses have that
        dtype, gradients those of their parameters.

    Raises:
        TypeError: If `tasks` has no length or items, or `params` no tensor.
        ValueError: If there are no tasks, nothing requires a gradient, `weights` do not fit, or
            `params` differ between ranks.
        TaskError: On every rank, if a task raised on one.
        LostRankError: If another rank died, or did not come within the timeout of the group.
        RuntimeError: If `torchrun` started several ranks and there is no process group.

    Example:
        >>> import torch
        >>> from torchopt_dist import map_tasks
        >>> w = torch.zeros(2, requires_grad=True)
        >>> targets = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
        >>> result = map_tasks(lambda w, target: (w - target).square().sum(), targets, w)
        >>> result.losses
        tensor([ 1., 13.])
        >>> result.grads
        tensor([-4., -2.])
    """
    leaves = Leaves(params)
    ranks = Ranks.of(group)
    count = _check_count(tasks)
    names = tuple(metrics)
    scales = _scales(count, reduction, weights)
    step = _Step(fn, tasks, params, leaves, names, seed, _states(params))

    layout = [count * (1 + len(names)), ranks.size, ranks.size, len(leaves.tensors)]
    summation: Summation = (TreeSum if deterministic else RunningSum)(
        leaves, ranks, count, sum(layout)
    )
    report = _Report(*torch.split(summation.extra, layout))
    failure = _run_share(step, ranks.share(count), scales, summation, report)
    if ranks.size > 1:
        report.failed[ranks.rank] = failure is not None
        report.norms[ranks.rank] = leaves.norm()
    elif failure is not None:
        raise TaskError([TaskFailure.of(ranks.names[ranks.rank], *failure)]) from failure[1]
    total, extra = summation.reduce()

    on_device = _Report(*torch.split(extra, layout))
    report = _Report(*torch.split(extra.cpu(), layout))
    if report.failed.any():
        _raise_together(failure, ranks)
    _check_same(report.norms, ranks)
    # a copy lets go of the buffer
    losses, *others = on_device.table.clone().view(count, -1).unbind(1)
    return TaskGradients(
        loss=(losses * losses.new_tensor(scales)).sum(),
        grads=leaves.tree(total, (report.uses > 0).tolist()),
        losses=losses,
        metrics=dict(zip(names, others, strict=True)),
    )


class _Report(NamedTuple):
    """What travels with the gradients; zero where another rank has something to say."""

    # (tasks * columns,): the loss of each task, and its metrics
    table: Tensor
    # (ranks,): whether a task raised on a rank
    failed: Tensor
    # (ranks,): the norm of its parameters
    norms: Tensor
    # (leaves,): on how many ranks tasks depend on a leaf
    uses: Tensor


class _Step(NamedTuple):
    """What is the same for the tasks of a meta-step."""

    fn: Callable[[Any, Any], Any]
    tasks: Tasks
    params: Any
    leaves: Leaves
    names: tuple[str, ...]
    seed: int | None
    # of the modules in `params`, as they are before each task
    states: list[tuple[nn.Module, ModuleState]]

    def run(self, index: int, scale: float) -> tuple[list[Any], tuple[Tensor | None, ...]]:
        """Return the loss and metrics of a task, and the gradients of its scaled loss."""
        try:
            with torch.enable_grad(), self._seeded(index):
                output = self.fn(self.params, self.tasks[index])
                loss, values = self._parse(output)
                gradients = torch.autograd.grad(
                    loss, self.leaves.tensors, torch.full_like(loss, scale), allow_unused=True
                )
        finally:
            for module, state in self.states:
                recover_state_dict(module, state)
        return [loss.detach().view(()), *values], gradients

    def _parse(self, output: Any) -> tuple[Tensor, list[Any]]:
        loss: Any = output
        values: Any = {}
        if self.names:
            if not (isinstance(output, tuple) and len(output) == 2):
                raise TypeError(
                    f"`fn` must return a pair of the loss and the metrics "
                    f"{', '.join(map(repr, self.names))}, got {type(output).__name__}"
                )
            loss, values = output
            if not isinstance(values, Mapping) or set(values) != set(self.names):
                raise ValueError(
                    f"`fn` must return the metrics {list(self.names)}, got "
                    f"{list(values) if isinstance(values, Mapping) else values!r}"
                )
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = type(loss).__name__
            if isinstance(loss, Tensor):
                got = f"{tuple(loss.shape)}, {loss.dtype}"
            elif isinstance(loss, tuple):
                got = "a tuple; name what comes with the loss in `metrics`"
            raise TypeError(f"`fn` must return the loss as a real scalar tensor, got {got}")
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss that `fn` returned does not depend on `params` differentiably; was it "
                "detached, or computed under no_grad?"
            )
        return loss, [_scalar(name, values[name]) for name in self.names]

    @contextlib.contextmanager
    def _seeded(self, index: int) -> Iterator[None]:
        if self.seed is None:
            yield
            return
        digest = hashlib.blake2b(f"{self.seed}/{index}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> 1
        device = self.leaves.device
        on_device = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if on_device else []):
            torch.default_generator.manual_seed(number)
            if on_device:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(number)
            yield


def _run_share(
    step: _Step, share: range, scales: Sequence[float], summation: Summation, report: _Report
) -> tuple[int, Exception] | None:
    """Evaluate tasks up to the first that raises; return the index of that, and what it raised."""
    rows = report.table.view(len(scales), -1)
    used = [False] * len(report.uses)
    for index in share:
        try:
            values, gradients = step.run(index, scales[index])
        except Exception as error:
            return index, error
        summation.add(index, gradients)
        for column, value in enumerate(values):
            rows[index, column] += value
        used = [seen or x is not None for seen, x in zip(used, gradients, strict=True)]
    report.uses.copy_(torch.tensor(used))
    return None


def _scalar(name: str, value: Any) -> Tensor | float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().view(())
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise TypeError(f"the metric {name!r} must be a real scalar, got {value!r}")


def _states(params: Any) -> list[tuple[nn.Module, ModuleState]]:
    leaves: list[Any] = optree.tree_leaves(params)
    modules = [leaf for leaf in leaves if isinstance(leaf, nn.Module)]
    return [(module, extract_state_dict(module, detach_buffers=True)) for module in modules]


def _check_count(tasks: Any) -> int:
    if not (hasattr(tasks, "__len__") and hasattr(tasks, "__getitem__")):
        raise TypeError(
            f"`tasks` must have a length and items, got {type(tasks).__name__}; list() what is an "
            f"iterator, range() a number"
        )
    if len(tasks) == 0:
        raise ValueError("`tasks` must not be empty")
    return len(tasks)


def _scales(count: int, reduction: Any, weights: Sequence[float] | Tensor | None) -> list[float]:
    """Return the factor of each task's loss."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum', got {reduction!r}")
    numbers = [1.0] * count
    if weights is not None:
        listed = weights.tolist() if isinstance(weights, Tensor) else weights
        numbers = [float(weight) for weight in listed]
    if len(numbers) != count:
        raise ValueError(f"`weights` must be as many as tasks, {count}, got {len(numbers)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in numbers):
        raise ValueError(f"`weights` must be finite and not negative, got {numbers}")
    if reduction == "sum":
        return numbers
    total = math.fsum(numbers)
    if total == 0:
        raise ValueError("`weights` must not all be zero for a mean; use reduction='sum'")
    return [weight / total for weight in numbers]


def _check_same(norms: Tensor, ranks: Ranks) -> None:
    low, high = (float(norms.min()), float(norms.max()))
    if high - low > _DRIFT * high:
        listed = ", ".join(
            f"{norm:.9g} on rank {name}"
            for norm, name in zip(norms.tolist(), ranks.names, strict=True)
        )
        raise ValueError(
            f"`params` must be equal on all ranks, got norms of {listed}; seed the ranks alike, or "
            f"broadcast the parameters of one"
        )


def _raise_together(failure: tuple[int, Exception] | None, ranks: Ranks) -> None:
    """Exchange tracebacks, and raise them on every rank."""
    own = failure and TaskFailure.of(ranks.names[ranks.rank], *failure)
    gathered: list[TaskFailure | None] = [None] * ranks.size
    with naming_lost_ranks(ranks):
        dist.all_gather_object(gathered, own, group=ranks.group)
    raise TaskError([found for found in gathered if found]) from (failure and failure[1])
