"""Task parallelism: each rank evaluates its share of a meta-batch, then ranks add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import optree
import torch
import torch.distributed as dist
from torch import Tensor

from torchopt_dist._agreement import agree, evaluating, ranks_here, tell_failure
from torchopt_dist._checksum import content_digest, digest
from torchopt_dist._errors import TaskError, TaskFailure
from torchopt_dist._group import Ranks, naming_lost_ranks
from torchopt_dist._leaves import Leaves
from torchopt_dist._reduce_tree import RunningSum, Summation, TreeSum
from torchopt_dist._sharded import average_over_partners, check_spread
from torchopt_dist._step import Step, Tasks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class TaskGradients(NamedTuple):
    """What a meta-step found, equal on all ranks. Tensors are detached."""

    # 0-dim: the mean or sum of the losses, weighted
    loss: Tensor
    # of that, like `params`, a module as a dict by name; ``None`` where no task depends on it, and
    # in place of all of them without differentiation
    grads: Any
    # (tasks,): the loss of each task, unweighted
    losses: Tensor
    # (tasks,) for each name
    metrics: dict[str, Tensor]
    # the tree of each task in order; empty without `has_aux`
    aux: list[Any]

    def accumulate_grad(self, params: Any) -> None:
        """Add the gradients to ``.grad`` of the parameters, as a backward pass does.

        Args:
            params: What :func:`map_tasks` was called with.

        Raises:
            ValueError: If its structure is another one, or there are no gradients.
        """
        if self.grads is None:
            raise ValueError("there are no gradients: map_tasks had differentiate=False")
        leaves = Leaves(params)
        try:
            grads: list[Any] = leaves.treedef.flatten_up_to(self.grads)
        except ValueError as error:
            raise ValueError(f"`params` must be what map_tasks was called with: {error}") from error
        pairs = {id(pair[0]): pair for pair in zip(leaves.flat, grads, strict=True)}
        for leaf, grad in pairs.values():  # each tensor once, also where it is tied
            if grad is not None:
                # memory of its own: what is done to it must not change `grads`
                leaf.grad = grad.clone() if leaf.grad is None else leaf.grad + grad


def map_tasks(
    fn: Callable[[Any, Any], Any],
    tasks: Tasks,
    params: Any,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    weights: Sequence[float] | Tensor | None = None,
    metrics: Sequence[str] = (),
    has_aux: bool = False,
    differentiate: bool = True,
    deterministic: bool = False,
    seed: int | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
) -> TaskGradients:
    r"""Evaluate the tasks of a meta-batch on all ranks; return the mean loss and its gradient.

    .. math:: L(\theta) = \sum_i w_i \, \ell(\theta, \tau_i) \Big/ \sum_i w_i

    Every rank calls this with the same arguments, takes a contiguous block of the tasks, and runs
    ``fn`` and the backward pass for one after the other, so that one graph is in memory at a time.
    Before, the ranks compare by a small header what they were called with; after, one all-reduce
    carries gradients, losses, metrics and the news of failures, and all ranks return the same.
    Without a process group this is an ordinary function of one process. So it is within a task,
    where other ranks are busy: the inner tasks are all evaluated there.

    Args:
        fn: Takes `params` and a task, returns the loss: a real scalar tensor that depends on
            `params`. With `metrics`, returns a pair of the loss and a mapping with these names.
            Inside, any differentiable program: inner loops by functional, stateful or
            meta-optimizers, implicit and zero-order gradients. It must not carry anything from task
            to task other than in `params`.
        tasks: Anything with a length and items, the same on each rank; only a rank's own items are
            taken. A ``range(n)`` makes the index the task. Tensors, arrays, plain values and what
            contains them (sequences, mappings, data classes) are compared over the ranks; of other
            collections, which load an item when it is asked for, the length and the class are.
        params: A module, a tensor, or a tree of both. What requires a gradient is differentiated.
            All of it has to be equal on all ranks, to the bit, buffers included. After each task
            it is put back by value: the tensors of modules and the numbers in them, ``.grad``,
            ``requires_grad`` and the modes of modules. So a task may step it by any optimizer.
        reduction: ``"mean"`` (default), or ``"sum"``: the above without the denominator.
        weights: A weight :math:`w_i` for each task. Default: 1.
        metrics: Names of further real scalars of a task, such as an accuracy.
        has_aux: Whether ``fn`` returns something more, last of its tuple: any tree. All ranks get
            those of all tasks, in order, tensors detached. They travel pickled.
        differentiate: Whether gradients are wanted. Without, tasks are evaluated only, in the
            caller's own mode of recording (wrap this in ``torch.no_grad()`` where no inner loop
            differentiates), and nothing has to require a gradient. Default: ``True``.
        deterministic: Whether the result is the same to the last bit for any number of ranks:
            gradients are added along a binary tree over the tasks, in two collectives. A rank then
            needs memory for one gradient per level of the tree. It sends one gradient for each
            subtree that its tasks make up (one where shares are a power of two, at most two a
            level), and receives as many on average, and one. The tasks'
            own arithmetic has to round alike on each rank: the same kind of machine, and the same
            number of threads, which `torchrun` sets to 1 and a single process does not. Default:
            ``False``, equal to rounding.
        seed: Makes randomness inside `fn` independent of the ranks: before each task, the global
            generators of Python, NumPy and torch (for the CPU and for the device of `params`) start
            from this and the index, and are put back afterwards. Pass another one for each
            meta-step. Default: they go on from where they are on each rank.
        progress: Called on the first rank with the indices of its share, to iterate over instead:
            ``tqdm.tqdm`` shows a bar there, and only there. It must yield what it was given.
        group: The process group. Default: the default group. Its backend has to know the device
            of `params`; its timeout bounds the wait for other ranks. For tasks that are larger than
            a rank, a two-dimensional ``DeviceMesh`` of tasks x model: the ranks of a row evaluate
            the same tasks, together. Modules may be spread over its second dimension by
            ``fully_shard`` or ``DistributedDataParallel``. Each rank of a row may have its part of
            a task's data: losses, metrics and gradients are averaged over the row. Meta-optimizers
            do not know sharded modules: torch 2.13 crashes within their step.

    Returns:
        A :class:`TaskGradients`. Put its gradients into ``.grad`` by
        :meth:`~TaskGradients.accumulate_grad`, or give ``grads`` to a functional optimizer.
        Numbers travel in the widest real dtype of `params`, float32 at least; losses have that
        dtype, gradients those of their parameters.

    Raises:
        TypeError: If `tasks` has no length or items, or `params` no tensor.
        ValueError: If there are no tasks, nothing requires a gradient, `weights` do not fit, or
            ranks were called with different tasks, `params` or options (on every rank then); or a
            module is spread over ranks that evaluate different tasks.
        TaskError: On every rank, if a task raised on one. With a mesh of two dimensions, others of
            the row may wait for that rank until the timeout.
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
    ranks = ranks_here(group)
    with evaluating(ranks):
        try:
            count = _check_count(tasks)
            options = {
                "reduction": reduction,
                "weights": weights.tolist() if isinstance(weights, Tensor) else weights,
                "metrics": tuple(metrics),
                "has_aux": has_aux,
                "differentiate": differentiate,
                "deterministic": deterministic,
                "seed": seed,
            }
            scales = _scales(count, reduction, options["weights"])
            options["weights"] = scales
            leaves = Leaves(params, differentiate)
            check_spread(leaves.modules, ranks)
            names = tuple(metrics)
            step = Step(fn, tasks, params, leaves, ranks, names=names, has_aux=has_aux, seed=seed)
            facts = (
                {}
                if not ranks.several
                else {
                    "number of tasks": count,
                    "tasks": content_digest(tasks),
                    "structure of `params`": digest(leaves.structure()),
                    "values of `params`": step.snapshot.checksum,
                }
            )
        except Exception:
            if ranks.several:
                tell_failure(ranks)
            raise
        if ranks.several:
            whole = 0 if ranks.partners is None else step.snapshot.whole_checksum
            agree(ranks, facts, options, whole)
        return _evaluate(step, count, scales, deterministic, progress)


