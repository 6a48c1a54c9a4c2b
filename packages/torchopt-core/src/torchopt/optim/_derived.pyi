# Written by stubs.py (`nox -s stubs`): do not edit.

from collections.abc import Callable
from torch import nn
from torch.optim.optimizer import ParamsT
from torchopt._types import Params
from torchopt._types import Scalar
from torchopt._types import ScalarOrSchedule
from torchopt._types import TensorTree
from torchopt.base import GradientTransformation
from torchopt.optim._meta import DerivedMetaOptimizer
from torchopt.optim._stateful import DerivedOptimizer
from typing import Any
from typing import Literal
import torch

class ASGD(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        lambd: Scalar = 0.0001,
        alpha: Scalar = 0.75,
        t0: Scalar = 1000000.0,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""ASGD as a :class:`torch.optim.Optimizer`; see :func:`asgd`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule, or a tree with one of
                these tensors for each leaf. As in torch, a change reaches the step after the next.
            lambd: :math:`\lambda_0 \ge 0`, how fast the learning rate and the parameters decay.
            alpha: :math:`\alpha \ge 0`.
            t0: The step :math:`t_0` at which the averages begin.
            weight_decay: Coupled to the gradient.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite, or ``update`` has no
                ``params``.
        """

class AdaBelief(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-16,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""AdaBelief as a :class:`torch.optim.Optimizer`; see :func:`adabelief`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`, added in every step inside of the root and once outside.
            weight_decay: :math:`\lambda`.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Adadelta(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 1.0,
        rho: Scalar = 0.9,
        eps: Scalar = 1e-06,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adadelta as a :class:`torch.optim.Optimizer`; see :func:`adadelta`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            rho: :math:`\rho`, in [0, 1).
            eps: :math:`\epsilon`, added inside of both roots.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Adafactor(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        beta2_decay: Scalar = -0.8,
        eps: tuple[float | None, Scalar] = (None, 0.001),
        d: Scalar = 1.0,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adafactor as a :class:`torch.optim.Optimizer`; see :func:`adafactor`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: The largest relative step size :math:`\eta`, in every form that :func:`~torchopt.adam`
                takes.
            beta2_decay: :math:`\tau \le 0`.
            eps: :math:`(\epsilon_1, \epsilon_2)`; None for the machine epsilon of the dtype.
            d: The clipping threshold :math:`d \ge 1`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
            RuntimeError: In a step, if a parameter is complex.
        """

class Adagrad(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        lr_decay: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: Scalar = 0.0,
        eps: Scalar = 1e-10,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adagrad as a :class:`torch.optim.Optimizer`; see :func:`adagrad`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            lr_decay: :math:`\eta' \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            initial_accumulator_value: :math:`G_0 \ge 0`.
            eps: :math:`\epsilon \ge 0`.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Adam(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adam as a :class:`torch.optim.Optimizer`; see :func:`adam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
                of tensors shaped like the parameters. Tensors receive gradients.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon`, added outside of the root.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            maximize: Whether to ascend.
            decoupled_weight_decay: Whether to decay as :func:`adamw` does.
            use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
                ``None`` uses them where they are installed and apply, ``False`` never does.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class AdamW(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.01,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""AdamW as a :class:`torch.optim.Optimizer`; see :func:`adamw`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon`, added outside of the root.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Adamax(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.002,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adamax as a :class:`torch.optim.Optimizer`; see :func:`adamax`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Adan(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar, Scalar] = (0.98, 0.92, 0.99),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Adan as a :class:`torch.optim.Optimizer`; see :func:`adan`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2, \beta_3)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Fromage(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Fromage as a :class:`torch.optim.Optimizer`; see :func:`fromage`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If ``lr`` is out of range, or ``update`` has no ``params``.
        """

class LAMB(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-06,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""LAMB as a :class:`torch.optim.Optimizer`; see :func:`lamb`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class LARS(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        momentum: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        trust_coefficient: Scalar = 0.001,
        eps: Scalar = 0.0,
        nesterov: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""LARS as a :class:`torch.optim.Optimizer`; see :func:`lars`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            momentum: :math:`\mu \ge 0`.
            weight_decay: :math:`\lambda`.
            trust_coefficient: :math:`c \ge 0`.
            eps: :math:`\epsilon \ge 0`.
            nesterov: Whether to look ahead.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class LBFGS(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-07,
        tolerance_change: float = 1e-09,
        history_size: int = 100,
        line_search_fn: Literal['strong_wolfe'] | None = None,
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""L-BFGS as a :class:`torch.optim.Optimizer`; see :func:`lbfgs`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: The step size :math:`t`, or the first to try: a number, a 0-dim tensor or a schedule.
            max_iter: The most iterations in a step.
            max_eval: The most evaluations in a step; 1.25 ``max_iter`` by default.
            tolerance_grad: The largest entry of a gradient that is taken for zero.
            tolerance_change: The change of the parameters or of the loss that is taken for none.
            history_size: The number of moves that are remembered.
            line_search_fn: ``"strong_wolfe"`` for a line search, None for steps of fixed size.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is out of range, there is a second parameter group, or nothing to
                evaluate the loss with.
        """

class LaProp(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.0004,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-15,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""LaProp as a :class:`torch.optim.Optimizer`; see :func:`laprop`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Lion(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.0001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.99),
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Lion as a :class:`torch.optim.Optimizer`; see :func:`lion`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes; three to
                ten times smaller than Adam's.
            betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Lookahead(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        inner: GradientTransformation,
        k: int = 5,
        alpha: Scalar = 0.5,
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Lookahead as a :class:`torch.optim.Optimizer`; see :func:`lookahead`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            inner: The optimizer, any transformation. Its state goes on when the weights move.
            k: How many steps it makes between moves of the slow weights.
            alpha: The step size :math:`\alpha` of the slow weights; differentiable if a 0-dim tensor.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class MetaASGD(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        lambd: Scalar = 0.0001,
        alpha: Scalar = 0.75,
        t0: Scalar = 1000000.0,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable ASGD on a module; see :func:`asgd`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule, or a tree with one of
                these tensors for each leaf. As in torch, a change reaches the step after the next.
                A dict gives every parameter its own, by name.
            lambd: :math:`\lambda_0 \ge 0`, how fast the learning rate and the parameters decay.
            alpha: :math:`\alpha \ge 0`.
            t0: The step :math:`t_0` at which the averages begin.
            weight_decay: Coupled to the gradient.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite, or ``update`` has no
                ``params``.
        """

class MetaAdaBelief(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-16,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = True,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable AdaBelief on a module; see :func:`adabelief`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`, added in every step inside of the root and once outside.
            weight_decay: :math:`\lambda`.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdadelta(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 1.0,
        rho: Scalar = 0.9,
        eps: Scalar = 1e-06,
        weight_decay: Scalar = 0.0,
        *,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable Adadelta on a module; see :func:`adadelta`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            rho: :math:`\rho`, in [0, 1).
            eps: :math:`\epsilon`, added inside of both roots.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdafactor(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        beta2_decay: Scalar = -0.8,
        eps: tuple[float | None, Scalar] = (None, 0.001),
        d: Scalar = 1.0,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Adafactor on a module; see :func:`adafactor`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: The largest relative step size :math:`\eta`, in every form that :func:`~torchopt.adam`
                takes.
                A dict gives every parameter its own, by name.
            beta2_decay: :math:`\tau \le 0`.
            eps: :math:`(\epsilon_1, \epsilon_2)`; None for the machine epsilon of the dtype.
            d: The clipping threshold :math:`d \ge 1`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
            RuntimeError: In a step, if a parameter is complex.
        """

class MetaAdagrad(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        lr_decay: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: Scalar = 0.0,
        eps: Scalar = 1e-10,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable Adagrad on a module; see :func:`adagrad`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            lr_decay: :math:`\eta' \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            initial_accumulator_value: :math:`G_0 \ge 0`.
            eps: :math:`\epsilon \ge 0`.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdam(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable Adam on a module; see :func:`adam`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
                of tensors shaped like the parameters. Tensors receive gradients.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon`, added outside of the root.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
            decoupled_weight_decay: Whether to decay as :func:`adamw` does.
            use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
                ``None`` uses them where they are installed and apply, ``False`` never does.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdamW(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.01,
        amsgrad: bool = False,
        *,
        eps_root: Scalar = 0.0,
        mask: Any | Callable[[Params], Any] | None = None,
        moment_requires_grad: bool = False,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable AdamW on a module; see :func:`adamw`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon`, added outside of the root.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdamax(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.002,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        *,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable Adamax on a module; see :func:`adamax`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaAdan(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar, Scalar] = (0.98, 0.92, 0.99),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Adan on a module; see :func:`adan`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2, \beta_3)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaFromage(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        *,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Fromage on a module; see :func:`fromage`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            maximize: Whether to ascend.

        Raises:
            ValueError: If ``lr`` is out of range, or ``update`` has no ``params``.
        """

class MetaLAMB(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-06,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable LAMB on a module; see :func:`lamb`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class MetaLARS(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        momentum: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        trust_coefficient: Scalar = 0.001,
        eps: Scalar = 0.0,
        nesterov: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable LARS on a module; see :func:`lars`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            momentum: :math:`\mu \ge 0`.
            weight_decay: :math:`\lambda`.
            trust_coefficient: :math:`c \ge 0`.
            eps: :math:`\epsilon \ge 0`.
            nesterov: Whether to look ahead.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class MetaLBFGS(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-07,
        tolerance_change: float = 1e-09,
        history_size: int = 100,
        line_search_fn: Literal['strong_wolfe'] | None = None,
    ) -> None:
        r"""Differentiable L-BFGS on a module; see :func:`lbfgs`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: The step size :math:`t`, or the first to try: a number, a 0-dim tensor or a schedule.
                A dict gives every parameter its own, by name.
            max_iter: The most iterations in a step.
            max_eval: The most evaluations in a step; 1.25 ``max_iter`` by default.
            tolerance_grad: The largest entry of a gradient that is taken for zero.
            tolerance_change: The change of the parameters or of the loss that is taken for none.
            history_size: The number of moves that are remembered.
            line_search_fn: ``"strong_wolfe"`` for a line search, None for steps of fixed size.

        Raises:
            ValueError: If a number is out of range, there is a second parameter group, or nothing to
                evaluate the loss with.
        """

class MetaLaProp(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.0004,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-15,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable LaProp on a module; see :func:`laprop`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaLion(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.0001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.99),
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Lion on a module; see :func:`lion`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes; three to
                ten times smaller than Adam's.
                A dict gives every parameter its own, by name.
            betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaLookahead(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        inner: GradientTransformation,
        k: int = 5,
        alpha: Scalar = 0.5,
    ) -> None:
        r"""Differentiable lookahead on a module; see :func:`lookahead`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            inner: The optimizer, any transformation. Its state goes on when the weights move.
            k: How many steps it makes between moves of the slow weights.
            alpha: The step size :math:`\alpha` of the slow weights; differentiable if a 0-dim tensor.

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        """

class MetaMuon(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        weight_decay: Scalar = 0.1,
        momentum: Scalar = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: Literal['original', 'match_rms_adamw'] | None = None,
        *,
        ns_dtype: torch.dtype | None = ...,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Muon on a module; see :func:`muon`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            momentum: :math:`\mu`.
            nesterov: Whether to look ahead.
            ns_coefficients: The coefficients of the iteration.
            eps: The least norm to divide by.
            ns_steps: The number of iterations.
            adjust_lr_fn: The scale :math:`s`: :math:`\sqrt{\max(1, m / n)}` for None and
                ``"original"``, :math:`0.2 \sqrt{\max(m, n)}` for ``"match_rms_adamw"``, with which
                Adam's learning rates can be used.
            ns_dtype: What the iteration computes in: bfloat16 as torch's, which is fast; None for the
                dtype of the gradients, with which derivatives are exact.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range, or a parameter has fewer than two
                dimensions.
            RuntimeError: In a step, if a parameter is complex.
        """

class MetaNAdam(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.002,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        momentum_decay: Scalar = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable NAdam on a module; see :func:`nadam`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`.
            momentum_decay: :math:`\psi \ge 0`, by which the momentum warms up.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaProdigy(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule = 1.0,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        beta3: Scalar | None = None,
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-06,
        d_coef: Scalar = 1.0,
        growth_rate: float = ...,
        *,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Prodigy on a module; see :func:`prodigy`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: The factor :math:`\eta` of the estimated rate: a number, a 0-dim tensor or a schedule.
                Leave it at 1, or anneal it from there.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            beta3: Decay :math:`\beta_3` of the sums; :math:`\sqrt{\beta_2}` by default.
            eps: :math:`\epsilon > 0`.
            weight_decay: :math:`\lambda`.
            decouple: Whether the weight decay bypasses the moments, as in AdamW.
            use_bias_correction: Whether to correct the moments' bias.
            safeguard_warmup: Whether to leave the rate out of the weights of :math:`s_t`, for a
                learning rate that warms up.
            d0: The first estimate :math:`d_0 > 0`.
            d_coef: The factor :math:`c > 0`.
            growth_rate: How much larger the estimate may become in a step.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite, ``update`` has no ``params``,
                or a parameter is of float16.
        """

class MetaQHAdam(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.995, 0.999),
        nus: tuple[Scalar, Scalar] = (0.7, 1.0),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable QHAdam on a module; see :func:`qhadam`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            nus: The weights :math:`(\nu_1, \nu_2)` of the moments; (1, 1) is Adam.
            eps: :math:`\epsilon \ge 0`.
            weight_decay: Needs ``params`` in ``update``.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaQHM(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 1.0,
        momentum: Scalar = 0.999,
        nu: Scalar = 0.7,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable QHM on a module; see :func:`qhm`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            momentum: :math:`\beta`, in [0, 1).
            nu: The weight :math:`\nu` of momentum: 0 for gradient descent, 1 for momentum alone.
            weight_decay: Coupled to the gradient.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaRAdam(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable RAdam on a module; see :func:`radam`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            decoupled_weight_decay: Whether the weight decay bypasses the direction, as in AdamW.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaRMSprop(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        alpha: Scalar = 0.99,
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        momentum: Scalar = 0.0,
        centered: bool = False,
        *,
        initial_scale: Scalar = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable RMSprop on a module; see :func:`rmsprop`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            alpha: :math:`\alpha`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            momentum: :math:`\mu \ge 0`; zero keeps no buffer.
            centered: Whether to estimate the variance instead of the second moment.
            initial_scale: :math:`v_0 \ge 0`.
            nesterov: Whether the momentum looks ahead; needs a momentum.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaRprop(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        etas: tuple[Scalar, Scalar] = (0.5, 1.2),
        step_sizes: tuple[Scalar, Scalar] = (1e-06, 50.0),
        *,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Rprop on a module; see :func:`rprop`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: The first step size :math:`\eta`, in every form that :func:`~torchopt.adam` takes; later
                changes have no effect.
                A dict gives every parameter its own, by name.
            etas: :math:`(\eta_-, \eta_+)` with :math:`0 < \eta_- < 1 < \eta_+`.
            step_sizes: :math:`(\eta_{\min}, \eta_{\max})`.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaSAM(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        inner: GradientTransformation,
        rho: Scalar = 0.05,
        adaptive: bool = False,
    ) -> None:
        r"""Differentiable sharpness-aware minimization on a module; see :func:`sam`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            inner: The optimizer, any transformation.
            rho: The radius :math:`\rho \ge 0`; differentiable if a 0-dim tensor.
            adaptive: Whether the neighbourhood scales with the parameters (ASAM).

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If ``rho`` is negative, or there is no second gradient to be had.
        """

class MetaSGD(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        momentum: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        dampening: Scalar = 0.0,
        nesterov: bool = False,
        moment_requires_grad: bool = True,
        maximize: bool = False,
        *,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""Differentiable stochastic gradient descent on a module; see :func:`sgd`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
                of tensors shaped like the parameters. Tensors receive gradients.
                A dict gives every parameter its own, by name.
            momentum: :math:`\mu`; zero keeps no state.
            weight_decay: :math:`\lambda`.
            dampening: :math:`\tau`, not applied to the first gradient.
            nesterov: Whether to use Nesterov momentum.
            moment_requires_grad: Whether the initial buffer requires a gradient.
            maximize: Whether to ascend.
            use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
                ``None`` uses them where they are installed and apply, ``False`` never does.

        Raises:
            ValueError: If a number is negative or not finite, or Nesterov momentum meets zero momentum
                or dampening.
        """

class MetaScheduleFree(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        inner: GradientTransformation,
        momentum: Scalar = 0.9,
        r: Scalar = 0.0,
        weight_lr_power: Scalar = 2.0,
    ) -> None:
        r"""Differentiable schedule-free averaging on a module; see :func:`schedule_free`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            inner: The optimizer, without momentum of its own: ``torchopt.sgd(lr)`` or
                ``torchopt.adamw(lr, betas=(0.0, 0.999))``. For a warm-up give it a schedule that rises
                and stays.
            momentum: :math:`\beta`, in (0, 1).
            r: The power :math:`r` of the step in the weights.
            weight_lr_power: The power :math:`p` of the learning rate in the weights.

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If a number is outside of its range, ``update`` has no ``params``, or ``inner``
                has no learning rate.
        """

class MetaSignum(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        momentum: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Signum on a module; see :func:`signum`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            momentum: :math:`\beta`, in [0, 1).
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class MetaYogi(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 0.001,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: Scalar = 1e-06,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
    ) -> None:
        r"""Differentiable Yogi on a module; see :func:`yogi`.

        Args:
            module: The module to optimize. Parameters shared by several submodules stay shared.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
                A dict gives every parameter its own, by name.
            betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            initial_accumulator_value: :math:`m_0 = v_0 \ge 0`.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Muon(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        weight_decay: Scalar = 0.1,
        momentum: Scalar = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-07,
        ns_steps: int = 5,
        adjust_lr_fn: Literal['original', 'match_rms_adamw'] | None = None,
        *,
        ns_dtype: torch.dtype | None = ...,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Muon as a :class:`torch.optim.Optimizer`; see :func:`muon`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            momentum: :math:`\mu`.
            nesterov: Whether to look ahead.
            ns_coefficients: The coefficients of the iteration.
            eps: The least norm to divide by.
            ns_steps: The number of iterations.
            adjust_lr_fn: The scale :math:`s`: :math:`\sqrt{\max(1, m / n)}` for None and
                ``"original"``, :math:`0.2 \sqrt{\max(m, n)}` for ``"match_rms_adamw"``, with which
                Adam's learning rates can be used.
            ns_dtype: What the iteration computes in: bfloat16 as torch's, which is fast; None for the
                dtype of the gradients, with which derivatives are exact.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range, or a parameter has fewer than two
                dimensions.
            RuntimeError: In a step, if a parameter is complex.
        """

class NAdam(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.002,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        momentum_decay: Scalar = 0.004,
        decoupled_weight_decay: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""NAdam as a :class:`torch.optim.Optimizer`; see :func:`nadam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`.
            momentum_decay: :math:`\psi \ge 0`, by which the momentum warms up.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Prodigy(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule = 1.0,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        beta3: Scalar | None = None,
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-06,
        d_coef: Scalar = 1.0,
        growth_rate: float = ...,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Prodigy as a :class:`torch.optim.Optimizer`; see :func:`prodigy`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: The factor :math:`\eta` of the estimated rate: a number, a 0-dim tensor or a schedule.
                Leave it at 1, or anneal it from there.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            beta3: Decay :math:`\beta_3` of the sums; :math:`\sqrt{\beta_2}` by default.
            eps: :math:`\epsilon > 0`.
            weight_decay: :math:`\lambda`.
            decouple: Whether the weight decay bypasses the moments, as in AdamW.
            use_bias_correction: Whether to correct the moments' bias.
            safeguard_warmup: Whether to leave the rate out of the weights of :math:`s_t`, for a
                learning rate that warms up.
            d0: The first estimate :math:`d_0 > 0`.
            d_coef: The factor :math:`c > 0`.
            growth_rate: How much larger the estimate may become in a step.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite, ``update`` has no ``params``,
                or a parameter is of float16.
        """

class QHAdam(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.995, 0.999),
        nus: tuple[Scalar, Scalar] = (0.7, 1.0),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""QHAdam as a :class:`torch.optim.Optimizer`; see :func:`qhadam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            nus: The weights :math:`(\nu_1, \nu_2)` of the moments; (1, 1) is Adam.
            eps: :math:`\epsilon \ge 0`.
            weight_decay: Needs ``params`` in ``update``.
            decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class QHM(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 1.0,
        momentum: Scalar = 0.999,
        nu: Scalar = 0.7,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""QHM as a :class:`torch.optim.Optimizer`; see :func:`qhm`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            momentum: :math:`\beta`, in [0, 1).
            nu: The weight :math:`\nu` of momentum: 0 for gradient descent, 1 for momentum alone.
            weight_decay: Coupled to the gradient.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class RAdam(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""RAdam as a :class:`torch.optim.Optimizer`; see :func:`radam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            decoupled_weight_decay: Whether the weight decay bypasses the direction, as in AdamW.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class RMSprop(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        alpha: Scalar = 0.99,
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        momentum: Scalar = 0.0,
        centered: bool = False,
        *,
        initial_scale: Scalar = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""RMSprop as a :class:`torch.optim.Optimizer`; see :func:`rmsprop`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            alpha: :math:`\alpha`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            momentum: :math:`\mu \ge 0`; zero keeps no buffer.
            centered: Whether to estimate the variance instead of the second moment.
            initial_scale: :math:`v_0 \ge 0`.
            nesterov: Whether the momentum looks ahead; needs a momentum.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Rprop(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        etas: tuple[Scalar, Scalar] = (0.5, 1.2),
        step_sizes: tuple[Scalar, Scalar] = (1e-06, 50.0),
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Rprop as a :class:`torch.optim.Optimizer`; see :func:`rprop`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: The first step size :math:`\eta`, in every form that :func:`~torchopt.adam` takes; later
                changes have no effect.
            etas: :math:`(\eta_-, \eta_+)` with :math:`0 < \eta_- < 1 < \eta_+`.
            step_sizes: :math:`(\eta_{\min}, \eta_{\max})`.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class SAM(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        inner: GradientTransformation,
        rho: Scalar = 0.05,
        adaptive: bool = False,
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Sharpness-aware minimization as a :class:`torch.optim.Optimizer`; see :func:`sam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            inner: The optimizer, any transformation.
            rho: The radius :math:`\rho \ge 0`; differentiable if a 0-dim tensor.
            adaptive: Whether the neighbourhood scales with the parameters (ASAM).
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If ``rho`` is negative, or there is no second gradient to be had.
        """

class SGD(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        momentum: Scalar = 0.0,
        weight_decay: Scalar = 0.0,
        dampening: Scalar = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        *,
        use_accelerated_op: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Stochastic gradient descent as a :class:`torch.optim.Optimizer`; see :func:`sgd`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
                of tensors shaped like the parameters. Tensors receive gradients.
            momentum: :math:`\mu`; zero keeps no state.
            weight_decay: :math:`\lambda`.
            dampening: :math:`\tau`, not applied to the first gradient.
            nesterov: Whether to use Nesterov momentum.
            maximize: Whether to ascend.
            use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
                ``None`` uses them where they are installed and apply, ``False`` never does.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is negative or not finite, or Nesterov momentum meets zero momentum
                or dampening.
        """

class ScheduleFree(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        inner: GradientTransformation,
        momentum: Scalar = 0.9,
        r: Scalar = 0.0,
        weight_lr_power: Scalar = 2.0,
        *,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Schedule-free averaging as a :class:`torch.optim.Optimizer`; see :func:`schedule_free`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            inner: The optimizer, without momentum of its own: ``torchopt.sgd(lr)`` or
                ``torchopt.adamw(lr, betas=(0.0, 0.999))``. For a warm-up give it a schedule that rises
                and stays.
            momentum: :math:`\beta`, in (0, 1).
            r: The power :math:`r` of the step in the weights.
            weight_lr_power: The power :math:`p` of the learning rate in the weights.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            TypeError: If ``inner`` is not a transformation.
            ValueError: If a number is outside of its range, ``update`` has no ``params``, or ``inner``
                has no learning rate.
        """

class Signum(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        momentum: Scalar = 0.9,
        weight_decay: Scalar = 0.0,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Signum as a :class:`torch.optim.Optimizer`; see :func:`signum`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            momentum: :math:`\beta`, in [0, 1).
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """

class Yogi(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.01,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 0.001,
        weight_decay: Scalar = 0.0,
        initial_accumulator_value: Scalar = 1e-06,
        *,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        r"""Yogi as a :class:`torch.optim.Optimizer`; see :func:`yogi`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            initial_accumulator_value: :math:`m_0 = v_0 \ge 0`.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            foreach: Accepted as by `torch.optim`; results do not depend on it.
            capturable: Likewise.
            differentiable: Likewise, but for True, which is refused: the differentiable form of the
                optimizer is a class of its own.
            fused: Likewise; for fused steps install `torchopt-accel`.

        Raises:
            ValueError: If a number is outside of its range or not finite.
        """
