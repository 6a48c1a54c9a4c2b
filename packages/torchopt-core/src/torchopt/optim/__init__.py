"""Optimizers as :class:`torch.optim.Optimizer`, and :class:`FuncOptimizer` for trees."""

from torchopt.optim import meta
from torchopt.optim.adadelta import AdaDelta, Adadelta
from torchopt.optim.adagrad import AdaGrad, Adagrad
from torchopt.optim.adam import Adam, AdamW
from torchopt.optim.adamax import AdaMax, Adamax
from torchopt.optim.base import Optimizer
from torchopt.optim.func import FuncOptimizer
from torchopt.optim.radam import RAdam
from torchopt.optim.rmsprop import RMSProp, RMSprop
from torchopt.optim.sgd import SGD

__all__ = [
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FuncOptimizer",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "RMSprop",
    "meta",
]
