"""Bytes kept alive for the backward pass: equal to what `saved_tensors_hooks` counts."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchopt
from torchopt_viz import gradient_graph, record


class Packed:
    """A tensor that is kept by a node, as long as that keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Measured:
    """The storages that are alive because nodes keep them."""

    def __init__(self) -> None:
        self._packed: weakref.WeakSet[Packed] = weakref.WeakSet()

    @contextmanager
    def watching(self) -> Iterator[None]:
        def pack(tensor: Tensor) -> Packed:
            packed = Packed(tensor)
            self._packed.add(packed)
            return packed

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
            yield

    def total(self) -> int:
        storages = [packed.tensor.untyped_storage() for packed in self._packed]
        return sum({x.data_ptr(): x.nbytes() for x in storages}.values())


def conv4(channels: int) -> nn.Module:
    """The network of four convolutions that few-shot learning is measured with."""
    blocks = [
        nn.Sequential(
            nn.Conv2d(1 if i == 0 else channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for i in range(4)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(channels, 5))


def maml(optimizer: Callable[..., Any], **options: Any) -> Callable[[], Tensor]:
    net = conv4(4)
    x, y = torch.randn(5, 1, 28, 28), torch.arange(5)
    initial = torchopt.extract_state_dict(net)

    def run() -> Tensor:
        inner = optimizer(net, lr=0.1, **options)
        for _ in range(3):
            inner.step(F.cross_entropy(net(x), y))
        loss = F.cross_entropy(net(x), y)
        torchopt.recover_state_dict(net, initial)
        return loss

    return run


class Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        out = x**y
        ctx.save_for_backward(x, y, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, out = ctx.saved_tensors
        return grad * y * out / x, grad * out * x.log()


def of_leaf(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Any:
    w = torch.rand(7, 7, dtype=dtype, requires_grad=True)
    return lambda: function(w)


def checkpoint_free_net() -> Tensor:
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return net(torch.randn(2, 3, 8)).sum()


PROGRAMS: dict[str, Callable[[], Tensor]] = {
    "MAML with SGD": maml(torchopt.MetaSGD, use_accelerated_op=False),
    "MAML with momentum": maml(torchopt.MetaSGD, momentum=0.9, use_accelerated_op=False),
    "MAML with Adam": maml(torchopt.MetaAdam, use_accelerated_op=False),
    "MAML with RMSProp": maml(torchopt.MetaRMSprop, use_accelerated_op=False),
    "transformer": checkpoint_free_net,
    "custom function": of_leaf(lambda w: Power.apply(w.exp(), w.sin()).sum()),
    "shared storage": of_leaf(lambda w: (lambda y: (y * y.t() * y[:, :1]).exp().sum())(w.exp())),
    "expanded": of_leaf(lambda w: (w[:, :1].exp().expand(7, 100) * w.sum()).square().sum()),
    "complex": of_leaf(lambda w: (w * w.exp()).abs().sum(), torch.complex64),
    "double": of_leaf(lambda w: torch.linalg.svd(w)[1].sum(), torch.float64),
    "list of tensors": of_leaf(lambda w: w[torch.tensor([0, 1]), torch.tensor([1, 2])].exp().sum()),
    "loop of an LSTM": of_leaf(lambda w: nn.LSTM(7, 3)(w)[0].sum()),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_totals_are_what_saved_tensors_hooks_count(program: Callable[[], Tensor]) -> None:
    torch.manual_seed(0)
    with record() as recording:
        recorded = program()
    graph = gradient_graph(recorded, recording=recording)
    torch.manual_seed(0)
    measured = Measured()
    with measured.watching():
        out = program()
    assert out.requires_grad
    memory = graph.memory()
    assert memory.total == measured.total() > 0
    assert memory.total == sum(memory.own)
    assert graph.unseen == ()


def test_the_fused_step_is_counted_too() -> None:
    pytest.importorskip("torchopt_accel")
    program = maml(torchopt.MetaAdam, use_accelerated_op=True)
    graph = gradient_graph(program())
    measured = Measured()
    with measured.watching():
        out = program()
    assert out.requires_grad
    assert graph.memory().total == measured.total()
    steps = [node for node in graph.nodes if node.kind == "step"]
    assert [node.label for node in steps] == ["adam step"] * 3
    assert all(sum(saved.nbytes for saved in node.saved) > 0 for node in steps)


def test_groups_add_up_to_the_total() -> None:
    net = conv4(4)
    with record(net) as recording:
        loss = F.cross_entropy(net(torch.randn(5, 1, 28, 28)), torch.arange(5))
    graph = gradient_graph(loss, recording=recording)
    memory = graph.memory()
    for group in graph.groups:
        children = [g.key for g in graph.groups if g.parent == group.key]
        inner = sum(memory.inclusive[key] for key in children)
        assert memory.inclusive[group.key] == memory.own[group.key] + inner
    assert memory.inclusive[0] == memory.total
    by_label = {g.label: memory.inclusive[g.key] for g in graph.groups}
    # the input of the second convolution is what the first block's pooling gives
    assert by_label["1.0 (Conv2d)"] == 4 * (5 * 4 * 14 * 14 + 4 * 4 * 3 * 3)


def test_a_storage_counts_where_it_is_saved_first() -> None:
    w = torch.ones(8, requires_grad=True)
    y = w.exp()
    graph = gradient_graph((y * y).sum())
    saved = [(s.nbytes, s.storage) for node in graph.nodes for s in node.saved]
    assert saved == [(32, 0), (0, 0), (0, 0)]


def test_leaves_are_told_apart() -> None:
    w = torch.ones(8, requires_grad=True)
    x = torch.ones(8)
    graph = gradient_graph((w * x).square().sum() + (w * w).sum())
    memory = graph.memory()
    assert (memory.total, memory.leaves) == (3 * 32, 32)


def test_what_a_backward_pass_has_freed_does_not_count() -> None:
    w = torch.ones(8, requires_grad=True)
    out = Power.apply(w, w).exp().sum()
    before = gradient_graph(out).memory().total
    out.backward()
    assert before > 0
    assert gradient_graph(out).memory().total == 0


def test_functions_that_hide_their_tensors_are_named_unless_recorded() -> None:
    def program() -> Tensor:
        return torch._foreach_mul([torch.ones(8, requires_grad=True)], torch.ones(()))[0].sum()

    graph = gradient_graph(program())
    assert [graph.nodes[key].label for key in graph.unseen] == ["ForeachMulBackward0Tensor"]
    with record() as recording:
        out = program()
    graph = gradient_graph(out, recording=recording)
    assert graph.unseen == ()
    assert graph.memory().total == 32 + 4


def test_a_recording_does_not_keep_freed_tensors() -> None:
    with record() as recording:
        ys = torch._foreach_sqrt([torch.ones(8, requires_grad=True).exp()])
    assert gradient_graph(ys, recording=recording).memory().total == 2 * 32
    ys[0].sum().backward()
    assert gradient_graph(ys, recording=recording).memory().total == 0


def sparse(layout: torch.layout) -> Tensor:
    """Return the unit matrix of seven rows."""
    values = torch.ones(7)
    if layout == torch.sparse_coo:
        return torch.sparse_coo_tensor(torch.arange(7).repeat(2, 1), values, check_invariants=True)
    return torch.sparse_compressed_tensor(
        torch.arange(8), torch.arange(7), values, layout=layout, check_invariants=True
    )


@pytest.mark.parametrize(
    ("layout", "nbytes"),
    [
        (torch.sparse_coo, 2 * 7 * 8 + 7 * 4),  # two indices and a value for each element
        (torch.sparse_csr, 8 * 8 + 7 * 8 + 7 * 4),
        (torch.sparse_csc, 8 * 8 + 7 * 8 + 7 * 4),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta:UserWarning")
def test_sparse_tensors_count_with_their_indices(layout: torch.layout, nbytes: int) -> None:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(sparse(layout))
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    out = Scaled.apply(torch.ones(1, requires_grad=True))  # type: ignore[no-untyped-call]
    assert gradient_graph(out).memory().total == nbytes


def test_ragged_tensors_count_with_their_offsets() -> None:
    rows = [torch.ones(2), torch.ones(3)]
    x = torch.nested.nested_tensor(rows, requires_grad=True, layout=torch.jagged)
    graph = gradient_graph((x * x).values().sum())
    saved = [saved for node in graph.nodes for saved in node.saved]
    assert {x.shape for x in saved} == {(2, -1)}
    assert graph.memory().total == (5 * 4 + 3 * 8) + 5 * 4  # the leaf, and the product's values


def test_packed_tensors_are_not_unpacked() -> None:
    unpacked = []

    def unpack(tensor: Tensor) -> Tensor:
        unpacked.append(tensor)
        return tensor.to(torch.float32)

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.to(torch.float16), unpack):
        out = torch.ones(8, requires_grad=True).exp().sum()
    assert gradient_graph(out).memory().total == 16
    assert not unpacked
