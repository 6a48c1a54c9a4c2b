"""Process groups: which ranks share the work, and which of them are lost when it fails."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist

from torchopt_dist._errors import LostRankError
from torchopt_dist._interface import environment_defaults, own_interface

if TYPE_CHECKING or dist.is_available():
    # Its functions have the default group of the moment they are defined as a default argument.
    # Were that a group (an optimizer's first step imports them), it would outlive its end, and so
    # would gloo's threads, which abort the process if they let go of a tensor while Python exits.
    import torch.distributed.nn.functional
    from torch.distributed.device_mesh import DeviceMesh

# how long ranks are waited for that may report a failed collective, too
_GRACE_SECONDS = 5.0
# which process group is entered next, the same on all ranks
_entries = itertools.count()


class Ranks(NamedTuple):
    """The ranks that share tasks, seen from one of them."""

    # this one, and how many there are, in the group
    rank: int
    size: int
    # what each is called in the world
    names: tuple[int, ...]
    # ``None`` for the default group
    group: dist.ProcessGroup | None
    # those that evaluate the same tasks as this one, each with a part of the model or of the data
    partners: dist.ProcessGroup | None = None
    partner_names: tuple[int, ...] = ()

    @property
    def name(self) -> int:
        """What this rank is called in the world."""
        return self.names[self.rank]

    @property
    def everyone(self) -> tuple[int, ...]:
        """The ranks that this one waits for, as the world calls them."""
        return (*self.names, *self.partner_names)

    @property
    def several(self) -> bool:
        """Whether there is anyone to wait for."""
        return self.size > 1 or len(self.partner_names) > 1

    @property
    def is_first_partner(self) -> bool:
        """Whether this one speaks for those that evaluate the same tasks."""
        return self.name == min(self.partner_names, default=self.name)

    def share(self, count: int) -> range:
        """Return this rank's items of ``count``: a contiguous block.

        All blocks but the last are as long as the longest has to be, so that those of a power of
        two are whole subtrees. The last ranks may be left without any.
        """
        return self.share_of(self.rank, count)

    def share_of(self, rank: int, count: int) -> range:
        """Return the items of a rank."""
        block = -(-count // self.size)
        return range(min(rank * block, count), min((rank + 1) * block, count))

    @classmethod
    def alone(cls) -> Ranks:
        """Return a world of one."""
        name = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return cls(0, 1, (name,), None)

    @classmethod
    def of(cls, group: dist.ProcessGroup | DeviceMesh | None) -> Ranks:
        """Return the ranks of a group, the default one if ``None``; without any, a world of one.

        Raises:
            RuntimeError: If `torchrun` started several processes and there is no process group.
            TypeError: If it is neither a group nor a mesh.
            ValueError: If this process does not belong to the group, or a mesh has more than two
                dimensions.
        """
        if not (dist.is_available() and dist.is_initialized()):
            launched = os.environ.get("WORLD_SIZE", "1")
            if launched != "1":
                raise RuntimeError(
                    f"WORLD_SIZE is {launched} and there is no process group, so that every rank "
                    f"would do all the work; call this inside `with process_group():`"
                )
            return cls.alone()
        partners = None
        if isinstance(group, DeviceMesh):
            if group.ndim > 2:
                raise ValueError(
                    f"`group` must be a mesh of tasks, or of tasks x model, got {group.ndim} "
                    f"dimensions; flatten those of the model"
                )
            group, *others = group.get_all_groups()
            partners = others[0] if others else None
        elif not isinstance(group, (dist.ProcessGroup, int, type(None))):  # no member: an int
            raise TypeError(f"`group` must be a ProcessGroup, a DeviceMesh or None, got {group!r}")
        rank = dist.get_rank(group)
        if rank < 0:
            raise ValueError(
                f"`group` must have rank {dist.get_rank()}, which called this, as a member"
            )
        return cls(
            rank,
            dist.get_world_size(group),
            tuple(dist.get_process_group_ranks(group)),
            group,
            partners,
            () if partners is None else tuple(dist.get_process_group_ranks(partners)),
        )


@contextlib.contextmanager
def process_group(*, backend: str | None = None, timeout: float = 300.0) -> Iterator[None]:
    """Join the ranks that `torchrun` started for the time of a ``with`` block.

    Without `torchrun`, nothing is started and there is one rank: the same script runs in a single
    process. On one machine gloo is bound to the loopback interface, on several to the one that
    leads to ``MASTER_ADDR``, unless ``GLOO_SOCKET_IFNAME`` names another; without ``MASTER_ADDR``,
    the ranks meet at 127.0.0.1. `torchrun` keeps the store in which they meet, and lets it listen
    on all interfaces. Anyone who reaches these addresses can take part: use several machines in
    trusted networks only.

    Args:
        backend: Of `torch.distributed`. Default: ``"cpu:gloo,cuda:nccl"`` where there is a CUDA
            device and nccl, else ``"gloo"``.
        timeout: How long a rank waits for the others, in seconds. It has to exceed the time by
            which the work of ranks may differ. Default: 300.

    Yields:
        Nothing. The group is the default group of `torch.distributed`.

    Raises:
        RuntimeError: If there is a default group already.
        ValueError: If `timeout` is not positive.

    Example:
        >>> from torchopt_dist import map_tasks, process_group
        >>> with process_group(timeout=60.0):  # python script.py, or torchrun ... script.py
        ...     pass
    """
    if not timeout > 0:
        raise ValueError(f"`timeout` must be a positive number of seconds, got {timeout!r}")
    if dist.is_available() and dist.is_initialized():
        raise RuntimeError(
            "there is a default process group already; use it as it is, or call "
            "torch.distributed.destroy_process_group() first"
        )
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    one_machine = os.environ["WORLD_SIZE"] == os.environ.get("LOCAL_WORLD_SIZE")
    with environment_defaults(
        MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME=own_interface(one_machine)
    ):
        patience = timedelta(seconds=timeout)
        meeting = dist.rendezvous("env://", timeout=patience)  # type: ignore[attr-defined]
        store, rank, size = next(meeting)
        # under another name each time: a later group must not find the addresses of an earlier one
        prefix = f"torchopt/{restart()}/{next(_entries)}"
        store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        dist.init_process_group(
            backend or _backend(), store=store, rank=rank, world_size=size, timeout=patience
        )
        try:
            yield
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def restart() -> str:
    """Return how often `torchrun` has started the ranks again: it keeps the store meanwhile."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _backend() -> str:
    if torch.cuda.is_available() and dist.is_nccl_available():
        return "cpu:gloo,cuda:nccl"
    return "gloo"


