"""What an unroll may be given: modules, batches, randomness, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import vmap

import torchopt
from torchopt.diff.explicit import (
    Binomial,
    Checkpointed,
    FirstOrder,
    FullGraph,
    Memory,
    MixedMode,
    Offloaded,
    Truncated,
    unroll,
)

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {
    "full": FullGraph(),
    "checkpointed": Checkpointed(2),
    "binomial": Binomial(2),
    "offloaded": Offloaded(Checkpointed(2)),
    "mixed": MixedMode(),
    "mixed, binomial": MixedMode(Binomial(2)),
}
every_policy = pytest.mark.parametrize("memory", EXACT.values(), ids=EXACT.keys())
REPLAYING = {name: policy for name, policy in EXACT.items() if name != "full"}
replaying = pytest.mark.parametrize("memory", REPLAYING.values(), ids=REPLAYING.keys())


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def by_hand(loss: Any, module: nn.Module, steps: int, lr: float) -> nn.Module:
    """Bare descent, by the differentiable class."""
    module = torchopt.module_clone(module, by="clone", detach_buffers=True)
    inner = torchopt.MetaSGD(module, lr=lr)
    for index in range(steps):
        inner.step(loss(module, index))
    return module


class Tied(nn.Module):
    """Two layers with one weight, normalization between them, and dropout."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(drop)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x))))) * self.frozen


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def module_loss(module: nn.Module, *unused: Any) -> torch.Tensor:
    return module(X).square().mean()


@every_policy
def test_modules_with_tied_parameters_and_buffers(memory: Memory) -> None:
    module = Tied()
    before = copy.deepcopy(module.state_dict())
    params = [p for p in module.parameters() if p.requires_grad]
    expected = by_hand(module_loss, module, 5, 0.1)
    adapted = unroll(module_loss, torchopt.sgd(0.1), module, steps=5, memory=memory)
    found = adapted.params
    assert type(found) is Tied
    assert found.last.weight is found.first.weight
    assert found.frozen is module.frozen
    assert_close(list(found.parameters()), list(expected.parameters()))
    assert_close(list(found.buffers()), list(expected.buffers()))
    assert int(found.norm.num_batches_tracked) == 5
    x = torch.randn(4, 3)
    results = [
        torch.autograd.grad(one(x).square().sum(), params)
        for one in (found.eval(), expected.eval())
    ]
    assert_close(*results)
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)


@every_policy
def test_dropout_is_replayed(memory: Memory) -> None:
    module = Tied(drop=0.5)
    params = [p for p in module.parameters() if p.requires_grad]
    results, after = [], []
    for policy in (FullGraph(), memory):
        torch.manual_seed(3)
        adapted = unroll(module_loss, torchopt.sgd(0.1), module, steps=5, memory=policy)
        after.append(torch.rand(2))
        torch.manual_seed(4)
        total = sum(p.sin().sum() for p in adapted.params.parameters())
        results.append(torch.autograd.grad(total, params))  # type: ignore[arg-type]
        assert_close(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(4)))
    assert_close(after[1], after[0])
    assert_close(results[1], results[0])


