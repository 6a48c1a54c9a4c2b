"""What leaves are for: pictures merge those of one role alone."""

from __future__ import annotations

from torchopt_viz._elementwise import is_elementwise, operation
from torchopt_viz._graph import Graph

__all__ = ["role_of_leaves"]

# the role of what a model computes with: weights, inputs
MODEL = ""


def role_of_leaves(graph: Graph) -> dict[int, str]:
    """Return the role of each leaf, by its key.

    Weights go into the functions of a model. What only goes into the arithmetic of a step, such as
    learning rates and moments, is told apart by whether it is a number or a tensor, and by what it
    goes into: ``"numbers into Mul"``, ``"tensors into Lerp"``.
    """
    users: dict[int, set[str]] = {
        node.key: set() for node in graph.nodes if node.kind in ("parameter", "leaf")
    }
    in_model = set()
    for source, target in graph.edges:
        if source not in users:
            continue
        node = graph.nodes[target]
        if node.kind not in ("function", "step"):
            continue
        name = operation(node.label).removeprefix("Foreach")
        users[source].add(name)
        if node.kind == "function" and not is_elementwise(name):
            in_model.add(source)
    return {
        key: MODEL
        if key in in_model or not ops
        else f"{'tensors' if graph.nodes[key].shape else 'numbers'} into {', '.join(sorted(ops))}"
        for key, ops in users.items()
    }
