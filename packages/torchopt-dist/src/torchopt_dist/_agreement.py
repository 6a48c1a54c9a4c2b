"""What ranks tell each other before they work together: that all are about to do the same."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from torchopt_dist._checksum import digest
from torchopt_dist._group import Ranks, naming_lost_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["agree", "evaluating", "ranks_here", "task", "tell_failure"]

# what to do about each thing that ranks have to agree on
_REMEDIES = {
    "number of tasks": "give each rank the whole meta-batch, not its share",
    "tasks": "draw them on every rank with generators seeded alike",
    "structure of `params`": "build them alike on every rank",
    "values of `params`": "seed the ranks alike, or broadcast the parameters of one",
    "nesting": "call it from the same task on all ranks of `group`, or without `group`",
    "options": "call it with the same arguments on every rank",
}
# numbers in a header; the first says whether the rank can take part
_WIDTH = 20


class _Evaluation(NamedTuple):
    """A task that is being evaluated."""

    # of the ranks that share the tasks, as the world calls them
    names: tuple[int, ...]
    task: int


_outer: contextvars.ContextVar[tuple[_Evaluation, ...]] = contextvars.ContextVar(
    "_outer", default=()
)
_lock = threading.Lock()
# the ranks that this process shares tasks with at the moment, in whatever thread
_busy: list[tuple[int, ...]] = []


def ranks_here(group: ProcessGroup | DeviceMesh | None) -> Ranks:
    """Return the ranks that share the tasks of a call from here.

    Within a task, other ranks are busy with other tasks, so without a group this one is alone.

    Raises:
        RuntimeError: If another thread of this process already shares tasks with these ranks.
        ValueError: If a rank of `group` is busy with another task.
    """
    outer = _outer.get()
    if outer and group is None:
        return Ranks.alone()
    ranks = Ranks.of(group)
    for evaluation in outer:
        shared = set(ranks.everyone) & set(evaluation.names) - {ranks.name}
        if shared:
            raise ValueError(
                f"`group` must not have ranks that evaluate other tasks meanwhile, got "
                f"{sorted(shared)} within task {evaluation.task}; leave it out, and this rank "
                f"evaluates the inner tasks by itself"
            )
    with _lock:
        if not outer and ranks.size > 1 and ranks.names in _busy:
            raise RuntimeError(
                "another thread of this process shares tasks with the same ranks: call map_tasks "
                "from one thread, or give each its own `group`"
            )
    return ranks


@contextlib.contextmanager
def evaluating(ranks: Ranks) -> Iterator[None]:
    """Say that tasks are being shared with these ranks."""
    with _lock:
        _busy.append(ranks.names)
    try:
        yield
    finally:
        with _lock:
            _busy.remove(ranks.names)


@contextlib.contextmanager
def task(ranks: Ranks, index: int) -> Iterator[None]:
    """Say that a task is being evaluated."""
    token = _outer.set((*_outer.get(), _Evaluation(ranks.names, index)))
    try:
        yield
    finally:
        _outer.reset(token)


def agree(
    ranks: Ranks, facts: Mapping[str, int], options: Mapping[str, object], whole: int
) -> None:
    """Exchange what the ranks are about to do; one small collective.

    Args:
        ranks: Who has to agree. Partners may each have a part of the tasks and of the parameters.
        facts: Numbers of 64 bits by the names above.
        options: Arguments by name, with a printed form that is equal where they are.
        whole: The checksum of the parameters of which each partner has the whole.

    Raises:
        ValueError: On every rank, if they differ, or if one of them has failed already.
    """
    nesting = digest(*(evaluation.task for evaluation in _outer.get()))
    header = {**facts, "nesting": nesting}
    header |= {f"`{name}`": digest(value) for name, value in options.items()}
    _compare(ranks.names, ranks.group, header, ranks)
    if ranks.partners is not None:
        common = {**header, "tasks": 0, "values of `params`": whole}
        _compare(ranks.partner_names, ranks.partners, common, ranks)


def tell_failure(ranks: Ranks) -> None:
    """Tell the others that this rank cannot take part, because of its arguments."""
    for group in (ranks.group, *([] if ranks.partners is None else [ranks.partners])):
        with contextlib.suppress(RuntimeError):  # they are lost as well
            _gathered(group, [1])


def _compare(
    names: tuple[int, ...],
    group: dist.ProcessGroup | None,
    header: Mapping[str, int],
    ranks: Ranks,
) -> None:
    with naming_lost_ranks(ranks._replace(names=names)):
        rows = _gathered(group, [0, *header.values()])
    failed = [name for name, row in zip(names, rows, strict=True) if row[0]]
    if failed:
        listed = ", ".join(map(str, failed))
        raise ValueError(f"map_tasks was called with bad arguments on rank {listed}; see its error")
    for place, what in enumerate(header, start=1):
        found = [row[place] for row in rows]
        if len(set(found)) > 1:
            kinds = list(dict.fromkeys(found))
            shown = ", ".join(
                f"{value if what == 'number of tasks' else f'variant {kinds.index(value) + 1}'} "
                f"on rank {name}"
                for value, name in zip(found, names, strict=True)
            )
            remedy = _REMEDIES.get(what, _REMEDIES["options"])
            raise ValueError(f"the {what} must be equal on all ranks, got {shown}; {remedy}")


def _gathered(group: dist.ProcessGroup | None, numbers: list[int]) -> list[list[int]]:
    device = _device(group)
    padded = numbers + [0] * (_WIDTH - len(numbers))
    own = torch.tensor(padded, dtype=torch.int64, device=device)
    rows = torch.empty(dist.get_world_size(group), _WIDTH, dtype=torch.int64, device=device)
    dist.all_gather([*rows], own, group=group)
    return rows.tolist()


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Return where the backend of a group takes its numbers from: the CPU where it can."""
    backends = str(dist.get_backend_config(group))  # as in "cpu:gloo,cuda:nccl"
    if "cpu:" in backends:
        return torch.device("cpu")
    kind = backends.partition(":")[0]
    return torch.device(kind, torch.get_device_module(kind).current_device())
