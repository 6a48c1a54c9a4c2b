"""One step of an inner loop, as a function of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import optree
import torch

from torchopt._context import is_transforming
from torchopt._rule import Rule
from torchopt._types import Leaves, OptState
from torchopt.base import Foreign, GradientTransformation, RuleTransformation, as_rule
from torchopt.diff.explicit._captured import Detect, Substitute, leaves_reached
from torchopt.diff.explicit._functorch import is_active
from torchopt.diff.explicit._gradient import Gradient, Inputs, exact
from torchopt.diff.explicit._surroundings import Surroundings, Unchanged
from torchopt.diff.explicit._target import Target
from torchopt.update import apply_updates

__all__ = ["Carry", "Problem"]


class Carry(NamedTuple):
    """What a step takes from the one before."""

    leaves: Leaves
    state: OptState
    buffers: Leaves

    def pack(self) -> tuple[Leaves, Layout]:
        """Return its tensors, and the rest."""
        tree: Any = tuple(self)
        every, spec = optree.tree_flatten(tree, none_is_leaf=True)
        tensors = [x for x in every if isinstance(x, torch.Tensor)]
        return tensors, Layout(spec, [_HOLE if isinstance(x, torch.Tensor) else x for x in every])


_HOLE: Any = object()


class Layout(NamedTuple):
    """What is left of a carry without its tensors."""

    spec: optree.PyTreeSpec
    #: The other leaves, with a mark where a tensor was.
    others: list[Any]

    def unpack(self, tensors: Sequence[torch.Tensor]) -> Carry:
        """Return the carry with these tensors."""
        remaining = iter(tensors)
        every = [next(remaining) if x is _HOLE else x for x in self.others]
        return Carry(*optree.tree_unflatten(self.spec, every))

    @property
    def size(self) -> int:
        """The number of tensors."""
        return sum(x is _HOLE for x in self.others)


class Problem:
    """An inner problem, of which any step can be taken at any time.

    Args:
        loss: The inner loss.
        optimizer: The transformation.
        target: What is adapted.
        arguments: What the loss gets beside parameters and batch.
        batch: From the number of a step to its batch, in a tuple; of nothing if there is none.
        gradient: How an inner gradient is taken.
    """

    def __init__(
        self,
        loss: Callable[..., torch.Tensor],
        optimizer: GradientTransformation,
        target: Target,
        arguments: tuple[Any, ...],
        batch: Callable[[int], tuple[Any, ...]],
        gradient: Gradient,
    ) -> None:
        self.loss, self.optimizer, self.target = loss, optimizer, target
        self.arguments, self.batch, self.gradient = arguments, batch, gradient
        #: What all steps read and may be differentiated in, as it was given.
        self.shared: Leaves = []
        self.unchanged = Unchanged()
        self.generators: list[torch.Generator] = []
        self._watched: Detect | None = None
        self._has_foreign = _has_foreign(optimizer)

    def start(self, state: OptState | None) -> Carry:
        """Return the first carry."""
        leaves = self.target.leaves
        if state is None:
            state = self.optimizer.init(self.target.tree(leaves))
        return Carry(list(leaves), state, list(self.target.buffers))

    def step(
        self,
        index: int,
        carry: Carry,
        shared: Leaves | None = None,
        gradient: Gradient | None = None,
    ) -> tuple[Carry, torch.Tensor]:
        """Return the next carry, and the loss.

        Args:
            index: The number of the step.
            carry: What the step before has left.
            shared: Tensors in the places of :attr:`shared`.
            gradient: How the inner gradient is taken; that of the problem by default.
        """
        gradient = gradient or self.gradient
        given = self.shared if shared is None else shared
        buffers = carry.buffers

        def evaluate(inputs: Inputs) -> tuple[torch.Tensor, Leaves]:
            others = self._others(inputs.shared)
            with _substituting(others):
                if self._watched is not None:
                    self._watched.add([*inputs.leaves, *inputs.buffers])
                with self._watched or contextlib.nullcontext(), _explained():
                    arguments = _replaced((*self.batch(index), *self.arguments), others)
                    return self.target.call(self.loss, inputs.leaves, inputs.buffers, arguments)

        def differentiate(leaves: Leaves) -> tuple[torch.Tensor, Any]:
            nonlocal buffers
            found = gradient(evaluate, Inputs(leaves, buffers, given), self.generators)
            buffers = [_constant(b) for b in found.buffers]
            return found.value, self.target.tree(found.grads)

        def value_and_grad(params: Any) -> tuple[torch.Tensor, Any]:
            return differentiate(self.target.leaves_of(params))

        value, grads = differentiate(carry.leaves)
        extras: dict[str, Any] = {}
        if isinstance(self.optimizer, RuleTransformation):
            extras = {"value": value, "value_and_grad": value_and_grad}
        params = self.target.tree(carry.leaves)
        watched = self._watched if self._has_foreign else None
        with _substituting(self._others(given)), watched or contextlib.nullcontext():
            if watched is not None:
                watched.add([value, *[x for x in optree.tree_leaves(grads) if x is not None]])
            updates, state = self.optimizer.update(
                grads, carry.state, params=params, inplace=False, **extras
            )
            params = apply_updates(params, updates, inplace=False)
        leaves = self.target.leaves_of(params)
        return Carry(leaves, state, buffers), value

    def _others(self, shared: Leaves) -> dict[int, torch.Tensor]:
        """Return, by the ids of tensors as they were given, those in their places."""
        pairs = zip(self.shared, shared, strict=True)
        return {id(old): new for old, new in pairs if old is not new}

    def find_shared(self, carry: Carry, batches: Sequence[Any]) -> None:
        """Find what steps depend on, beside their carry, by taking the first one.

        Args:
            carry: The first carry.
            batches: All batches that are known before.

        Raises:
            ValueError: If something cannot be found, or the loss writes to it.
        """
        everything: Any = (self.arguments, list(batches))
        leaves = optree.tree_leaves(everything)
        self.generators = [x for x in leaves if isinstance(x, torch.Generator)]
        if isinstance(self.optimizer, RuleTransformation):
            leaves.extend(self.optimizer.rule.learned())
        shared = {id(x): x for x in leaves if isinstance(x, torch.Tensor) and is_active(x)}
        for x in leaves:
            if isinstance(x, torch.Tensor) and id(x) not in shared:
                self.unchanged.note(x)
        self.shared = list(shared.values())
        detect = self._probe(carry)
        if detect.active:
            self.shared.extend(detect.active.values())
            self._probe(carry)
        for generator, state in detect.generators.values():
            if all(generator is not known for known in self.generators):
                generator.set_state(state)
                self.generators.append(generator)
        self.unchanged.join(detect.constant)

    def _probe(self, carry: Carry) -> Detect:
        """Take the first step on other tensors, and see which ones it reads nevertheless."""
        tensors, layout = carry.pack()
        surroundings = Surroundings(self.generators)
        with surroundings.restored(tensors):  # takes note
            pass
        with torch.enable_grad():
            fixed = len(tensors) - len(carry.buffers)
            moved = [*[_alias(x) for x in tensors[:fixed]], *tensors[fixed:]]
            shared = [_alias(x) for x in self.shared]
            known = [*moved, *shared, *self.shared]
            detect = Detect(known)
            with surroundings.restored(tensors), self._watching(detect):
                after, value = self.step(0, layout.unpack(moved), shared, gradient=exact)
        self._check_found(detect, [value, *after.pack()[0]], [*moved, *shared])
        return detect

    def watched_step(self, index: int, carry: Carry, shared: Leaves) -> tuple[Carry, torch.Tensor]:
        """Take a step for the first time.

        Raises:
            ValueError: If it depends on something that the first step does not depend on.
        """
        detect = Detect([*carry.pack()[0], *shared, *self.shared], is_lowered=True)
        with self._watching(detect):
            found = self.step(index, carry, shared)
        _check_written(detect)
        known = {id(g) for g in self.generators}
        what = [f"a tensor of shape {tuple(x.shape)}" for x in detect.active.values()]
        what += ["a torch.Generator" for key in detect.generators if key not in known]
        if what:
            raise ValueError(
                f"step {index} reads {what[0]} in the closure of the loss or the optimizer that "
                "step 0 does not, and would be differentiated without it: pass it to `unroll` as "
                "one of `*args`, or use `memory=FullGraph()`"
            )
        return found

    @contextlib.contextmanager
    def _watching(self, detect: Detect) -> Iterator[None]:
        self._watched = detect
        try:
            yield
        finally:
            self._watched = None

    def _check_found(self, detect: Detect, outputs: Leaves, stops: Sequence[torch.Tensor]) -> None:
        _check_written(detect)
        for x in leaves_reached(outputs, [*stops, *detect.active.values()]):
            if not detect.owns(x):
                raise ValueError(
                    f"the loss or the optimizer reads a tensor of shape {tuple(x.shape)} in its "
                    "closure by a torch.autograd.Function, where it cannot be found again: pass "
                    "the tensor to `unroll` as one of `*args`, or use `memory=FullGraph()`"
                )


def _substituting(
    others: dict[int, torch.Tensor],
) -> contextlib.AbstractContextManager[Any]:
    return Substitute(others) if others else contextlib.nullcontext()


def _replaced(arguments: tuple[Any, ...], others: dict[int, torch.Tensor]) -> tuple[Any, ...]:
    """Return arguments as they are given to functions that no mode sees."""
    if not others:
        return arguments
    tree: Any = arguments
    found: Any = optree.tree_map(lambda x: others.get(id(x), x), tree, none_is_leaf=True)
    return found  # type: ignore[no-any-return]


def _has_foreign(optimizer: GradientTransformation) -> bool:
    """Return whether a part of the optimizer, as a schedule, is a function that may read anything.

    Of all other parts it is known what they read.
    """
    pending = [as_rule(optimizer)]
    while pending:
        rule = pending.pop()
        fields = [getattr(rule, name) for name in rule.__dataclass_fields__]
        if isinstance(rule, Foreign) or any(callable(x) for x in fields if not isinstance(x, Rule)):
            return True
        pending.extend(rule.children())
    return False


def _constant(buffer: torch.Tensor) -> torch.Tensor:
    if buffer.requires_grad:
        raise ValueError(
            f"a buffer of shape {tuple(buffer.shape)} of the module requires grad after the loss, "
            "but `unroll` takes buffers as constants: make it a parameter, or detach what is "
            "written to it"
        )
    return buffer.detach()


def _check_written(detect: Detect) -> None:
    written = detect.constant.written()
    if written is not None:
        raise ValueError(
            f"`loss` writes in place to a tensor of shape {tuple(written.shape)} in its closure, "
            "as normalization layers do in training, but the memory policy evaluates the loss "
            "again: give `unroll` the module as `params`, put the module into `eval()`, or use "
            "`memory=FullGraph()`"
        )


def _alias(x: torch.Tensor) -> torch.Tensor:
    """Return another tensor of the same value that requires grad if it can."""
    if not (x.is_floating_point() or x.is_complex()):
        return x
    found = x.view_as(x)
    return found if found.requires_grad or is_transforming() else found.detach().requires_grad_()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Tell what to do where a message of torch does not."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "data-dependent control flow" in message or "Tensor.item()" in message:
            raise RuntimeError(
                f"{message}\nIn `unroll` under vmap: choose between results by `torch.where`, or "
                "loop over the tasks instead of batching them"
            ) from error
        if "in-place" in message or "inplace" in message:
            raise RuntimeError(
                f"{message}\nIn `unroll`: replace in-place operations of the loss or its module, "
                "for example `nn.ReLU(inplace=True)` by `nn.ReLU()`, `x += y` by `x = x + y`"
            ) from error
        raise