@contextlib.contextmanager
def naming_lost_ranks(ranks: Ranks) -> Iterator[None]:
    """Run a collective; where it fails, find out which ranks are lost.

    Backends say that a connection was closed, not whose. So a rank whose collective failed leaves a
    note in the store of the process group, and waits a little for the notes of the others.

    Raises:
        LostRankError: If ranks left no note.
    """
    try:
        yield
    except RuntimeError as error:
        verdict = _Verdict(ranks)
        # a store whose process is stopped, but not dead, answers nothing at all
        thread = threading.Thread(target=verdict.reach, daemon=True)
        thread.start()
        thread.join(2 * _GRACE_SECONDS)
        if verdict.error is not None:
            raise verdict.error from error
        raise


class _Verdict:
    """What the notes in the store say; written by a thread of its own."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        # the answer until there is a better one
        self.error: LostRankError | None = self._without_store()

    def _without_store(self) -> LostRankError:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return LostRankError((), "the launcher, which keeps the store of the ranks, is lost")
        return LostRankError(
            (0,), "rank 0, which keeps the store of the ranks, is lost: it died or hangs"
        )

    def reach(self) -> None:
        """Exchange notes."""
        with contextlib.suppress(RuntimeError):  # the store is lost
            self.error = self._exchange_notes()

    def _exchange_notes(self) -> LostRankError | None:
        ranks = self.ranks
        own = ranks.names[ranks.rank]
        store = dist.distributed_c10d._get_default_store()
        prefix = f"torchopt/lost/{'-'.join(map(str, ranks.names))}"
        # a group fails on all of its ranks, so that they agree on how often it did
        prefix += f"/{store.add(f'{prefix}/{own}', 1)}"
        store.set(f"{prefix}/{own}", "here")
        patience: timedelta = store.timeout  # type: ignore[attr-defined]
        deadline = time.monotonic() + min(_GRACE_SECONDS, patience.total_seconds())
        while missing := [name for name in ranks.names if not store.check([f"{prefix}/{name}"])]:
            if time.monotonic() > deadline:
                listed = ", ".join(map(str, missing))
                store.set(f"{prefix}/missing", listed)
                plural = "s" * (len(missing) > 1)
                return LostRankError(
                    missing,
                    f"rank{plural} {listed} of {ranks.size} did not take part in a reduction: dead,"
                    f" hung, or later than the timeout of the process group",
                )
            time.sleep(0.02)
        if not store.check([f"{prefix}/missing"]):
            return None
        return LostRankError(
            (own,),
            f"this rank, {own}, took part in a reduction later than the timeout of the process "
            f"group, and the others gave up on it; raise the timeout if its tasks may take longer",
        )
