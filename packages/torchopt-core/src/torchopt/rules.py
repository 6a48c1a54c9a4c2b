"""What an optimizer or a transformation of your own is written with.

A :class:`Rule` is the mathematics of a transformation, over lists of leaves;
:func:`transformation` and :func:`optimizer` make the functional form of it. The README of
`torchopt-core` derives some step by step.
"""

from torchopt._arithmetic import Operand, PerLeaf
from torchopt._chain import (
    Chain,
    Identity,
    expand_state,
    merge_state,
    prepare,
    select_state,
    step,
    update,
)
from torchopt._context import Context, bias_correction, counts_like, filled_like, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import (
    EmptyState,
    Field,
    Kind,
    fields_of,
    moment,
    nested,
    number,
    per_leaf,
    record,
    shared,
    weights,
)
from torchopt._types import Leaves
from torchopt._updates import FactoredUpdates
from torchopt.base import as_rule

__all__ = [
    "Chain",
    "Context",
    "EmptyState",
    "FactoredUpdates",
    "Field",
    "GradientStep",
    "Identity",
    "Kind",
    "Leaves",
    "Operand",
    "PerLeaf",
    "Rule",
    "as_rule",
    "bias_correction",
    "counts_like",
    "expand_state",
    "fields_of",
    "filled_like",
    "merge_state",
    "moment",
    "nested",
    "number",
    "optimizer",
    "per_leaf",
    "prepare",
    "record",
    "select_state",
    "shared",
    "step",
    "transformation",
    "update",
    "weights",
    "zeros_like",
]
