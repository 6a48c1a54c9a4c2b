"""Solutions of equations between trees, with derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optree
import torch
from torch import nn

from torchopt_implicit._autograd import attach
from torchopt_implicit._capture import Captured, capture, has_derivatives, pure, substitute
from torchopt_implicit._compiled import Compiler, CompilerCache
from torchopt_implicit._context import Surroundings
from torchopt_implicit._functorch import (
    is_differentiating,
    is_forward_mode,
    is_transforming,
    layers,
)
from torchopt_implicit._implicit_solver import ImplicitSolver
from torchopt_implicit._system import Recorded, System, Tensors
from torchopt_implicit._tree import Layout

__all__ = ["build_system", "implicit_solution", "unravel_solution"]

#: the graph of a residual and its leaves; ``None`` where a transform is at work
_Record = tuple[Recorded, Tensors] | None


def implicit_solution(
    residual_fn: Callable[..., Any],
    solution: Any,
    args: tuple[Any, ...],
    argnums: Sequence[int],
    linear: ImplicitSolver | None,
    *,
    name: str = "optimality_fn",
    namespace: str = "",
    cache: CompilerCache | None = None,
) -> Any:
    """Return a solution with derivatives in arguments, and in what the function closes over.

    Args:
        residual_fn: Called as ``residual_fn(x, *args)``.
        solution: A tree where it is zero.
        args: Its other arguments.
        argnums: Which of these to differentiate in.
        linear: Solves linear systems; without it the solution is constant.
        name: What to call ``residual_fn`` in messages.
        namespace: In which optree looks for the types of nodes of trees.
        cache: Where compiled derivatives are kept, if they are to be compiled.
    """
    layout = Layout.of(solution, "the solution", namespace=namespace)
    vector = layout.join(layout.flatten(solution, "the solution")).detach()
    is_differentiated = torch.is_grad_enabled() or is_differentiating() or is_forward_mode()
    if linear is not None and is_differentiated:
        system, tensors = build_system(
            residual_fn,
            layout,
            vector,
            args,
            argnums,
            linear,
            name=name,
            namespace=namespace,
            cache=cache,
        )
        if any(system.differentiable):
            vector = attach(system, vector, tensors)
    return unravel_solution(layout, vector)


def unravel_solution(layout: Layout, vector: torch.Tensor) -> Any:
    """Return the tree of a solution, in clones, so that a leaf may be written to."""
    return optree.tree_unflatten(layout.spec, [leaf.clone() for leaf in layout.split(vector)])


def build_system(
    residual_fn: Callable[..., Any],
    layout: Layout,
    x: torch.Tensor,
    args: tuple[Any, ...],
    argnums: Sequence[int],
    linear: ImplicitSolver,
    *,
    name: str,
    namespace: str,
    is_affine: bool = False,
    cache: CompilerCache | None = None,
) -> tuple[System, Tensors]:
    """Return the equation between vectors, and all tensors that it depends on.

    Those are the tensors among the arguments, whatever else is in these trees, and what the
    function closes over and may be differentiated in. They become inputs of autograd functions,
    so that `torch.func` transforms see them. The function is evaluated once, at ``x``.
    """
    everything: Any = args
    leaves, spec = optree.tree_flatten(everything, namespace=namespace)
    owners = [i for i, arg in enumerate(args) for _ in optree.tree_leaves(arg, namespace=namespace)]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = tuple(leaves[i] for i in places)
    chosen = [owners[i] in argnums for i in places]
    template = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    constant = [leaf for i, leaf in zip(owners, leaves, strict=True) if i not in argnums]

    def residual(vector: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        whole = list(template)
        for i, tensor in zip(places, tensors, strict=True):
            whole[i] = tensor
        value = residual_fn(layout.unravel(vector), *optree.tree_unflatten(spec, whole))
        return layout.ravel(value, f"what `{name}` returns, like the solution,")

    surroundings = Surroundings(name, layout.device)

    def equation(
        function: Callable[..., torch.Tensor], tensors: Tensors, chosen: Sequence[bool]
    ) -> System:
        differentiable = [
            d and _is_continuous(t) and has_derivatives(t)
            for d, t in zip(chosen, tensors, strict=True)
        ]
        bound = surroundings.bind(function)
        compiler = None
        if cache is not None:
            state = (surroundings.autocast, surroundings.modes)
            structure = (spec, tuple(template), layout, state, len(tensors))
            compiler = Compiler(cache, structure, surroundings.check)
        return System(bound, layout, differentiable, linear, is_affine=is_affine, compiler=compiler)

    system = equation(residual, tensors, chosen)
    if cache is not None:
        _check_hashable(template)
    before = surroundings.random_state()
    with surroundings.watch_modules():
        captured, record, value = _examine(system, x, tensors)
    surroundings.replay_if_changed(before)
    surroundings.watch(captured.read)
    frozen = [p for module in _modules(constant) for p in module.parameters()]
    keys = {id(p) for p in frozen}
    found = tuple(x for x in captured.tensors if id(x) not in keys)
    variable = [True] * len(found)
    if cache is not None:
        if surroundings.random is not None:
            raise ValueError(
                f"`{name}` draws random numbers, which a compiled graph cannot repeat: use "
                "Implicit(compiled=False)"
            )
        # all are inputs, since a compiled graph would have others as constants
        known = {id(x) for x in found}
        found = (*found, *(x for x in captured.read if id(x) not in known))
        variable += [False] * (len(found) - len(variable))
    if captured.writes:
        residual = pure(residual)
    if captured.writes or found or cache is not None:
        count = len(tensors)

        def lifted(vector: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
            function = substitute(
                residual, found, tensors[count:], is_transformed=captured.is_transformed
            )
            return function(vector, *tensors[:count])  # type: ignore[no-any-return]

        chosen = [*chosen, *variable]
        tensors = (*tensors, *found)
        system = equation(lifted, tensors, chosen)
        record = None if record is None else system.record(x, tensors)
    if record is None:
        out_of_reach = (*captured.hidden, *_unseen(value, (*captured.tensors, *frozen)))
    else:
        graph, inputs = record
        known_leaves = (graph.point, *inputs, *frozen)
        out_of_reach = (*captured.hidden, *_unseen(graph.residual, known_leaves))
        if not is_affine and cache is None:
            system.keep(graph, inputs)
    if out_of_reach:
        which = _describe(residual_fn, out_of_reach[0])
        raise RuntimeError(
            f"`{name}` depends on {which}, which requires gradients, by a way on which it cannot "
            "be followed, as through a torch.autograd.Function or a graph made before. Pass it "
            "as an argument in `argnums`, or detach it if it is to be a constant"
        )
    return system, tensors


def _examine(
    system: System, x: torch.Tensor, tensors: Tensors
) -> tuple[Captured, _Record, torch.Tensor]:
    """Return what the function closes over, its graph unless a transform is at work, and value."""
    records: list[_Record] = [None]
    values: list[torch.Tensor] = []

    def record(x: torch.Tensor, *tensors: torch.Tensor) -> None:
        graph, leaves = system.record(x, tensors)
        records.append((graph, leaves))
        values.append(graph.residual)

    def transform(x: torch.Tensor, *tensors: torch.Tensor) -> None:
        # differentiated in x, too, so that the function may use torch.autograd.grad
        values.append(torch.func.vjp(lambda x: system.function(x, *tensors), x)[0])

    # others than those that the function may close over, too; and values are enough
    given = [t.detach() for t in tensors]
    captured = capture(transform if is_transforming() else record, x, *given)
    return captured, records[-1], values[-1]


def _unseen(residual: torch.Tensor, known: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Return the leaves of the residual's graphs that are not known; each transform has one."""
    with torch.enable_grad():  # aliases, since an outer solver may have put others in their places
        aliases = [y.grad_fn for x in known for y in layers(x.view_as(x))]
    seen: set[Any] = {node for x in aliases if x for node, _ in x.next_functions}
    nodes = [layer.grad_fn for layer in layers(residual)]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            yield leaf
        nodes += [parent for parent, _ in node.next_functions]


