"""The conformance table: one row for each optimizer and interesting choice of hyperparameters."""

from __future__ import annotations

import collections
import copy
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import prodigyopt
import pytest
import schedulefree
import torch
from torch import nn

import torchopt

Tensors = list[torch.Tensor]


class Family(NamedTuple):
    """The three faces of an optimizer, and torch's own."""

    functional: Callable[..., torchopt.GradientTransformation]
    stateful: Callable[..., torchopt.Optimizer]
    meta: Callable[..., torchopt.MetaOptimizer]
    torch: Callable[..., torch.optim.Optimizer]


class Case(NamedTuple):
    """A row of the table."""

    name: str
    family: Family
    # the hyperparameters, but for the learning rate
    kwargs: dict[str, Any]
    # what the trajectories are held against
    reference: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]
    lr: float
    # what it takes: "real" numbers alone, a "matrix" for each leaf, all leaves as one ("joint"),
    # the "loss" at other parameters, "every" leaf in each step, leaves that are "filled"; it is
    # "rough" if it computes in bfloat16, and "branches" on values; "one rate" serves all elements
    # of a leaf; of the gradients it uses but the "signs"
    kind: frozenset[str] = frozenset()

    def make_params(self, dtype: torch.dtype = torch.float64) -> Tensors:
        """Parameters of the kinds that it takes."""
        if "matrix" in self.kind:
            return make_matrices(dtype)
        params = make_params(dtype, real="real" in self.kind)
        return [p for p in params if p.numel()] if "filled" in self.kind else params

    def make_grads(self, params: Tensors, steps: int) -> list[list[torch.Tensor | None]]:
        """Gradients for each step; some parameters have none in some steps, if it minds not."""
        if "every" in self.kind:
            return [[torch.randn_like(p) for p in params] for _ in range(steps)]
        return make_grads(params, steps)

    def steps(self, many: int, dtype: torch.dtype) -> int:
        """How many steps to compare."""
        if "branches" in self.kind and dtype == torch.float32:
            pytest.skip("rounding decides which way it takes, by differences of small numbers")
        return many

    def run(self, params: Any, grads: Sequence[Any], *, inplace: bool = False) -> Any:
        """Step the functional face through given gradients."""
        return run_functional(self.functional(), params, grads, inplace=inplace, bowl=self.bowl)

    def run_stateful(self, params: Tensors, grads: Sequence[Any]) -> Tensors:
        return run_torch(self.stateful(params), params, grads, bowl=self.bowl)

    def run_reference(self, params: Tensors, grads: Sequence[Any]) -> Tensors:
        return run_torch(self.reference(params), params, grads, bowl=self.bowl)

    def run_meta(self, params: Tensors, grads: Sequence[Any]) -> Tensors:
        module = Bag(params)
        meta = self.meta(module)
        for step in grads:
            if self.bowl:
                at = [p.detach() for p in module.tensors()]
                meta.step(lambda step=step, at=at: module.loss(step) + module.bowl(step, at))
            else:
                meta.step(module.loss(step))
        return [p.detach() for p in module.tensors()]

    @property
    def bowl(self) -> bool:
        """Whether it evaluates a loss that is curved."""
        return "loss" in self.kind

    def functional(self, **changes: Any) -> torchopt.GradientTransformation:
        return self.family.functional(**{"lr": self.lr, **self.kwargs, **changes})

    def stateful(self, params: Any, **changes: Any) -> torchopt.Optimizer:
        return self.family.stateful(params, **{"lr": self.lr, **self.kwargs, **changes})

    def meta(self, module: nn.Module, **changes: Any) -> torchopt.MetaOptimizer:
        return self.family.meta(module, **{"lr": self.lr, **self.kwargs, **changes})


