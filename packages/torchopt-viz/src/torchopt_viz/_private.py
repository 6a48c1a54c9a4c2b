"""What torch has no public name for.

- `next_number`: the number of the node that this thread makes next. A recording tells by it which
  nodes a call has made; hooks on tensors see results, not the nodes between.
- `levels`: what is within the tensors that ``torch.func`` transforms compute with. The innermost
  has the storage; the graph may be that of any.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch._C._autograd import _get_sequence_nr as next_number
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

__all__ = ["levels", "next_number"]


def levels(tensor: Tensor) -> Iterator[Tensor]:
    """Return a tensor, and those within it: each transform has graphs of its own."""
    yield tensor
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
        yield tensor