def _evaluate(
    step: Step,
    count: int,
    scales: list[float],
    deterministic: bool,
    progress: Callable[[Iterable[int]], Iterable[int]] | None,
) -> TaskGradients:
    leaves, ranks, names = step.leaves, step.ranks, step.names
    layout = [count * (1 + len(names)), ranks.size, len(leaves.tensors)]
    summation: Summation = (TreeSum if deterministic else RunningSum)(
        leaves, ranks, count, sum(layout)
    )
    report = _Report(*torch.split(summation.extra, layout))
    aux: list[Any] = []
    failure = _run_share(step, count, scales, summation, report, aux, progress)
    if failure is not None:
        if ranks.size == 1:
            raise TaskError([TaskFailure.of(ranks.name, *failure)]) from failure[1]
        summation.discard()
        report.failed[ranks.rank] = 1
    elif ranks.partners is not None:
        # not after a failure: the others of the row may still be within the task
        average_over_partners([report.table], ranks)
    total, extra = summation.reduce()

    on_device = _Report(*torch.split(extra, layout))
    report = _Report(*torch.split(extra.cpu(), layout))
    if report.failed.any():
        _raise_together(failure, ranks)
    if ranks.partners is not None and leaves.size:
        views = zip(leaves.views(total), leaves.tensors, strict=True)
        average_over_partners([view for view, leaf in views if id(leaf) not in step.reduced], ranks)
    if step.has_aux and ranks.size > 1:
        aux = _gathered(aux, leaves.device, ranks)
    # a copy lets go of the buffer
    losses, *others = on_device.table.clone().view(count, -1).unbind(1)
    used = (report.uses > 0).tolist()
    return TaskGradients(
        loss=(losses * losses.new_tensor(scales)).sum(),
        grads=leaves.tree(total, used) if leaves.tensors else None,
        losses=losses,
        metrics=dict(zip(names, others, strict=True)),
        aux=aux,
    )


