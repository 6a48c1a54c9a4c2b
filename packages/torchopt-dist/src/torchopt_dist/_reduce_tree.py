"""Sums of gradients over tasks and ranks."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from torchopt_dist._group import Ranks, naming_lost_ranks
from torchopt_dist._leaves import Leaves, add_to


class Summation(abc.ABC):
    """A sum over the tasks of all ranks.

    Attributes:
        extra: Numbers that are summed over the ranks along with the gradients, zeros at first.
    """

    extra: Tensor

    @abc.abstractmethod
    def discard(self) -> None:
        """Forget the gradients of this rank: a task has failed, and only `extra` matters."""

    @abc.abstractmethod
    def add(self, index: int, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of a task; a rank's tasks come in the order of their indices."""

    @abc.abstractmethod
    def reduce(self) -> tuple[Tensor, Tensor]:
        """Return the sum over all ranks, of the gradients as a buffer and of the extra numbers."""


class RunningSum(Summation):
    """Adds up a rank's gradients as they come, then all-reduces one buffer."""

    def __init__(self, leaves: Leaves, ranks: Ranks, count: int, extra: int) -> None:
        self.ranks = ranks
        self.buffer = torch.zeros(leaves.size + extra, dtype=leaves.dtype, device=leaves.device)
        self.total, self.extra = torch.split(self.buffer, [leaves.size, extra])
        self.views = leaves.views(self.total)

    def add(self, index: int, gradients: Sequence[Tensor | None]) -> None:
        add_to(self.views, gradients)

    def discard(self) -> None:
        self.total.zero_()

    def reduce(self) -> tuple[Tensor, Tensor]:
        if self.ranks.size > 1:
            with naming_lost_ranks(self.ranks):
                dist.all_reduce(self.buffer, group=self.ranks.group)
        return self.total, self.extra


class Node(NamedTuple):
    """A node of the tree: the sum over tasks ``[position << level, (position + 1) << level)``."""

    level: int
    position: int
    total: Tensor


class TreeSum(Summation):
    """Adds along a binary tree over the task indices that does not depend on the ranks.

    The tasks of a rank are a contiguous block, which subtrees cover: at most two for each level of
    the tree, and one where a share is a power of two. A rank sums these subtrees. Then each rank
    gets one slice of every subtree, adds what is above them, always in the same order, and all
    gather the slices. So every addition has the same operands whatever the number of ranks.

    With gradients of size :math:`G` and :math:`s` subtrees in all on :math:`R` ranks, a rank
    receives :math:`s G / R` numbers and then :math:`G`. It keeps one gradient for each level of
    the tree, and as many as it receives.
    """

    def __init__(self, leaves: Leaves, ranks: Ranks, count: int, extra: int) -> None:
        self.leaves, self.ranks, self.count = leaves, ranks, count
        self.extra = torch.zeros(extra, dtype=leaves.dtype, device=leaves.device)
        self.nodes: list[Node] = []

    def add(self, index: int, gradients: Sequence[Tensor | None]) -> None:
        total = torch.zeros(self.leaves.size, dtype=self.extra.dtype, device=self.extra.device)
        add_to(self.leaves.views(total), gradients)
        push(self.nodes, Node(0, index, total), self.count)

    def discard(self) -> None:
        self.nodes = cover(self.ranks.share(self.count), self.count)
        zeros = self.extra.new_zeros(()).expand(self.leaves.size)
        self.nodes = [node._replace(total=zeros) for node in self.nodes]

    def reduce(self) -> tuple[Tensor, Tensor]:
        if self.ranks.size > 1:
            return self._exchange()
        (root,) = self.nodes
        return root.total, self.extra

    def _exchange(self) -> tuple[Tensor, Tensor]:
        ranks, width = self.ranks, -(-self.leaves.size // self.ranks.size)
        covers = [cover(ranks.share_of(r, self.count), self.count) for r in range(ranks.size)]
        own = self.extra.new_zeros(ranks.size, len(self.nodes), width)
        for k, node in enumerate(self.nodes):
            for rank, part in enumerate(torch.split(node.total, width) if width else ()):
                own[rank, k, : part.numel()] = part
        self.nodes.clear()
        parts = self.extra.new_empty(sum(map(len, covers)), width)
        with naming_lost_ranks(ranks):
            dist.all_to_all_single(
                parts.view(-1),
                own.view(-1),
                [len(nodes) * width for nodes in covers],
                [own[0].numel()] * ranks.size,
                group=ranks.group,
            )
        del own
        places = [node for nodes in covers for node in nodes]
        for node, part in zip(places, parts, strict=True):
            push(self.nodes, node._replace(total=part), self.count)
        (root,) = self.nodes
        row = torch.cat([root.total, self.extra])
        rows = row.new_empty(ranks.size, row.numel())
        with naming_lost_ranks(ranks):
            dist.all_gather([*rows], row, group=ranks.group)
        total = rows[:, :width].reshape(-1)[: self.leaves.size]
        return total, rows[:, width:].sum(0)


def push(nodes: list[Node], node: Node, count: int) -> None:
    """Append a node to the covering of a block, and merge siblings as far as there are.

    Args:
        nodes: The nodes that cover a block of tasks, in order.
        node: The node that comes next.
        count: How many tasks the tree is over. A node without a right sibling is its parent.
    """
    while node.level < (count - 1).bit_length():
        if node.position % 2:
            sibling = (node.level, node.position - 1)
            if not nodes or nodes[-1][:2] != sibling:
                break
            left = nodes.pop()
            left.total.add_(node.total)
            node = left
        elif (node.position + 1) << node.level < count:
            break
        node = node._replace(level=node.level + 1, position=node.position // 2)
    nodes.append(node)


def cover(share: range, count: int) -> list[Node]:
    """Return the largest subtrees that cover a contiguous block of tasks, with empty sums."""
    nodes: list[Node] = []
    empty = torch.empty(0)
    for index in share:
        push(nodes, Node(0, index, empty), count)
    return nodes
