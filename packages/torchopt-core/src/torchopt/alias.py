"""Optimizers in their functional form."""

from torchopt.optim.adadelta import adadelta
from torchopt.optim.adagrad import adagrad
from torchopt.optim.adam import adam, adamw
from torchopt.optim.adamax import adamax
from torchopt.optim.radam import radam
from torchopt.optim.rmsprop import rmsprop
from torchopt.optim.sgd import sgd

__all__ = ["adadelta", "adagrad", "adam", "adamax", "adamw", "radam", "rmsprop", "sgd"]
