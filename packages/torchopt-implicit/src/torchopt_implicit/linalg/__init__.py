"""Linear algebra on trees of tensors: operators, conjugate gradients, the Neumann series."""

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._sparse import csr_operator
from torchopt_implicit._tags import Tag
from torchopt_implicit.linalg.cg import cg
from torchopt_implicit.linalg.ns import ns, ns_inv

__all__ = ["LinearOperator", "Tag", "cg", "csr_operator", "ns", "ns_inv"]