def _real(x: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with two components, which is how torch.optim takes it."""
    return torch.view_as_real(x) if x.is_complex() else x


class TextbookAdam(torch.optim.Optimizer):
    """Adam with a term inside of the root, which torch's does not have, as its formula reads."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], **kwargs: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, **kwargs})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                x = _real(p)
                g = _real(p.grad) + group["weight_decay"] * x
                m, v, t = self.state.get(p, (0.0, 0.0, 0))
                m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
                self.state[p] = m, v, t
                root = (v / (1 - b2**t) + group["eps_root"]) ** 0.5
                x -= group["lr"] * (m / (1 - b1**t)) / (root + group["eps"])


class TextbookRMSprop(torch.optim.Optimizer):
    """RMSprop with a start of the average and Nesterov momentum, as its formula reads."""

    def __init__(self, params: Any, lr: float, **kwargs: float) -> None:
        super().__init__(params, {"lr": lr, **kwargs})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            a, momentum = group["alpha"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                v, b = self.state.get(p, (group["initial_scale"], 0.0))
                g = _real(p.grad)
                v = a * v + (1 - a) * g**2
                d = g / (v**0.5 + group["eps"])
                b = momentum * b + d
                self.state[p] = v, b
                x = _real(p)
                x -= group["lr"] * (d + momentum * b)


class TextbookLion(torch.optim.Optimizer):
    """Lion, as its formula reads."""

    def __init__(self, params: Any, lr: float, **kwargs: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "maximize": False, **kwargs})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                g, x = _real(p.grad) * (-1 if group["maximize"] else 1), _real(p)
                m = self.state.get(p, 0.0)
                self.state[p] = b2 * m + (1 - b2) * g
                direction = (b1 * m + (1 - b1) * g).sign()
                x -= group["lr"] * (direction + group["weight_decay"] * x)


class TextbookMuon(torch.optim.Optimizer):
    """Muon in the dtype of its parameters, without look-ahead, as its formula reads."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, kwargs)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            a, b, c = group["ns_coefficients"]
            momentum, lr = group["momentum"], group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = momentum * self.state.get(p, 0.0) + (1 - momentum) * p.grad
                self.state[p] = m
                x = m / torch.linalg.matrix_norm(m, keepdim=True).clamp(min=1e-7)
                for _ in range(group["ns_steps"]):
                    xx = x @ x.mT
                    x = a * x + (b * xx + c * xx @ xx) @ x
                p *= 1 - lr * 0.1
                p -= lr * 0.2 * max(p.shape[-2:]) ** 0.5 * x


class TextbookLookahead(torch.optim.Optimizer):
    """Lookahead around torch's Adam."""

    def __init__(self, params: Any, lr: float, k: int, alpha: float) -> None:
        super().__init__(params, {"k": k, "alpha": alpha})
        self.fast = torch.optim.Adam(self.param_groups[0]["params"], lr)
        self.slow = [p.detach().clone() for p in self.param_groups[0]["params"]]
        self.count = 0

    @torch.no_grad()
    def step(self) -> None:
        self.fast.step()
        self.count += 1
        (group,) = self.param_groups
        for p, slow in zip(group["params"], self.slow, strict=True):
            if self.count % group["k"] == 0 and p.grad is not None:
                slow += group["alpha"] * (p - slow)
                p.copy_(slow)


class TextbookSam(torch.optim.Optimizer):
    """SAM around torch's Adam."""

    def __init__(self, params: Any, lr: float, rho: float, adaptive: bool = False) -> None:
        super().__init__(params, {"rho": rho, "adaptive": adaptive})
        self.inner = torch.optim.Adam(self.param_groups[0]["params"], lr)

    def step(self, closure: Any) -> None:
        closure()
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        kept = [p.detach().clone() for p in params]
        scales = [p.detach().abs() if group["adaptive"] else 1.0 for p in params]
        sizes = [(s * p.grad).abs().square().sum() for s, p in zip(scales, params, strict=True)]
        factor = group["rho"] / (sum(sizes).sqrt() + 1e-12)
        with torch.no_grad():
            for p, scale in zip(params, scales, strict=True):
                p += factor * scale * scale * p.grad
        closure()
        with torch.no_grad():
            for p, before in zip(params, kept, strict=True):
                p.copy_(before)
        self.inner.step()


def _as_real(params: Sequence[torch.Tensor]) -> tuple[list[Any], Callable[[], None]]:
    """Real parameters that share memory with the given ones, and what passes on their gradients."""
    reals = [_real(p.detach()).requires_grad_() for p in params]

    def pass_on() -> None:
        for real, p in zip(reals, params, strict=True):
            real.grad = None if p.grad is None else _real(p.grad).clone()

    return reals, pass_on


class OfItsAuthors(torch.optim.Optimizer):
    """An optimizer that overwrites gradients and knows real numbers alone."""

    def __init__(self, make: Callable[..., Any], params: Any, **kwargs: Any) -> None:
        super().__init__(params, {})
        reals, self.pass_on = _as_real(self.param_groups[0]["params"])
        self.inner = make(reals, **kwargs)

    def train(self) -> None:
        if hasattr(self.inner, "train"):
            self.inner.train()

    def step(self) -> None:
        self.pass_on()
        self.inner.step()


def prodigy_of_its_authors(params: Any, **kwargs: Any) -> torch.optim.Optimizer:
    return OfItsAuthors(prodigyopt.Prodigy, params, **kwargs)


def schedule_free_sgd_of_its_authors(params: Any, lr: float) -> torch.optim.Optimizer:
    return OfItsAuthors(schedulefree.SGDScheduleFree, params, lr=lr)


def schedule_free_adamw_of_its_authors(
    params: Any, lr: float, momentum: float, **kwargs: Any
) -> torch.optim.Optimizer:
    betas = (momentum, 0.99)
    make = schedulefree.AdamWScheduleFree
    return OfItsAuthors(make, params, lr=lr, betas=betas, weight_decay=0.1, **kwargs)


class TwoOptimizers(torch.optim.Optimizer):
    """Adam for what has dimensions, and SGD with momentum for the rest."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {})
        params = self.param_groups[0]["params"]
        self.parts = [
            torch.optim.Adam([p for p in params if p.ndim], lr),
            torch.optim.SGD([p for p in params if not p.ndim], lr, momentum=0.9),
        ]

    def step(self) -> None:
        for part in self.parts:
            part.step()


class MuonOfTorch(torch.optim.Optimizer):
    """torch's Muon, for each matrix of a batch by itself."""

    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, {})
        self.parts = []
        for p in self.param_groups[0]["params"]:
            matrices = [x.requires_grad_() for x in p.detach().reshape(-1, *p.shape[-2:]).unbind()]
            if p.ndim == 2:
                matrices = [p]
            self.parts.append((p, matrices, torch.optim.Muon(matrices, **kwargs)))

    def step(self) -> None:
        for p, matrices, part in self.parts:
            if p.grad is None:
                continue
            if p.ndim > 2:
                for x, g in zip(matrices, p.grad.reshape(-1, *p.shape[-2:]), strict=True):
                    x.grad = g
            part.step()


