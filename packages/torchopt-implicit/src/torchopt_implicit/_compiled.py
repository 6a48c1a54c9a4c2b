"""Products with the derivatives of an equation as compiled graphs, one set for each shape.

A product :math:`A^\\top v` is linear in ``v``: what does not depend on it is computed once for each
linear system, what does is one compiled graph, which sees all tensors as inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch

from torchopt_implicit._system import System, Tensors
from torchopt_implicit._tree import leading_vmap

__all__ = ["Compiler", "CompilerCache"]

# sets of shapes and structures of one equation; beyond, the oldest is compiled anew
LIMIT = 32


class _Program(NamedTuple):
    """A function of ``(inputs, v)`` that is linear in ``v``, in two parts."""

    #: the inputs to what the product needs of them
    prepare: Callable[..., tuple[torch.Tensor, ...]]
    #: that and ``v`` to the results
    product: Callable[..., Sequence[torch.Tensor]]


class CompilerCache:
    """The programs of one equation, for as long as it is there."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, _Program] = {}

    def get(self, key: Hashable, build: Callable[[], _Program]) -> _Program:
        """Return the program of a key, built where there is none."""
        if key not in self._programs:
            if len(self._programs) >= LIMIT:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = build()
        return self._programs[key]


class Compiler:
    """Linearizes the systems of one call.

    Args:
        cache: Programs of earlier calls.
        structure: All that programs depend on beside their inputs' shapes.
        check: Called before each use; raises if the equation must not be evaluated again.
    """

    def __init__(
        self, cache: CompilerCache, structure: Hashable, check: Callable[[], None]
    ) -> None:
        self.cache = cache
        self.structure = structure
        self.check = check

    def linearize(self, system: System, x: torch.Tensor, tensors: Tensors) -> Compiled:
        """Return the products with the derivatives of a system at a point."""
        self.check()
        return Compiled(self, system, x.contiguous(), tensors)


class Compiled:
    """Products with the derivatives of an equation at a point, for one linear system."""

    def __init__(
        self, compiler: Compiler, system: System, x: torch.Tensor, tensors: Tensors
    ) -> None:
        self.compiler = compiler
        self.system = system
        self.inputs = (x, *tensors)
        self._prepared: dict[Hashable, tuple[_Program, tuple[torch.Tensor, ...]]] = {}

    def rmatvec(self, v: torch.Tensor) -> torch.Tensor:
        return self._run(_transposed, v)[0]

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self._run(_forward, v)[0]

    def pullback(self, u: torch.Tensor) -> Tensors:
        return tuple(self._run(_pulled, u))

    def _run(self, derivative: Callable[..., Tensors], v: torch.Tensor) -> Sequence[torch.Tensor]:
        v = v.contiguous()
        key = (derivative, v.shape)
        if key not in self._prepared:
            program = self._program(derivative, v)
            self._prepared[key] = program, program.prepare(*self.inputs)
        program, prepared = self._prepared[key]
        return program.product(*prepared, v)

    def _program(self, derivative: Callable[..., Tensors], v: torch.Tensor) -> _Program:
        system = self.system
        inputs = (*self.inputs, v)
        shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
        dims, batched = [], system
        while batched.parent is not None:
            dims.append(batched.in_dims)
            batched = batched.parent
        key = (derivative, self.compiler.structure, system.differentiable, tuple(dims), shapes)

        def function(*inputs: torch.Tensor) -> Tensors:
            x, *tensors, v = inputs
            return derivative(system, x, tuple(tensors), v)

        return self.compiler.cache.get(key, lambda: _build(function, inputs))


def _pull(system: System, x: torch.Tensor, tensors: Tensors) -> Callable[..., Tensors]:
    def residual(x: torch.Tensor, *varying: torch.Tensor) -> torch.Tensor:
        return system.function(x, *system.replace(tensors, varying))

    pull: Callable[..., Tensors] = torch.func.vjp(residual, x, *system.varying(tensors))[1]
    return pull


def _transposed(system: System, x: torch.Tensor, tensors: Tensors, v: torch.Tensor) -> Tensors:
    pull = _pull(system, x, tensors)
    return (leading_vmap(lambda v: pull(v)[0], v.ndim - x.ndim)(v),)


def _forward(system: System, x: torch.Tensor, tensors: Tensors, v: torch.Tensor) -> Tensors:
    pull = _pull(system, x, tensors)
    push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(x))[1]
    return (leading_vmap(lambda v: push(v)[0], v.ndim - x.ndim)(v),)


def _pulled(system: System, x: torch.Tensor, tensors: Tensors, v: torch.Tensor) -> Tensors:
    return _pull(system, x, tensors)(v)[1:]


def _build(function: Callable[..., Tensors], inputs: tuple[torch.Tensor, ...]) -> _Program:
    """Return the program of a function that is linear in the last of its inputs."""
    # compilers are heavy imports
    from torch._inductor import compile as compile_graph
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = tuple(t.detach() for t in inputs)
    traced: Any = make_fx(function)(*inputs)
    nodes = list(traced.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    results = list(next(node for node in nodes if node.op == "output").args[0])
    linear = {given[-1]}
    for node in nodes:
        if not linear.isdisjoint(node.all_input_nodes):
            linear.add(node)
    # what results need of the rest
    seen, prepared, stack = set(), [], list(results)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in linear:
            stack += node.all_input_nodes
        else:
            prepared.append(node)
    prepare = _extract(traced, given[:-1], prepared)
    product = _extract(traced, [*prepared, given[-1]], results)
    examples = [*prepare(*inputs[:-1]), inputs[-1]]
    return _Program(prepare, compile_graph(product, examples))


def _extract(module: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return the part of a graph between nodes, as a module of its own."""
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    needed, stack = set(), list(outputs)
    while stack:
        node = stack.pop()
        if node not in needed and node not in copies:
            needed.add(node)
            stack += node.all_input_nodes
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return torch.fx.GraphModule(module, graph)