@every_policy
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_random_numbers_of_tasks_are_replayed(memory: Memory, randomness: str) -> None:
    def loss(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (x * torch.rand(4) - c).square().sum()

    results = []
    for policy in (FullGraph(), memory):
        torch.manual_seed(3)
        c = torch.linspace(0, 1, 3).requires_grad_()
        found = vmap(
            lambda c, policy=policy: (
                unroll(loss, torchopt.adam(0.1), torch.ones(4), c, steps=5, memory=policy).params
            ),
            randomness=randomness,
        )(c)
        results.append(torch.autograd.grad(found.sin().sum(), c))
    assert_close(results[1], results[0])


@replaying
@pytest.mark.parametrize("is_closed_over", [True, False])
def test_generators_are_replayed(memory: Memory, is_closed_over: bool) -> None:
    results = []
    for policy in (FullGraph(), memory):
        generator = torch.Generator().manual_seed(5)

        def loss(
            x: torch.Tensor, c: torch.Tensor, *given: Any, own: Any = generator
        ) -> torch.Tensor:
            noise = torch.rand(4, generator=given[0] if given else own)
            return (x * noise - c).square().sum()

        c = torch.tensor(0.5, requires_grad=True)
        args = (c,) if is_closed_over else (c, generator)
        adapted = unroll(loss, torchopt.sgd(0.1), torch.ones(4), *args, steps=5, memory=policy)
        results.append(torch.autograd.grad(adapted.params.sin().sum(), c))
        results.append(torch.rand(2, generator=generator))
    assert_close(results[2:], results[:2])


@every_policy
def test_recurrent_layers_see_the_parameters_they_are_given(memory: Memory) -> None:
    module = nn.LSTM(3, 2, batch_first=True)

    def loss(module: nn.Module) -> torch.Tensor:
        return module(X[None])[0].square().mean()

    adapted = unroll(loss, torchopt.sgd(0.5), module, steps=3, memory=memory, losses=True)
    assert adapted.losses is not None
    assert adapted.losses[-1] < adapted.losses[0]
    assert_close(loss(adapted.params), loss(by_hand(lambda m, i: loss(m), module, 3, 0.5)))


@every_policy
def test_a_module_in_the_closure_gets_its_gradient(memory: Memory) -> None:
    hyper = nn.Linear(2, 2)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return hyper(w.sin()).square().sum()

    results = []
    for policy in (FullGraph(), memory):
        adapted = unroll(loss, torchopt.adam(0.1), torch.ones(2), steps=4, memory=policy)
        results.append(torch.autograd.grad(adapted.params.sum(), list(hyper.parameters())))
    assert all(g.abs().sum() > 0 for g in results[0])
    assert_close(results[1], results[0])


@every_policy
def test_initial_parameters_in_the_closure_are_constants_of_the_loss(memory: Memory) -> None:
    """As in a proximal term, whose derivative in them is another one than in the parameters."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    # w' = w - 0.1 (2 (w - 3) + (w - w0)), linear in w and w0
    adapted = unroll(
        lambda x: (x - 3).square().sum() + (x - w).square().sum() / 2,
        torchopt.sgd(0.1),
        w,
        steps=6,
        memory=memory,
    )
    factor = 1.0
    for _ in range(6):
        factor = 0.7 * factor + 0.1
    (found,) = torch.autograd.grad(adapted.params.sum(), w)
    assert_close(found, torch.full((2,), factor))


@every_policy
def test_other_leaves_stay(memory: Memory) -> None:
    w = torch.tensor(2.0, requires_grad=True)
    params = {"w": w, "none": None, "name": "net", "size": torch.tensor(3), "empty": torch.ones(0)}

    def loss(p: Any) -> torch.Tensor:
        assert p["name"] == "net"
        return (p["w"] * p["size"]).square() + p["empty"].sum()

    adapted = unroll(loss, torchopt.adam(0.1), params, steps=3, memory=memory)
    assert adapted.params["none"] is None
    assert adapted.params["name"] == "net"
    assert adapted.params["size"] is params["size"]
    assert adapted.params["empty"].shape == (0,)
    assert torch.autograd.grad(adapted.params["w"], w)[0] != 0


@every_policy
def test_unused_parameters_have_no_update(memory: Memory) -> None:
    """Weight decay shows whether a gradient is None or zero."""
    params = {"w": torch.tensor(2.0), "unused": torch.tensor(2.0)}
    optimizer = torchopt.adamw(0.1, weight_decay=0.5)

    def final(w: torch.Tensor) -> torch.Tensor:
        start = {**params, "w": w}
        adapted = unroll(lambda p: p["w"] ** 2, optimizer, start, steps=3, memory=memory)
        return adapted.params["unused"]

    assert final(params["w"]) == 2
    assert torch.equal(vmap(final)(torch.ones(2)), torch.full((2,), 2.0))


@every_policy
@pytest.mark.parametrize("kind", ["sequence", "function", "learned"])
def test_batches(memory: Memory, kind: str) -> None:
    data = [torch.tensor(float(i), requires_grad=kind == "learned") for i in range(5)]
    c = torch.tensor(2.0, requires_grad=True)
    batches: Any = (lambda i: data[i]) if kind == "function" else data

    def loss(x: torch.Tensor, batch: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (x - batch * c).square() / 2

    adapted = unroll(
        loss, torchopt.sgd(0.5), torch.tensor(0.0), c, batches=batches, steps=4, memory=memory
    )
    wanted = [c, *data[:4]] if kind == "learned" else [c]
    found = torch.autograd.grad(adapted.params, wanted)
    expected = [sum(0.5 ** (4 - i) * i for i in range(4)), *[2 * 0.5 ** (4 - i) for i in range(4)]]
    assert_close(torch.stack(found), torch.tensor(expected[: len(wanted)]))


@pytest.mark.parametrize("memory", [FullGraph(), Truncated(2), FirstOrder()])
def test_iterators_where_nothing_is_read_again(memory: Memory) -> None:
    def stream() -> Iterator[torch.Tensor]:
        yield from (torch.tensor(float(i)) for i in range(9))

    def loss(x: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return (x - batch).square()

    w = torch.tensor(0.0, requires_grad=True)
    adapted = unroll(loss, torchopt.sgd(0.25), w, batches=stream(), steps=4, memory=memory)
    assert_close(adapted.params.detach(), torch.tensor(sum(0.5 ** (4 - i) * i for i in range(4))))
    with pytest.raises(ValueError, match="ended after 9 batches"):
        unroll(loss, torchopt.sgd(0.25), w, batches=stream(), steps=10)


def test_truncated_and_first_order_are_their_formulas() -> None:
    w, c = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0))

    def loss(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (x - c).square() * x

    def run(memory: Memory) -> torch.Tensor:
        found: torch.Tensor = unroll(loss, torchopt.sgd(0.05), w, c, steps=5, memory=memory).params
        return found

    middle = unroll(loss, torchopt.sgd(0.05), w, c, steps=3).params.detach()
    last = unroll(loss, torchopt.sgd(0.05), middle, c, steps=2).params
    truncated = run(Truncated(2))
    assert_close(truncated, run(FullGraph()))
    assert_close(torch.autograd.grad(truncated, c), torch.autograd.grad(last, c))
    assert torch.autograd.grad(run(Truncated(2)), w, allow_unused=True)[0] is None
    exact = torch.autograd.grad(run(FullGraph()), (w, c))
    assert_close(torch.autograd.grad(run(Truncated(5)), (w, c)), exact)
    first, none = torch.autograd.grad(run(FirstOrder()), (w, c), allow_unused=True)
    assert first == 1
    assert none is None
    under = torch.func.grad(
        lambda w: (
            unroll(loss, torchopt.sgd(0.05), w, c.detach(), steps=5, memory=FirstOrder()).params
        )
    )(w.detach())
    assert under == 1


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex128])
def test_dtypes(memory: Memory, dtype: torch.dtype) -> None:
    w = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    c = torch.tensor([0.5, 1.5], dtype=dtype, requires_grad=True)

    def loss(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (x * c - 1).abs().square().sum()

    results = []
    for policy in (FullGraph(), memory):
        adapted = unroll(loss, torchopt.sgd(0.1), w, c, steps=4, memory=policy)
        assert adapted.params.dtype == dtype
        results.append(torch.autograd.grad(adapted.params.abs().sum(), [w, c]))
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


@replaying
def test_autocast_is_as_in_the_forward_pass(memory: Memory) -> None:
    module = nn.Linear(3, 3).float()
    results = []
    for policy in (FullGraph(), memory):
        with torch.autocast("cpu", torch.bfloat16):
            adapted = unroll(
                lambda m: m(X.float()).float().square().mean(),
                torchopt.sgd(0.1),
                module,
                steps=3,
                memory=policy,
            )
        results.append(torch.autograd.grad(adapted.params.weight.sum(), module.weight)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("memory", [Checkpointed(2), Binomial(2)])
def test_data_written_to_in_between_are_noticed(memory: Memory) -> None:
    x = X.clone()
    w = torch.ones(3, requires_grad=True)
    adapted = unroll(
        lambda w: (x @ w).square().mean(), torchopt.sgd(0.1), w, steps=4, memory=memory
    )
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"written to in place .* copy of it"):
        adapted.params.sum().backward()


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, c)
        return 2 * x * c

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        x, c = ctx.saved_tensors
        return 2 * g * c, 2 * g * x


@pytest.mark.parametrize("is_leaf", [True, False])
def test_what_cannot_be_found_in_the_closure_is_refused(is_leaf: bool) -> None:
    c = torch.tensor(2.0, requires_grad=True)
    hidden = c if is_leaf else c * 2

    def loss(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return Doubled.apply(x, given[0] if given else hidden).square()  # type: ignore[no-any-return, no-untyped-call]

    w = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(ValueError, match=r"autograd\.Function.*one of `\*args`"):
        unroll(loss, torchopt.sgd(0.01), w, steps=4, memory=Checkpointed())
    results = []
    for policy in (FullGraph(), Checkpointed()):
        given = c if is_leaf else c * 2
        adapted = unroll(loss, torchopt.sgd(0.01), w, given, steps=4, memory=policy)
        results.append(torch.autograd.grad(adapted.params, [w, c]))
    assert_close(results[1], results[0])


def test_what_only_later_steps_read_is_refused() -> None:
    c = torch.tensor(2.0, requires_grad=True)

    def loss(x: torch.Tensor, batch: int) -> torch.Tensor:
        return x.square() if batch < 2 else (x * c).square()

    w = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"step 2 reads a tensor of shape \(\)"):
        unroll(loss, torchopt.sgd(0.01), w, batches=range(4), memory=Checkpointed())
    assert unroll(loss, torchopt.sgd(0.01), w, batches=range(4)).params.requires_grad


def test_a_leaf_made_in_the_loss_is_no_captured_one() -> None:
    """As in a gradient penalty."""

    def loss(w: torch.Tensor) -> torch.Tensor:
        x = torch.ones(3).requires_grad_()
        (g,) = torch.autograd.grad((x * w).sin().sum(), x, create_graph=True)
        return g.square().sum()

    w = torch.ones(3, requires_grad=True)
    results = [
        torch.autograd.grad(unroll(loss, torchopt.sgd(0.1), w, steps=4, memory=m).params.sum(), w)
        for m in (FullGraph(), Checkpointed())
    ]
    assert_close(results[1], results[0])


def test_bad_input() -> None:
    w, sgd = torch.ones(2), torchopt.sgd(0.1)
    norm = nn.BatchNorm1d(3)

    def loss(w: torch.Tensor, *args: Any) -> torch.Tensor:
        return w.square().sum()

    bad: list[tuple[type[Exception], str, Any]] = [
        (
            ValueError,
            "does not depend on any of `params`",
            lambda: unroll(lambda w: torch.ones(2, requires_grad=True).sum(), sgd, w, steps=2),
        ),
        (
            ValueError,
            "does not require grad",
            lambda: unroll(lambda w: w.detach().sum(), sgd, w, steps=2),
        ),
        (ValueError, "must be a scalar", lambda: unroll(lambda w: w * 2, sgd, w, steps=2)),
        (ValueError, "must be at least 1, got 0", lambda: Binomial(0)),
        (ValueError, "must be at least 1, got 0", lambda: Checkpointed(0)),
        (ValueError, "must be at least 1", lambda: Truncated(-1)),
        (TypeError, "one of the policies Checkpointed, Binomial", lambda: Offloaded(FullGraph())),
        (
            TypeError,
            "the class Binomial: call it",
            lambda: unroll(loss, sgd, w, steps=2, memory=Binomial),
        ),  # type: ignore[arg-type]
        (
            ValueError,
            "`batches` has 2 entries, but `steps` is 3",
            lambda: unroll(loss, sgd, w, batches=[1, 2], steps=3),
        ),
        (
            ValueError,
            "pass a sequence, or a function",
            lambda: unroll(loss, sgd, w, batches=iter([1, 2]), steps=2, memory=Checkpointed()),
        ),
        (ValueError, "so `steps` must say", lambda: unroll(loss, sgd, w, batches=iter([1, 2]))),
        (ValueError, "so `steps` must say", lambda: unroll(loss, sgd, w, batches=lambda i: i)),
        (ValueError, "`steps` or `batches`", lambda: unroll(loss, sgd, w)),
        (TypeError, "`steps` must be an integer", lambda: unroll(loss, sgd, w, steps=2.0)),  # type: ignore[arg-type]
        (
            ValueError,
            "nothing to optimize: no leaf",
            lambda: unroll(loss, sgd, {"w": None}, steps=2),
        ),
        (
            ValueError,
            "nothing to optimize: the module",
            lambda: unroll(loss, sgd, nn.ReLU(), steps=2),
        ),
        (TypeError, "pass its functional form", lambda: unroll(loss, torchopt.Adam, w, steps=2)),  # type: ignore[arg-type]
        (TypeError, "`loss` must be callable", lambda: unroll(w, sgd, w, steps=2)),  # type: ignore[arg-type]
        (
            ValueError,
            r"writes in place .* give `unroll` the module",
            lambda: unroll(
                lambda w: norm(X * w[0]).square().mean() * w.sum(),
                sgd,
                w,
                steps=2,
                memory=Checkpointed(),
            ),
        ),
        (
            RuntimeError,
            "by `torch.where`",
            lambda: vmap(
                lambda c: (
                    unroll(lambda w, c: w.sum() if c > 0 else -w.sum(), sgd, w, c, steps=2).params
                )
            )(torch.ones(2)),
        ),
    ]
    for kind, message, call in bad:
        with pytest.raises(kind, match=message):
            call()


def test_no_steps() -> None:
    w = torch.ones(2, requires_grad=True)
    for memory in (FullGraph(), Checkpointed(), Binomial(2), Truncated(2)):
        adapted = unroll(
            lambda w: w.sum(), torchopt.sgd(0.1), w, steps=0, memory=memory, losses=True
        )
        assert adapted.params is w
        assert adapted.losses is not None
        assert adapted.losses.shape == (0,)


@every_policy
def test_a_state_continues(memory: Memory) -> None:
    w = torch.ones(2, requires_grad=True)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return w.sin().sum()

    adam = torchopt.adam(0.1)
    once = unroll(loss, adam, w, steps=5, memory=memory)
    half = unroll(loss, adam, w, steps=2, memory=memory)
    twice = unroll(loss, adam, half.params, steps=3, state=half.state, memory=memory)
    assert_close(twice.params, once.params)
    grads = [torch.autograd.grad(x.params.square().sum(), w) for x in (once, twice)]
    assert_close(*grads)


def test_nothing_is_recorded_where_nothing_requires_grad() -> None:
    adapted = unroll(
        lambda w: w.square().sum(), torchopt.adam(0.1), torch.ones(2), steps=3, losses=True
    )
    assert not adapted.params.requires_grad
    assert adapted.losses is not None
    assert not adapted.losses.requires_grad