def in_double(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """torch's optimizer, with what depends on the steps alone in double precision."""

    class InDouble(kind):
        def step(self) -> None:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                super().step()
            finally:
                torch.set_default_dtype(before)

    return InDouble


def textbook(formula: Callable[..., torch.Tensor]) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer that reads as its formula.

    It is ``(x, g, state, t, **hyperparameters) -> x`` for a leaf, in real numbers; the state is a
    dict that begins with zeros for whatever is looked up.
    """

    class Textbook(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float, **kwargs: Any) -> None:
            super().__init__(params, {"lr": lr, "kwargs": kwargs})
            self.known: dict[torch.Tensor, Any] = {}

        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                kwargs = dict(group["kwargs"])
                sign = -1 if kwargs.pop("maximize", False) else 1
                for p in (p for p in group["params"] if p.grad is not None):
                    state = self.known.setdefault(p, collections.defaultdict(float))
                    state["t"] += 1
                    x = _real(p)
                    args = x.clone(), sign * _real(p.grad), state, state["t"]
                    x.copy_(formula(*args, lr=group["lr"], **kwargs))

    return Textbook


def textbook_adabelief(x, g, s, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["s"] = b2 * s["s"] + (1 - b2) * (g - s["m"]) ** 2 + eps
    u = s["m"] / (1 - b1**t) / ((s["s"] / (1 - b2**t)) ** 0.5 + eps)
    return x - lr * (u + weight_decay * x)


def textbook_yogi(x, g, s, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    if t == 1:
        s["m"] = s["v"] = 1e-6
    g = g + weight_decay * x
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = s["v"] - (1 - b2) * torch.sign(s["v"] - g**2) * g**2
    return x - lr * s["m"] / (1 - b1**t) / ((s["v"] / (1 - b2**t)) ** 0.5 + eps)


def textbook_laprop(x, g, s, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    s["m"] = b1 * s["m"] + (1 - b1) * g / ((s["v"] / (1 - b2**t)) ** 0.5 + eps)
    return x - lr * (s["m"] / (1 - b1**t) + weight_decay * x)


def textbook_adan(x, g, s, t, lr, betas, eps, weight_decay):
    b1, b2, b3 = betas
    d = g - s["g"] if t > 1 else 0 * g
    s["g"] = g.clone()
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["d"] = b2 * s["d"] + (1 - b2) * d
    s["n"] = b3 * s["n"] + (1 - b3) * (g + b2 * d) ** 2
    u = s["m"] / (1 - b1**t) + b2 * s["d"] / (1 - b2**t)
    return x - lr * (u / ((s["n"] / (1 - b3**t)) ** 0.5 + eps) + weight_decay * x)


def textbook_signum(x, g, s, t, lr, momentum, weight_decay):
    s["m"] = momentum * s["m"] + (1 - momentum) * g
    return x - lr * (s["m"].sign() + weight_decay * x)


def textbook_qhm(x, g, s, t, lr, momentum, nu, weight_decay):
    g = g + weight_decay * x
    s["m"] = momentum * s["m"] + (1 - momentum) * g
    return x - lr * ((1 - nu) * g + nu * s["m"])


def textbook_qhadam(x, g, s, t, lr, betas, nus, eps, weight_decay):
    (b1, b2), (n1, n2) = betas, nus
    g = g + weight_decay * x
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    above = (1 - n1) * g + n1 * s["m"] / (1 - b1**t)
    below = (1 - n2) * g**2 + n2 * s["v"] / (1 - b2**t)
    return x - lr * above / (below**0.5 + eps)


def size(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum().sqrt()


def _ratio(above: torch.Tensor, below: torch.Tensor) -> Any:
    return above / below if above > 0 and below > 0 else 1.0


def textbook_lars(x, g, s, t, lr, momentum, weight_decay, trust_coefficient, eps):
    below = size(g) + weight_decay * size(x)
    ratio = trust_coefficient * size(x) / (below + eps) if size(x) > 0 and below > 0 else 1.0
    s["b"] = momentum * s["b"] + ratio * (g + weight_decay * x)
    return x - lr * s["b"]


def textbook_lamb(x, g, s, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    u = s["m"] / (1 - b1**t) / ((s["v"] / (1 - b2**t)) ** 0.5 + eps) + weight_decay * x
    return x - lr * _ratio(size(x), size(u)) * u


def textbook_fromage(x, g, s, t, lr):
    return (x - lr * _ratio(size(x), size(g)) * g) / (1 + lr**2) ** 0.5


def _by_formula(name: str, formula: Callable[..., torch.Tensor]) -> Family:
    """The three faces of an optimizer by the name of its class, held against a formula."""
    functional = getattr(torchopt, name.lower())
    faces = getattr(torchopt, name), getattr(torchopt, f"Meta{name}")
    return Family(functional, *faces, textbook(formula))


def bare_or_rest(params: Any) -> Any:
    """Labels: matrices and vectors, and scalars."""
    return optree.tree_map(
        lambda x: "bare" if x is None or not x.ndim else "rest", params, none_is_leaf=True
    )


def partitioned(lr: float) -> torchopt.GradientTransformation:
    parts = {"rest": torchopt.adam(lr), "bare": torchopt.sgd(lr, momentum=0.9)}
    return torchopt.partition(parts, bare_or_rest)


def schedule_free_sgd(lr: float, **kwargs: Any) -> torchopt.GradientTransformation:
    return torchopt.schedule_free(torchopt.sgd(lr), **kwargs)


def schedule_free_adamw(lr: float, **kwargs: Any) -> torchopt.GradientTransformation:
    inner = torchopt.adamw(lr, betas=(0.0, 0.99), weight_decay=0.1)
    return torchopt.schedule_free(inner, **kwargs)


def lookahead(lr: float, **kwargs: Any) -> torchopt.GradientTransformation:
    return torchopt.lookahead(torchopt.adam(lr), **kwargs)


def sam(lr: float, **kwargs: Any) -> torchopt.GradientTransformation:
    return torchopt.sam(torchopt.adam(lr), **kwargs)


def _composed(functional: Callable[..., Any]) -> Family:
    """The faces of a transformation that has no class with a learning rate of its own."""
    return Family(
        functional,
        lambda params, **kwargs: torchopt.Optimizer(params, functional(**kwargs)),
        lambda module, **kwargs: torchopt.MetaOptimizer(module, functional(**kwargs)),
        torch.optim.Optimizer,
    )


def has_dimensions(params: Any) -> Any:
    """A mask: decay matrices and vectors, not scalars."""
    return optree.tree_map(lambda x: x is not None and x.ndim > 0, params, none_is_leaf=True)


def _masked_adamw(params: Sequence[torch.Tensor], **kwargs: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in params if p.ndim > 0]},
        {"params": [p for p in params if p.ndim == 0], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **kwargs)


SGD = Family(torchopt.sgd, torchopt.SGD, torchopt.MetaSGD, torch.optim.SGD)
ADAM = Family(torchopt.adam, torchopt.Adam, torchopt.MetaAdam, torch.optim.Adam)
ADAMW = Family(torchopt.adamw, torchopt.AdamW, torchopt.MetaAdamW, torch.optim.AdamW)
ADAGRAD = Family(torchopt.adagrad, torchopt.Adagrad, torchopt.MetaAdagrad, torch.optim.Adagrad)
ADADELTA = Family(torchopt.adadelta, torchopt.Adadelta, torchopt.MetaAdadelta, torch.optim.Adadelta)
ADAMAX = Family(torchopt.adamax, torchopt.Adamax, torchopt.MetaAdamax, torch.optim.Adamax)
RADAM = Family(torchopt.radam, torchopt.RAdam, torchopt.MetaRAdam, torch.optim.RAdam)
RMSPROP = Family(torchopt.rmsprop, torchopt.RMSprop, torchopt.MetaRMSprop, torch.optim.RMSprop)

LION = Family(torchopt.lion, torchopt.Lion, torchopt.MetaLion, TextbookLion)
NADAM = Family(torchopt.nadam, torchopt.NAdam, torchopt.MetaNAdam, in_double(torch.optim.NAdam))
ASGD = Family(torchopt.asgd, torchopt.ASGD, torchopt.MetaASGD, in_double(torch.optim.ASGD))
RPROP = Family(torchopt.rprop, torchopt.Rprop, torchopt.MetaRprop, torch.optim.Rprop)
ADABELIEF = _by_formula("AdaBelief", textbook_adabelief)
YOGI = _by_formula("Yogi", textbook_yogi)
LAPROP = _by_formula("LaProp", textbook_laprop)
ADAN = _by_formula("Adan", textbook_adan)
SIGNUM = _by_formula("Signum", textbook_signum)
QHM = _by_formula("QHM", textbook_qhm)
QHADAM = _by_formula("QHAdam", textbook_qhadam)
LARS = _by_formula("LARS", textbook_lars)
LAMB = _by_formula("LAMB", textbook_lamb)
FROMAGE = _by_formula("Fromage", textbook_fromage)
MUON = Family(
    torchopt.muon,
    lambda params, **kwargs: torchopt.Optimizer(params, torchopt.muon(**kwargs)),  # batches, too
    torchopt.MetaMuon,
    MuonOfTorch,
)
ADAFACTOR = Family(
    torchopt.adafactor, torchopt.Adafactor, torchopt.MetaAdafactor, torch.optim.Adafactor
)
PRODIGY = Family(torchopt.prodigy, torchopt.Prodigy, torchopt.MetaProdigy, prodigy_of_its_authors)
LBFGS = Family(torchopt.lbfgs, torchopt.LBFGS, torchopt.MetaLBFGS, torch.optim.LBFGS)
SCHEDULE_FREE_SGD = _composed(schedule_free_sgd)
SCHEDULE_FREE_ADAMW = _composed(schedule_free_adamw)
LOOKAHEAD = _composed(lookahead)
PARTITION = _composed(partitioned)
SAM = _composed(sam)

FAMILIES = {
    "sgd": SGD,
    "adam": ADAM,
    "adamw": ADAMW,
    "adagrad": ADAGRAD,
    "adadelta": ADADELTA,
    "adamax": ADAMAX,
    "radam": RADAM,
    "rmsprop": RMSPROP,
}


def _row(
    name: str,
    family: Family,
    reference: Callable[..., torch.optim.Optimizer] | None = None,
    *,
    lr: float = 0.05,
    unknown_to_reference: Sequence[str] = (),
    kind: Sequence[str] = (),
    **kwargs: Any,
) -> Case:
    known = {key: value for key, value in kwargs.items() if key not in unknown_to_reference}
    reference = functools.partial(reference or family.torch, lr=lr, **known)
    return Case(name, family, kwargs, reference, lr, frozenset(kind))


CASES = [
    _row("sgd", SGD),
    _row("sgd-momentum", SGD, momentum=0.9),
    _row("sgd-dampening", SGD, momentum=0.8, dampening=0.3, weight_decay=0.1),
    _row("sgd-nesterov", SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    _row("sgd-maximize", SGD, momentum=0.5, maximize=True, weight_decay=0.1),
    _row("adam", ADAM),
    _row("adam-decay", ADAM, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
    _row("adam-maximize", ADAM, maximize=True, weight_decay=0.1),
    _row("adam-no-memory", ADAM, betas=(0.0, 0.0), eps=0.1),
    _row(
        "adam-eps-root",
        ADAM,
        TextbookAdam,
        betas=(0.7, 0.95),
        eps=1e-2,
        eps_root=1e-1,
        weight_decay=0.1,
    ),
    _row("adamw", ADAMW),
    _row("adamw-maximize", ADAMW, betas=(0.7, 0.95), weight_decay=0.5, maximize=True),
    _row(
        "adamw-mask",
        ADAMW,
        _masked_adamw,
        weight_decay=0.5,
        mask=has_dimensions,
        unknown_to_reference=["mask"],
    ),
    _row("adagrad", ADAGRAD),
    _row(
        "adagrad-decay",
        ADAGRAD,
        lr_decay=0.1,
        weight_decay=0.1,
        initial_accumulator_value=0.5,
        eps=1e-3,
    ),
    _row("adagrad-maximize", ADAGRAD, lr_decay=0.1, weight_decay=0.1, maximize=True),
    _row("adadelta", ADADELTA, lr=1.0),
    _row("adadelta-decay", ADADELTA, lr=0.5, rho=0.7, eps=1e-2, weight_decay=0.1),
    _row("adadelta-maximize", ADADELTA, lr=0.5, weight_decay=0.1, maximize=True),
    _row("adamax", ADAMAX),
    _row("adamax-decay", ADAMAX, betas=(0.7, 0.95), eps=1e-2, weight_decay=0.1),
    _row("adamax-maximize", ADAMAX, weight_decay=0.1, maximize=True),
    _row("radam", RADAM),
    _row("radam-decay", RADAM, betas=(0.7, 0.8), eps=1e-2, weight_decay=0.1),
    _row("radam-maximize", RADAM, weight_decay=0.1, maximize=True),
    _row("rmsprop", RMSPROP),
    _row("rmsprop-centered", RMSPROP, alpha=0.8, eps=1e-3, centered=True, weight_decay=0.1),
    _row("rmsprop-momentum", RMSPROP, alpha=0.8, momentum=0.9, weight_decay=0.1),
    _row("rmsprop-all", RMSPROP, centered=True, momentum=0.5, weight_decay=0.1, maximize=True),
    _row(
        "rmsprop-nesterov",
        RMSPROP,
        TextbookRMSprop,
        alpha=0.8,
        eps=1e-3,
        momentum=0.9,
        nesterov=True,
        initial_scale=0.3,
        unknown_to_reference=["nesterov"],
    ),
]

# without kernels
CASES_OF_CORE = [
    _row("adam-amsgrad", ADAM, amsgrad=True, weight_decay=0.1),
    _row("adam-decoupled", ADAM, decoupled_weight_decay=True, weight_decay=0.1),
    _row("adamw-amsgrad", ADAMW, amsgrad=True, betas=(0.7, 0.95), weight_decay=0.5, maximize=True),
    _row("radam-decoupled", RADAM, decoupled_weight_decay=True, weight_decay=0.5),
    _row("lion", LION, TextbookLion, betas=(0.8, 0.95)),
    _row("lion-decay", LION, TextbookLion, betas=(0.8, 0.95), weight_decay=0.5, maximize=True),
]
CASES_OF_CORE += [
    _row("nadam", NADAM),
    _row("nadam-decay", NADAM, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1, momentum_decay=0.1),
    _row("adabelief", ADABELIEF, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1, maximize=True),
    _row("yogi", YOGI, betas=(0.7, 0.95), eps=1e-2, weight_decay=0.1),
    _row("laprop", LAPROP, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
    _row("adan", ADAN, betas=(0.7, 0.8, 0.95), eps=1e-3, weight_decay=0.1, maximize=True),
    _row("signum", SIGNUM, momentum=0.7, weight_decay=0.1, kind=["signs"]),
    _row("qhm", QHM, momentum=0.8, nu=0.6, weight_decay=0.1),
    _row("qhadam", QHADAM, betas=(0.7, 0.95), nus=(0.6, 0.8), eps=1e-3, weight_decay=0.1),
    _row("asgd", ASGD, lambd=0.1, alpha=0.5, t0=2.0, weight_decay=0.1, kind=["one rate"]),
    _row("rprop", RPROP, etas=(0.4, 1.5), step_sizes=(0.01, 0.2), kind=["signs"]),
    _row("nadam-decoupled", NADAM, decoupled_weight_decay=True, weight_decay=0.5, maximize=True),
]
# of other kinds
CASES_OF_KINDS = [
    _row("muon", MUON, weight_decay=0.2, kind=["matrix", "real", "rough"]),
    _row(
        "muon-exact",
        MUON,
        TextbookMuon,
        ns_dtype=None,
        nesterov=False,
        momentum=0.8,
        adjust_lr_fn="match_rms_adamw",
        ns_coefficients=(3.4, -4.7, 2.0),
        ns_steps=4,
        kind=["matrix", "real"],
    ),
    _row("adafactor", ADAFACTOR, kind=["real", "filled"]),
    _row(
        "adafactor-all",
        ADAFACTOR,
        beta2_decay=-0.5,
        eps=(1e-4, 0.1),
        d=1.5,
        weight_decay=0.2,
        maximize=True,
        lr=0.2,
        kind=["real", "filled"],
    ),
    _row("lars", LARS, momentum=0.8, weight_decay=0.2, trust_coefficient=0.5, eps=0.1),
    _row("lamb", LAMB, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1, maximize=True),
    _row("fromage", FROMAGE, lr=0.3),
    _row("prodigy", PRODIGY, prodigy_of_its_authors, lr=1.0, d0=0.01),
    _row(
        "prodigy-all",
        PRODIGY,
        prodigy_of_its_authors,
        lr=0.5,
        d0=0.01,
        betas=(0.8, 0.9),
        beta3=0.7,
        weight_decay=0.1,
        decouple=False,
        use_bias_correction=True,
        safeguard_warmup=True,
        d_coef=0.5,
        growth_rate=1.5,
    ),
    _row("schedule_free-sgd", SCHEDULE_FREE_SGD, schedule_free_sgd_of_its_authors),
    _row(
        "schedule_free-adamw",
        SCHEDULE_FREE_ADAMW,
        schedule_free_adamw_of_its_authors,
        momentum=0.8,
        r=1.0,
        weight_lr_power=1.5,
        kind=["every"],  # its authors count the steps of all leaves as one
    ),
    _row("lookahead", LOOKAHEAD, TextbookLookahead, k=3, alpha=0.3),
    _row("partition", PARTITION, TwoOptimizers),
    _row("sam", SAM, TextbookSam, rho=0.3, kind=["loss"]),
    _row("sam-adaptive", SAM, TextbookSam, rho=0.5, adaptive=True, kind=["loss"]),
    _row(
        "lbfgs",
        LBFGS,
        lr=0.5,
        max_iter=3,
        history_size=4,
        kind=["loss", "joint", "branches", "real"],
    ),
    _row(
        "lbfgs-wolfe",
        LBFGS,
        lr=1.0,
        max_iter=4,
        line_search_fn="strong_wolfe",
        kind=["loss", "joint", "branches", "real"],
    ),
]

every_kernel_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_case = pytest.mark.parametrize("case", [*CASES, *CASES_OF_CORE], ids=lambda case: case.name)
every_row = pytest.mark.parametrize(
    "case", [*CASES, *CASES_OF_CORE, *CASES_OF_KINDS], ids=lambda case: case.name
)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


class Bag(nn.Module):
    """A module that holds the given parameters."""

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        super().__init__()
        for i, param in enumerate(params):
            self.register_parameter(f"p{i}", nn.Parameter(param))

    def tensors(self) -> Tensors:
        return list(self._parameters.values())

    def bowl(self, grads: Sequence[Any], at: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar without gradient at ``at``, whose gradient grows by half of the distance."""
        terms = zip(self.tensors(), at, grads, strict=True)
        return sum((p - x).abs().square().sum() / 4 for p, x, g in terms if g is not None)

    def loss(self, grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """A scalar whose gradients are ``grads``."""
        pairs = zip(self.tensors(), grads, strict=True)
        return sum((g.conj() * p).sum().real for p, g in pairs if g is not None)


def make_params(dtype: torch.dtype = torch.float64, *, real: bool = False) -> Tensors:
    """Parameters of several kinds: 0-dim, empty, strided, complex."""
    params = [
        torch.randn(3, 2, dtype=dtype),
        torch.randn((), dtype=dtype),
        torch.randn(0, 3, dtype=dtype),
        torch.randn(2, 4, dtype=dtype).t(),
        torch.randn(6, dtype=dtype)[::2],
    ]
    if not real:
        params += [torch.randn(shape, dtype=dtype.to_complex()) for shape in ((), (2,), (2, 2))]
    return params


def make_grads(params: Sequence[torch.Tensor], steps: int) -> list[list[torch.Tensor | None]]:
    """Gradients for each step; some parameters have none in some steps."""
    return [
        [None if (t + i) % 4 == 3 else torch.randn_like(p) for i, p in enumerate(params)]
        for t in range(steps)
    ]


def make_matrices(dtype: torch.dtype = torch.float64) -> Tensors:
    """Parameters that are matrices: wide, tall, strided, square, and a batch."""
    return [
        torch.randn(2, 4, dtype=dtype),
        torch.randn(4, 2, dtype=dtype),
        torch.randn(3, 2, dtype=dtype).t(),
        torch.randn(3, 3, dtype=dtype),
        torch.randn(2, 3, 2, dtype=dtype),
    ]


def run_torch(
    optimizer: torch.optim.Optimizer,
    params: Sequence[torch.Tensor],
    grads: Sequence[Sequence[torch.Tensor | None]],
    *,
    bowl: bool = False,
) -> Tensors:
    """Step a ``torch.optim.Optimizer`` through given gradients.

    With ``bowl`` they are those of a curved loss, which the optimizer may evaluate again.
    """
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in grads:
        at = [param.detach().clone() for param in params]

        def closure(step: Any = step, at: Tensors = at) -> torch.Tensor:
            value, found = bowl_at([p.detach() for p in params], step, at)
            for param, grad in zip(params, found, strict=True):
                param.grad = grad if grad is None else grad.contiguous()  # torch's L-BFGS needs it
            return value

        if bowl:
            optimizer.step(closure)
            continue
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params]


def bowl_at(
    params: Sequence[Any], grads: Sequence[Any], at: Sequence[Any]
) -> tuple[torch.Tensor, list[Any]]:
    """The value and the gradients of a loss that has the gradients ``grads`` at ``at``."""
    rows = [row for row in zip(params, grads, at, strict=True) if row[1] is not None]
    value = sum((g.conj() * p).sum().real + (p - x).abs().square().sum() / 4 for p, g, x in rows)
    found = [
        None if g is None else g + (p - x) / 2 for p, g, x in zip(params, grads, at, strict=True)
    ]
    return value, found


def run_functional(
    transformation: torchopt.GradientTransformation,
    params: Any,
    grads: Sequence[Any],
    *,
    inplace: bool = False,
    bowl: bool = False,
) -> Any:
    """Step a transformation through given gradients; see :func:`run_torch` for ``bowl``."""
    state = transformation.init(params)
    for step in grads:
        extras: dict[str, Any] = {}
        if bowl:
            flat, spec = optree.tree_flatten(step, none_is_leaf=True)
            at = [x if x is None else x.detach().clone() for x in spec.flatten_up_to(params)]

            def evaluate(moved: Any, flat: Any = flat, at: Any = at, spec: Any = spec) -> Any:
                value, found = bowl_at(spec.flatten_up_to(moved), flat, at)
                return value, optree.tree_unflatten(spec, found)

            extras = {"value_and_grad": evaluate}
        updates, state = transformation.update(
            step, state, params=params, inplace=inplace, **extras
        )
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params


def leaves_of(params: Sequence[torch.Tensor]) -> Tensors:
    """Fresh leaves that require grad, with the same values and strides."""
    return [p.detach().clone().requires_grad_() for p in params]


def tensors_in(tree: Any) -> Tensors:
    """All tensors of a tree."""
    return [x for x in optree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def assert_same(actual: Any, expected: Any) -> None:
    """Assert bit for bit equality of two trees of tensors, NaN included."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0, equal_nan=True)


def assert_agree(actual: Any, expected: Any) -> None:
    """Assert equality up to rounding: the same formula, evaluated in another order.

    A few operations on each of some tens of steps, so some tens of units in the last place.
    """
    dtypes = {x.dtype for x in tensors_in(expected)}
    single = dtypes & {torch.float32, torch.complex64}
    rtol, atol = (1e-4, 1e-5) if single else (1e-10, 1e-12)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def regression() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    """Return a small network and its loss."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    return net, lambda net: nn.functional.mse_loss(net(x), y)


def train(
    net: nn.Module,
    loss_fn: Callable[[nn.Module], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int = 10,
) -> Tensors:
    """Train ``net`` and return copies of its parameters."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(net).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Save and load a state dict, trusting the file with nothing but data."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Copy everything that a step may change."""
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy((params, optimizer.state_dict()["state"]))