def _check_hashable(template: Sequence[Any]) -> None:
    """Raise if what is compiled cannot be told from what other arguments would need."""
    try:
        hash(tuple(template))
    except TypeError as error:
        raise TypeError(
            "with compiled=True, arguments that are no tensors are part of what is compiled, and "
            f"must be hashable: {error}"
        ) from None


def _describe(function: Any, tensor: torch.Tensor) -> str:
    """Return the name by which a function closes over a tensor, as far as it can be found."""
    seen: set[int] = set()
    functions = [function]
    while functions:
        current = functions.pop()
        code = getattr(current, "__code__", None)
        if code is None or id(current) in seen:
            continue
        seen.add(id(current))
        cells = [cell.cell_contents for cell in current.__closure__ or ()]
        held = dict(zip(code.co_freevars, cells, strict=True))
        held |= {n: current.__globals__[n] for n in code.co_names if n in current.__globals__}
        for name, value in held.items():
            if value is tensor:
                return f"`{name}`"
            if isinstance(value, nn.Module):
                for member, parameter in value.named_parameters():
                    if parameter is tensor:
                        return f"`{name}.{member}`"
            functions.append(value)
    return f"a tensor of shape {tuple(tensor.shape)}"


def _modules(leaves: Sequence[Any]) -> Iterator[nn.Module]:
    return (leaf for leaf in leaves if isinstance(leaf, nn.Module))


def _is_continuous(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
