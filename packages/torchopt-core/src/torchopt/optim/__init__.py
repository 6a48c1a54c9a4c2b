"""Optimizers as :class:`torch.optim.Optimizer`, and :class:`FuncOptimizer` for trees."""

from torchopt.optim import meta
from torchopt.optim._stateful import Optimizer
from torchopt.optim.adabelief import AdaBelief
from torchopt.optim.adadelta import AdaDelta, Adadelta
from torchopt.optim.adafactor import Adafactor
from torchopt.optim.adagrad import AdaGrad, Adagrad
from torchopt.optim.adam import Adam, AdamW
from torchopt.optim.adamax import AdaMax, Adamax
from torchopt.optim.adan import Adan
from torchopt.optim.asgd import ASGD
from torchopt.optim.func import FuncOptimizer
from torchopt.optim.laprop import LaProp
from torchopt.optim.layerwise import LAMB, LARS, Fromage
from torchopt.optim.lbfgs import LBFGS
from torchopt.optim.lion import Lion
from torchopt.optim.lookahead import Lookahead
from torchopt.optim.muon import Muon
from torchopt.optim.nadam import NAdam
from torchopt.optim.prodigy import Prodigy
from torchopt.optim.quasi_hyperbolic import QHM, QHAdam
from torchopt.optim.radam import RAdam
from torchopt.optim.rmsprop import RMSProp, RMSprop
from torchopt.optim.rprop import Rprop
from torchopt.optim.sam import SAM
from torchopt.optim.schedule_free import ScheduleFree
from torchopt.optim.sgd import SGD
from torchopt.optim.signum import Signum
from torchopt.optim.yogi import Yogi

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "QHM",
    "SAM",
    "SGD",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Fromage",
    "FuncOptimizer",
    "LaProp",
    "Lion",
    "Lookahead",
    "Muon",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSProp",
    "RMSprop",
    "Rprop",
    "ScheduleFree",
    "Signum",
    "Yogi",
    "meta",
]
