"""Optimizers in their functional form."""

from torchopt.optim.adabelief import adabelief
from torchopt.optim.adadelta import adadelta
from torchopt.optim.adafactor import adafactor
from torchopt.optim.adagrad import adagrad
from torchopt.optim.adam import adam, adamw
from torchopt.optim.adamax import adamax
from torchopt.optim.adan import adan
from torchopt.optim.asgd import asgd
from torchopt.optim.laprop import laprop
from torchopt.optim.layerwise import fromage, lamb, lars
from torchopt.optim.lbfgs import lbfgs
from torchopt.optim.lion import lion
from torchopt.optim.lookahead import lookahead
from torchopt.optim.muon import muon
from torchopt.optim.nadam import nadam
from torchopt.optim.prodigy import prodigy
from torchopt.optim.quasi_hyperbolic import qhadam, qhm
from torchopt.optim.radam import radam
from torchopt.optim.rmsprop import rmsprop
from torchopt.optim.rprop import rprop
from torchopt.optim.sam import sam
from torchopt.optim.schedule_free import schedule_free
from torchopt.optim.sgd import sgd
from torchopt.optim.signum import signum
from torchopt.optim.yogi import yogi

__all__ = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "adan",
    "asgd",
    "fromage",
    "lamb",
    "laprop",
    "lars",
    "lbfgs",
    "lion",
    "lookahead",
    "muon",
    "nadam",
    "prodigy",
    "qhadam",
    "qhm",
    "radam",
    "rmsprop",
    "rprop",
    "sam",
    "schedule_free",
    "sgd",
    "signum",
    "yogi",
]
