"""What an evaluation takes from its surroundings, so that later ones find the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from torchopt_implicit._compiler import uncompiled
from torchopt_implicit._functorch import unwrap

__all__ = ["Autocast", "Surroundings"]


class Autocast(NamedTuple):
    """The autocast that functions of a user are evaluated with, and solves are not."""

    #: of each kind of device: whether it is on, and to what it casts
    settings: tuple[tuple[str, bool, torch.dtype], ...]

    @classmethod
    def on(cls, device: torch.device) -> Autocast:
        """Return that of here and now, for what computes on a device."""
        return cls._of(dict.fromkeys(("cpu", device.type)))

    @classmethod
    def _of(cls, kinds: Iterable[str]) -> Autocast:
        return cls(
            tuple(
                (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
                for kind in kinds
                if torch.amp.is_autocast_available(kind)
            )
        )

    @property
    def holds(self) -> bool:
        """Whether it is that of here and now."""
        return self == self._of(kind for kind, _, _ in self.settings)

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Have it hold; a weight cast where gradients are off is not kept for where they are on."""
        with contextlib.ExitStack() as stack:
            for kind, enabled, dtype in self.settings:
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            yield

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, evaluated with it."""

        def evaluate(*args: Any) -> Any:
            if self.holds:
                return function(*args)
            with self.restored():
                return function(*args)

        return evaluate


class Surroundings:
    """Autocast, random numbers, modes of modules, and tensors that a function closes over.

    A derivative evaluates the function again, when a backward is due. It has to be the function of
    the forward: in the same precision, with the same dropout, in the same mode, on the same data.

    Args:
        name: What to call the function in messages.
        device: Where it computes.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.autocast = Autocast.on(device)
        self.random: tuple[torch.Tensor, ...] | None = None
        self.watched: list[tuple[torch.Tensor, int]] = []
        self.modules: dict[nn.Module, bool] = {}

    @property
    def modes(self) -> tuple[bool, ...]:
        """Which of the modules that were called are training, in the order of their calls."""
        return tuple(self.modules.values())

    @contextlib.contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Have later evaluations call modules in the modes that they are called in here."""

        def see(module: nn.Module, args: Any) -> None:
            self.modules.setdefault(module, module.training)

        handle = register_module_forward_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()

    def random_state(self) -> tuple[torch.Tensor, ...]:
        """Return the state of the generators that the function may draw from."""
        if self.device.type == "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
        return (torch.get_rng_state(),)

    def replay_if_changed(self, before: tuple[torch.Tensor, ...]) -> None:
        """Have later evaluations draw what the first one did, if it drew; it is undone."""
        after = self.random_state()
        if not all(torch.equal(x, y) for x, y in zip(before, after, strict=True)):
            self.random = before
            self._set_random(before)

    def watch(self, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse evaluations after a change of these."""
        plain = [unwrap(x) for x in tensors]
        self.watched = [(x, x._version) for x in plain if not x.is_inference()]

    def bind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, evaluated in these surroundings."""

        def evaluate(*args: Any) -> Any:
            self.check()
            is_same = all(m.training == mode for m, mode in self.modules.items())
            if is_same and self.random is None and self.autocast.holds:
                with uncompiled():
                    return function(*args)
            with uncompiled(), self._restored():
                return function(*args)

        return evaluate

    def _set_random(self, states: tuple[torch.Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.autocast.restored())
            if self.random is not None:
                stack.callback(self._set_random, self.random_state())
                self._set_random(self.random)
            for module, mode in self.modules.items():
                stack.callback(setattr, module, "training", module.training)
                module.training = mode
            yield

    def check(self) -> None:
        """Raise if what the function has from elsewhere is not what it was."""
        for x, version in self.watched:
            if x._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(x.shape)} that `{self.name}` has from elsewhere was "
                    "changed in place after the solution was found, so that its derivative would "
                    "be another problem's: differentiate before the change, or clone the tensor"
                )