class _Report(NamedTuple):
    """What travels with the gradients; zero where another rank has something to say."""

    # (tasks * columns,): the loss of each task, and its metrics
    table: Tensor
    # (ranks,): whether a task raised on a rank
    failed: Tensor
    # (leaves,): on how many ranks tasks depend on a leaf
    uses: Tensor


def _run_share(
    step: Step,
    count: int,
    scales: Sequence[float],
    summation: Summation,
    report: _Report,
    aux: list[Any],
    progress: Callable[[Iterable[int]], Iterable[int]] | None,
) -> tuple[int, Exception] | None:
    """Evaluate tasks up to the first that raises; return the index of that, and what it raised."""
    share = step.ranks.share(count)
    rows = report.table.view(count, -1)
    used = [False] * len(report.uses)
    is_first = step.ranks.rank == 0 and step.ranks.is_first_partner
    index = share.start
    try:
        bar = iter(share if progress is None or not is_first else progress(share))
        for index in share:
            if next(bar, None) != index:
                raise ValueError("`progress` must yield the indices that it was given")
            output = step.run(index, scales[index])
            summation.add(index, output.gradients)
            for column, value in enumerate(output.row):
                rows[index, column] += value
            used = [seen or x is not None for seen, x in zip(used, output.gradients, strict=True)]
            if step.has_aux:
                aux.append(output.aux)
        next(bar, None)  # a bar ends with its iteration
    except Exception as error:
        return index, error
    report.uses.copy_(torch.tensor(used, device="cpu"))
    return None


def _check_count(tasks: Any) -> int:
    if not (hasattr(tasks, "__len__") and hasattr(tasks, "__getitem__")):
        raise TypeError(
            f"`tasks` must have a length and items, got {type(tasks).__name__}; list() what is an "
            f"iterator, range() a number"
        )
    if len(tasks) == 0:
        raise ValueError("`tasks` must not be empty")
    return len(tasks)


def _scales(count: int, reduction: Any, weights: Any) -> list[float]:
    """Return the factor of each task's loss."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"`reduction` must be 'mean' or 'sum', got {reduction!r}")
    numbers = [1.0] * count if weights is None else [float(weight) for weight in weights]
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


def _gathered(aux: list[Any], device: torch.device, ranks: Ranks) -> list[Any]:
    """Return the trees of all ranks in order, their tensors on the devices that they had here."""
    trees: Any = aux
    on_cpu: Any = optree.tree_map(_to_cpu, trees, none_is_leaf=True)
    rows: list[Any] = [None] * ranks.size
    with naming_lost_ranks(ranks):
        dist.all_gather_object(rows, on_cpu, group=ranks.group)
    trees = [tree for row in rows for tree in row]
    found: Any = optree.tree_map(
        lambda x: x.tensor.to(device) if isinstance(x, _OnDevice) else x, trees, none_is_leaf=True
    )
    return list(found)


class _OnDevice:
    """A tensor that was not on the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.cpu()


def _to_cpu(leaf: Any) -> Any:
    return _OnDevice(leaf) if isinstance(leaf, Tensor) and leaf.device.type != "cpu" else leaf


def _raise_together(failure: tuple[int, Exception] | None, ranks: Ranks) -> None:
    """Exchange tracebacks, and raise them on every rank."""
    own = failure and TaskFailure.of(ranks.name, *failure)
    gathered: list[TaskFailure | None] = [None] * ranks.size
    with naming_lost_ranks(ranks):
        dist.all_gather_object(gathered, own, group=ranks.group)
    raise TaskError([found for found in gathered if found]) from (failure and failure[1])
