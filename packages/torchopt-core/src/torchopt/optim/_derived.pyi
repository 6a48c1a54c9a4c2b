# Written by stubs.py (`nox -s stubs`): do not edit.

from collections.abc import Callable
from torch import nn
from torch.optim.optimizer import ParamsT
from torchopt.optim._meta import DerivedMetaOptimizer
from torchopt.optim.base import DerivedOptimizer
from torchopt.typing import Params
from torchopt.typing import Scalar
from torchopt.typing import ScalarOrSchedule
from torchopt.typing import TensorTree
from typing import Any

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

        Raises:
            ValueError: If a number is outside of its range or not finite.
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
        *,
        eps_root: Scalar = 0.0,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
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
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            maximize: Whether to ascend.
            use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
                ``None`` uses them where they are installed and apply, ``False`` never does.

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
        *,
        eps_root: Scalar = 0.0,
        mask: Any | Callable[[Params], Any] | None = None,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""AdamW as a :class:`torch.optim.Optimizer`; see :func:`adamw`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon`, added outside of the root.
            weight_decay: :math:`\lambda`, decoupled from the gradient.
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
                parameters to one; all by default.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`adam`.

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
        *,
        eps_root: Scalar = 0.0,
        moment_requires_grad: bool = True,
        maximize: bool = False,
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
            eps_root: :math:`\bar\epsilon`, added inside of the root.
            moment_requires_grad: Whether the initial moments require gradients.
            maximize: Whether to ascend.
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

class MetaRAdam(DerivedMetaOptimizer):
    def __init__(
        self,
        module: nn.Module,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
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

class RAdam(DerivedOptimizer):
    def __init__(
        self,
        params: ParamsT,
        lr: ScalarOrSchedule | TensorTree = 0.001,
        betas: tuple[Scalar, Scalar] = (0.9, 0.999),
        eps: Scalar = 1e-08,
        weight_decay: Scalar = 0.0,
        *,
        maximize: bool = False,
        use_accelerated_op: bool | None = None,
    ) -> None:
        r"""RAdam as a :class:`torch.optim.Optimizer`; see :func:`radam`.

        Args:
            params: Parameters, named parameters, or dicts that define parameter groups; a group may
                override hyperparameters.
            lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
            betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
            eps: :math:`\epsilon \ge 0`.
            weight_decay: :math:`\lambda`, coupled to the gradient.
            maximize: Whether to ascend.
            use_accelerated_op: As in :func:`~torchopt.adam`.

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

        Raises:
            ValueError: If a number is outside of its range or not finite.
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

        Raises:
            ValueError: If a number is negative or not finite, or Nesterov momentum meets zero momentum
                or dampening.
        """
