"""Differentiable optimizers of modules."""

from torchopt.optim._meta import MetaOptimizer
from torchopt.optim.adadelta import MetaAdaDelta, MetaAdadelta
from torchopt.optim.adagrad import MetaAdaGrad, MetaAdagrad
from torchopt.optim.adam import MetaAdam, MetaAdamW
from torchopt.optim.adamax import MetaAdaMax, MetaAdamax
from torchopt.optim.radam import MetaRAdam
from torchopt.optim.rmsprop import MetaRMSProp, MetaRMSprop
from torchopt.optim.sgd import MetaSGD

__all__ = [
    "MetaAdaDelta",
    "MetaAdaGrad",
    "MetaAdaMax",
    "MetaAdadelta",
    "MetaAdagrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaAdamax",
    "MetaOptimizer",
    "MetaRAdam",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
]
