"""Modules with meta-parameters, and running a module with other tensors in its place."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt.nn import MetaGradientModule, reparameterize, reparametrize, swap_state


class Inner(MetaGradientModule):
    """Takes a meta-parameter and a meta-module; its own are a parameter, a child and a buffer."""

    def __init__(self, strength: torch.Tensor, prior: nn.Module) -> None:
        super().__init__()
        self.strength = strength
        self.prior = prior
        self.own = nn.Parameter(torch.ones(2))
        self.child = nn.Linear(2, 2)
        self.register_buffer("mask", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child(x) * self.own * self.mask + self.strength * self.prior(x)


def learned(*shape: int) -> torch.Tensor:
    return torch.ones(shape, requires_grad=True)


def inner() -> Inner:
    return Inner(learned(), nn.Linear(2, 2))


def names(pairs: Any) -> list[str]:
    return [name for name, _ in pairs]


KINDS = {
    "own parameter": lambda m: m._parameters,
    "own module": lambda m: m._modules,
    "buffer": lambda m: m._buffers,
    "meta-parameter": lambda m: m._meta_parameters,
    "meta-module": lambda m: m._meta_modules,
    "attribute": vars,
}


def kinds(module: nn.Module, name: str) -> list[str]:
    return [kind for kind, members in KINDS.items() if name in members(module)]


def test_the_meta_part_is_apart_from_the_own_part() -> None:
    m = inner()
    assert names(m.named_parameters()) == ["own", "child.weight", "child.bias"]
    assert names(m.named_modules()) == ["", "child"]
    assert names(m.named_children()) == ["child"]
    assert list(m.state_dict()) == ["own", "mask", "child.weight", "child.bias"]
    assert names(m.named_meta_parameters()) == ["strength", "prior.weight", "prior.bias"]
    assert names(m.named_meta_parameters(recurse=False)) == ["strength"]
    assert names(m.named_meta_parameters(prefix="m")) == [
        "m.strength",
        "m.prior.weight",
        "m.prior.bias",
    ]
    assert names(m.named_meta_modules()) == names(m.named_meta_children()) == ["prior"]
    assert names(m.named_meta_modules(prefix="m")) == ["m.prior"]
    for pairs, members in (
        (m.named_meta_parameters(), m.meta_parameters()),
        (m.named_meta_modules(), m.meta_modules()),
        (m.named_meta_children(), m.meta_children()),
    ):
        assert [id(x) for _, x in pairs] == [id(x) for x in members]


def test_meta_modules_come_with_all_they_contain() -> None:
    prior = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    m = Inner(learned(), prior)
    assert names(m.named_meta_modules()) == ["prior", "prior.0", "prior.1", "prior.2"]
    assert names(m.named_meta_children()) == ["prior"]
    assert len(list(m.meta_parameters())) == 5


def test_each_is_yielded_once() -> None:
    m = inner()
    m.same_strength, m.same_prior = m.strength, m.prior
    assert names(m.named_meta_parameters()) == ["strength", "prior.weight", "prior.bias"]
    assert names(m.named_meta_modules()) == names(m.named_meta_children()) == ["prior"]
    assert names(m.named_meta_modules(remove_duplicate=False)) == ["prior", "same_prior"]


def test_the_meta_part_of_own_submodules_counts() -> None:
    outer = nn.Sequential(inner())
    m = Inner(learned(), nn.Linear(1, 1))
    m.nested = outer
    assert "nested.0.own" in names(m.named_parameters())
    assert names(m.named_meta_modules()) == ["prior", "nested.0.prior"]
    assert set(names(m.named_meta_parameters())) == {
        *("strength", "prior.weight", "prior.bias"),
        *("nested.0.strength", "nested.0.prior.weight", "nested.0.prior.bias"),
    }


# what a constructor assigns, and what becomes of it
ARGUMENTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a tensor that requires grad": (lambda a: a["tensors"][0], "meta-parameter"),
    "a function of tensors": (lambda a: a["non-leaf"], "meta-parameter"),
    "a tensor that does not require grad": (lambda a: a["tensors"][1], "attribute"),
    "a module": (lambda a: a["module"], "meta-module"),
    "a submodule of one": (lambda a: a["module"][0], "meta-module"),
    "a parameter of one": (lambda a: a["module"][0].weight, "meta-parameter"),
    "a frozen parameter of one": (lambda a: a["module"][0].bias, "meta-parameter"),
    "a number": (lambda a: a["number"], "attribute"),
    "a new parameter": (lambda a: nn.Parameter(torch.ones(2)), "own parameter"),
    "a new frozen parameter": (
        lambda a: nn.Parameter(torch.ones(2), requires_grad=False),
        "own parameter",
    ),
    "a new tensor that requires grad": (lambda a: learned(2), "own parameter"),
    "a function of a meta-parameter": (lambda a: a["tensors"][0] * 2, "own parameter"),
    "a new tensor": (lambda a: torch.ones(2), "attribute"),
    "a new module": (lambda a: nn.Linear(2, 2), "own module"),
    "a new module around a meta-module": (lambda a: nn.ModuleList([a["module"]]), "own module"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
def test_what_came_in_through_the_constructor_is_meta(case: str, keyword: bool) -> None:
    choose, kind = ARGUMENTS[case]

    class Taker(MetaGradientModule):
        def __init__(self, tree: Any) -> None:
            super().__init__()
            self.member = choose(tree)

    tree = {
        "tensors": [learned(2), torch.ones(2)],
        "non-leaf": learned(2) * 2,
        "module": nn.Sequential(nn.Linear(2, 2)),
        "number": 3,
    }
    tree["module"][0].bias.requires_grad_(False)
    m = Taker(tree=tree) if keyword else Taker(tree)
    assert kinds(m, "member") == [kind]
    assert m.member is not None


METAS = {"strength": "meta-parameter", "prior": "meta-module"}
OWNS = {"own": "own parameter", "child": "own module", "mask": "buffer", "new": "attribute"}
MEMBERS = METAS | OWNS


# (member, value) -> the kind that the member becomes, or the error
ASSIGNMENTS: dict[tuple[str, str], str] = {
    **{(member, "meta tensor"): "meta-parameter" for member in MEMBERS},
    **{(member, "parameter"): "own parameter" for member in MEMBERS},
    **{(member, "function"): "own parameter" for member in MEMBERS},
    **{(member, "module"): "own module" for member in MEMBERS},
    **{(member, "meta module"): "meta-module" for member in MEMBERS},
    **{(member, "None"): kind for member, kind in MEMBERS.items()},
    ("mask", "function"): "buffer",
    ("mask", "tensor"): "buffer",
    ("new", "tensor"): "attribute",
    ("own", "tensor"): "own parameter",
    ("new", "text"): "attribute",
    ("strength", "tensor"): "as meta-parameter 'strength' (torch.Tensor that requires grad or None",
    ("prior", "tensor"): "as meta-module 'prior' (torch.nn.Module or None expected)",
    ("child", "tensor"): "as child module 'child' (torch.nn.Module or None expected)",
    ("strength", "text"): "cannot assign 'str' as meta-parameter 'strength'",
    ("prior", "text"): "cannot assign 'str' as meta-module 'prior'",
    ("own", "text"): "cannot assign 'str' as parameter 'own' (torch.Tensor or None expected)",
    ("child", "text"): "cannot assign 'str' as child module 'child'",
    ("mask", "text"): "cannot assign 'str' as buffer 'mask'",
    ("strength", "module"): "as meta-parameter 'strength'",
    ("strength", "meta module"): "as meta-parameter 'strength'",
    ("own", "module"): "as parameter 'own' (torch.Tensor or None expected)",
    ("own", "meta module"): "as parameter 'own' (torch.Tensor or None expected)",
}


@pytest.mark.parametrize(("member", "value"), ASSIGNMENTS, ids=" = ".join)
def test_what_is_assigned_decides_the_kind(member: str, value: str) -> None:
    m = inner()
    values = {
        "meta tensor": m.strength,
        "meta module": m.prior,
        "parameter": nn.Parameter(torch.zeros(2)),
        "function": m.strength * 2,
        "tensor": torch.zeros(2),
        "module": nn.Linear(1, 1),
        "text": "text",
        "None": None,
    }
    expected = ASSIGNMENTS[member, value]
    if expected in KINDS:
        setattr(m, member, values[value])
        assert kinds(m, member) == [expected]
        assert getattr(m, member) is values[value]
        return
    before = getattr(m, member)
    with pytest.raises(TypeError) as caught:
        setattr(m, member, values[value])
    assert expected in str(caught.value)
    assert getattr(m, member) is before


@pytest.mark.parametrize("member", ["strength", "prior", "own", "child", "mask"])
def test_members_can_be_seen_and_deleted(member: str) -> None:
    m = inner()
    assert member in dir(m)
    delattr(m, member)
    assert member not in dir(m)
    assert not hasattr(m, member)
    with pytest.raises(AttributeError, match=f"'Inner' object has no attribute '{member}'"):
        getattr(m, member)
    with pytest.raises(AttributeError):
        delattr(m, member)


def test_repr_shows_the_meta_modules() -> None:
    prior = nn.Sequential(nn.Linear(2, 1))
    assert repr(Inner(learned(), prior)).splitlines() == [
        "Inner(",
        "  (prior) [meta]: Sequential(",
        "    (0): Linear(in_features=2, out_features=1, bias=True)",
        "  )",
        "  (child): Linear(in_features=2, out_features=2, bias=True)",
        ")",
    ]


def test_players_can_be_each_others_meta_modules() -> None:
    one, two = MetaGradientModule(), MetaGradientModule()
    one.own, two.own = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    one.register_meta_module("opponent", two)
    two.register_meta_module("opponent", one)
    assert names(one.named_parameters()) == ["own"]
    assert names(one.named_meta_parameters()) == ["opponent.own"]
    players = "MetaGradientModule((opponent) [meta]: MetaGradientModule("
    assert repr(one) == f"{players}(opponent) [meta]: MetaGradientModule(...)))"


def test_registering_takes_any_tensor() -> None:
    m = inner()
    m.register_parameter("function", m.strength * 2)
    m.register_parameter("constant", torch.ones(1))
    m.register_parameter("absent", None)
    m.register_meta_parameter("meta_function", m.strength * 2)
    m.register_meta_parameter("meta_absent", None)
    assert {"function", "constant"} <= set(names(m.named_parameters()))
    assert "meta_function" in names(m.named_meta_parameters())
    assert m.absent is None
    assert m.meta_absent is None


def test_registering_modules() -> None:
    m = inner()
    m.add_module("a", nn.Linear(1, 1))
    m.register_module("b", nn.Linear(1, 1))
    m.add_meta_module("c", nn.Linear(1, 1))
    m.register_meta_module("d", nn.Linear(1, 1))
    assert names(m.named_children()) == ["child", "a", "b"]
    assert names(m.named_meta_children()) == ["prior", "c", "d"]


def test_what_is_registered_as_meta_stays_meta() -> None:
    m = inner()
    extra, module = learned(1), nn.Linear(1, 1)
    m.register_meta_parameter("extra", extra)
    m.register_meta_module("module", module)
    m.a, m.b, m.c = extra, module, module.weight
    assert [kinds(m, name)[0] for name in "abc"] == [
        "meta-parameter",
        "meta-module",
        "meta-parameter",
    ]


REGISTRATION_ERRORS: dict[str, tuple[Callable[[Inner], Any], type[Exception], str]] = {
    "a meta-parameter as parameter": (
        lambda m: m.register_parameter("new", m.strength),
        ValueError,
        "to parameter 'new'. Use self.register_meta_parameter() instead.",
    ),
    "a meta-module as module": (
        lambda m: m.add_module("new", m.prior),
        ValueError,
        "to module 'new'. Use self.add_meta_module() instead.",
    ),
    "a meta-parameter without grad": (
        lambda m: m.register_meta_parameter("new", torch.ones(1)),
        ValueError,
        "cannot assign Tensor that `requires_grad=False` to meta-parameter 'new'",
    ),
    "text as parameter": (
        lambda m: m.register_parameter("new", "x"),
        TypeError,
        "cannot assign 'str' object to parameter 'new' (torch.Tensor or None required)",
    ),
    "text as meta-parameter": (
        lambda m: m.register_meta_parameter("new", "x"),
        TypeError,
        "cannot assign 'str' object to meta-parameter 'new' (torch.Tensor or None required)",
    ),
    "text as meta-module": (
        lambda m: m.register_meta_module("new", "x"),
        TypeError,
        "str is not a Module subclass",
    ),
    "a taken name, parameter": (
        lambda m: m.register_parameter("strength", None),
        KeyError,
        "attribute 'strength' already exists",
    ),
    "a taken name, meta-parameter": (
        lambda m: m.register_meta_parameter("own", None),
        KeyError,
        "attribute 'own' already exists",
    ),
    "a taken name, meta-module": (
        lambda m: m.register_meta_module("child", None),
        KeyError,
        "attribute 'child' already exists",
    ),
    "a name with a dot": (
        lambda m: m.register_meta_parameter("a.b", None),
        KeyError,
        "meta-parameter name can't contain",
    ),
    "an empty name": (
        lambda m: m.register_meta_module("", None),
        KeyError,
        "meta-module name can't be empty",
    ),
    "a name that is no string": (
        lambda m: m.register_meta_parameter(3, None),
        TypeError,
        "meta-parameter name should be a string. Got int",
    ),
}


@pytest.mark.parametrize("case", REGISTRATION_ERRORS)
def test_registration_errors_read_like_those_of_torch(case: str) -> None:
    call, error, message = REGISTRATION_ERRORS[case]
    m = inner()
    before = {kind: list(members(m)) for kind, members in KINDS.items()}
    with pytest.raises(error) as caught:
        call(m)
    assert message in str(caught.value.args[0])
    assert {kind: list(members(m)) for kind, members in KINDS.items()} == before


@pytest.mark.parametrize("value", [learned(1), nn.Linear(1, 1)], ids=["tensor", "module"])
@pytest.mark.parametrize("meta", [True, False], ids=["meta", "own"])
def test_members_before_init_are_refused(value: Any, meta: bool) -> None:
    class Early(MetaGradientModule):
        def __init__(self, *args: Any) -> None:
            self.value = value

    with pytest.raises(AttributeError, match=r"before Module.__init__\(\) call"):
        Early(value) if meta else Early()


def test_conversions_modes_and_zero_grad_reach_the_own_part_only() -> None:
    m = inner()
    m(torch.ones(1, 2)).sum().backward()
    m.double().eval().zero_grad()
    assert {p.dtype for p in m.parameters()} == {torch.float64}
    assert {p.dtype for p in m.meta_parameters()} == {torch.float32}
    assert m.prior.training
    assert not m.child.training
    assert all(p.grad is None for p in m.parameters())
    assert all(p.grad is not None for p in m.meta_parameters())


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_keep_the_parts_apart(again: Callable[[Inner], Inner]) -> None:
    m = inner()
    twin = again(m)
    assert names(twin.named_parameters()) == names(m.named_parameters())
    assert names(twin.named_meta_parameters()) == names(m.named_meta_parameters())
    assert twin.prior is not m.prior
    twin.more = twin.prior
    assert kinds(twin, "more") == ["meta-module"]
    x = torch.randn(3, 2)
    torch.testing.assert_close(twin(x), m(x))


def test_gradients_reach_both_parts() -> None:
    m = inner()
    m.own = m.own * m.strength
    grads = torch.autograd.grad(m(torch.ones(1, 2)).sum(), [*m.meta_parameters(), *m.parameters()])
    assert all(grad.count_nonzero() for grad in grads)


def test_an_inner_loop_trains_the_own_part() -> None:
    m = inner()
    x = torch.randn(4, 2)
    optimizer = torchopt.MetaSGD(m, lr=0.1)
    optimizer.step((m(x) - 1).square().mean())
    assert all(not p.is_leaf for p in m.parameters())
    grads = torch.autograd.grad(m(x).sum(), list(m.meta_parameters()))
    assert all(grad.count_nonzero() for grad in grads)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.BatchNorm1d(3)).eval(),
    "tied": Tied,
    "recurrent": Recurrent,
    "meta": inner,
}
every_net = pytest.mark.parametrize("net", NETS)


def held(net: nn.Module) -> dict[str, int]:
    pairs = [
        *net.named_parameters(remove_duplicate=False),
        *net.named_buffers(remove_duplicate=False),
    ]
    return {name: id(x) for name, x in pairs}


@every_net
def test_a_reparametrized_module_computes_with_the_given_tensors(net: str) -> None:
    module = NETS[net]()
    other = copy.deepcopy(module)  # functional_call loses the parameters of modules used twice
    x = torch.randn(4, 2)
    given = {k: torch.randn_like(p).requires_grad_() for k, p in module.named_parameters()}
    before = held(module)
    expected = torch.func.functional_call(other, given, (x,))
    with reparametrize(module, given) as inside:
        assert inside is module
        output = module(x)
    assert held(module) == before
    torch.testing.assert_close(output, expected)
    wanted = torch.autograd.grad(expected.sum(), list(given.values()))
    torch.testing.assert_close(torch.autograd.grad(output.sum(), list(given.values())), wanted)


@pytest.mark.parametrize("net", sorted(NETS.keys() - {"recurrent"}))  # torch cannot vmap an LSTM
def test_reparametrize_runs_under_function_transforms(net: str) -> None:
    module = NETS[net]()
    other = copy.deepcopy(module)
    x = torch.randn(3, 4, 2)
    params = {k: p.detach() for k, p in module.named_parameters()}

    def loss(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        with reparametrize(module, params):
            return module(x).square().sum()

    def reference(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(other, params, (x,)).square().sum()

    before = held(module)
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    assert held(module) == before
    torch.testing.assert_close(
        grads, torch.func.vmap(torch.func.grad(reference), in_dims=(None, 0))(params, x)
    )


def test_reparametrize_takes_buffers_and_pairs_and_leaves_the_rest() -> None:
    module = NETS["mlp"]()
    mean, weight = torch.full((3,), 2.0), module[0].weight
    with reparametrize(module, [("2.running_mean", mean)]):
        assert module[2].running_mean is mean
        assert module[0].weight is weight
    assert not module[2].running_mean.count_nonzero()


def test_reparametrize_restores_after_an_exception() -> None:
    module = NETS["mlp"]()
    before = held(module)
    with (
        pytest.raises(RuntimeError, match="inside"),
        reparametrize(module, {"0.bias": torch.ones(3)}),
    ):
        raise RuntimeError("inside")
    assert held(module) == before


def test_reparametrize_nests() -> None:
    module = NETS["mlp"]()
    before = held(module)
    one, two = torch.ones(3), torch.ones(3)
    with reparametrize(module, {"0.bias": one}):
        with reparametrize(module, {"0.bias": two}):
            assert module[0].bias is two
        assert module[0].bias is one
    assert held(module) == before


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "c.weight"])
def test_reparametrize_replaces_a_tied_parameter_everywhere(name: str) -> None:
    module = Tied()
    before = held(module)
    weight = torch.zeros(2, 2)
    with reparametrize(module, {name: weight}):
        assert module.a.weight is module.b.weight is weight
    assert held(module) == before


def test_reparametrize_unties_where_both_names_are_given() -> None:
    module = Tied()
    before = held(module)
    one, two = torch.zeros(2, 2), torch.ones(2, 2)
    with reparametrize(module, {"a.weight": one, "b.weight": two}):
        assert module.a.weight is one
        assert module.b.weight is two
    assert held(module) == before


def test_reparametrize_may_tie_for_a_while() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = held(module)
    with reparametrize(module, {"0.weight": module[1].weight}):
        assert module[0].weight is module[1].weight
    assert held(module) == before


def test_reparametrize_reaches_meta_parameters() -> None:
    m = inner()
    strength, weight = m.strength, m.prior.weight
    with reparametrize(m, {"strength": torch.zeros(()), "prior.weight": torch.zeros(2, 2)}):
        assert not m.strength.requires_grad
        assert kinds(m, "strength") == ["meta-parameter"]
        assert not m.prior.weight.requires_grad
    assert m.strength is strength
    assert m.prior.weight is weight


def test_swapping_back_undoes_a_swap() -> None:
    module = Tied()
    module.note, module.bias = torch.ones(1), None
    before = held(module)
    given = {"a.weight": torch.zeros(2, 2), "c.bias": torch.ones(2), "note": torch.zeros(1)}
    own = swap_state(module, given)
    assert list(own) == list(given)
    assert module.b.weight is own["a.weight"]
    back = swap_state(module, own)
    assert all(back[name] is tensor for name, tensor in given.items())
    assert held(module) == before


def test_absent_parameters_can_be_swapped_in() -> None:
    module = nn.Linear(2, 2, bias=False)
    own = swap_state(module, {"bias": torch.ones(2)})
    assert own == {"bias": None}
    assert "bias" in names(module.named_parameters())
    swap_state(module, own)
    assert module.bias is None


BAD_NAMES = ["missing", "0.missing", "9.weight", "0", "0.forward", "training", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("function", [swap_state, lambda *args: reparametrize(*args).__enter__()])
def test_unknown_names_are_all_named_and_nothing_changes(name: str, function: Any) -> None:
    module = NETS["mlp"]()
    before = held(module)
    with pytest.raises(ValueError, match=rf"Sequential does not have: {name!r}, 'x.y';"):
        function(module, {"0.bias": torch.ones(3), name: torch.ones(3), "x.y": torch.ones(3)})
    assert held(module) == before


def test_missing_names_become_attributes_for_a_while() -> None:
    module = NETS["mlp"]()
    extra = torch.ones(3)
    with reparametrize(module, {"0.extra": extra}, allow_missing=True):
        assert module[0].extra is extra
    assert not hasattr(module[0], "extra")
    own = swap_state(module, {"0.extra": extra}, allow_missing=True)
    swap_state(module, own, allow_missing=True)
    assert not hasattr(module[0], "extra")


@pytest.mark.parametrize("name", ["9.weight", "0.forward", "training"])
def test_missing_names_need_a_free_place(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        swap_state(NETS["mlp"](), {name: torch.ones(3)}, allow_missing=True)


@pytest.mark.parametrize("function", [swap_state, lambda *args: reparametrize(*args).__enter__()])
def test_wrong_types_are_named(function: Any) -> None:
    with pytest.raises(TypeError, match=r"`module` must be an nn\.Module, got int"):
        function(3, {})
    with pytest.raises(TypeError, match=r"`named_tensors\['weight'\]` must be a tensor, got str"):
        function(nn.Linear(1, 1), {"weight": "x"})


def test_both_spellings_are_one() -> None:
    assert reparameterize is reparametrize
    assert torchopt.nn.reparametrize is reparametrize
