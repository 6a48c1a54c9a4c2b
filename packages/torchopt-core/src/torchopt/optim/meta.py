"""Differentiable optimizers of modules."""

from torchopt.optim._meta import MetaOptimizer
from torchopt.optim.adabelief import MetaAdaBelief
from torchopt.optim.adadelta import MetaAdaDelta, MetaAdadelta
from torchopt.optim.adafactor import MetaAdafactor
from torchopt.optim.adagrad import MetaAdaGrad, MetaAdagrad
from torchopt.optim.adam import MetaAdam, MetaAdamW
from torchopt.optim.adamax import MetaAdaMax, MetaAdamax
from torchopt.optim.adan import MetaAdan
from torchopt.optim.asgd import MetaASGD
from torchopt.optim.laprop import MetaLaProp
from torchopt.optim.layerwise import MetaFromage, MetaLAMB, MetaLARS
from torchopt.optim.lbfgs import MetaLBFGS
from torchopt.optim.lion import MetaLion
from torchopt.optim.lookahead import MetaLookahead
from torchopt.optim.muon import MetaMuon
from torchopt.optim.nadam import MetaNAdam
from torchopt.optim.prodigy import MetaProdigy
from torchopt.optim.quasi_hyperbolic import MetaQHAdam, MetaQHM
from torchopt.optim.radam import MetaRAdam
from torchopt.optim.rmsprop import MetaRMSProp, MetaRMSprop
from torchopt.optim.rprop import MetaRprop
from torchopt.optim.sam import MetaSAM
from torchopt.optim.schedule_free import MetaScheduleFree
from torchopt.optim.sgd import MetaSGD
from torchopt.optim.signum import MetaSignum
from torchopt.optim.yogi import MetaYogi

__all__ = [
    "MetaASGD",
    "MetaAdaBelief",
    "MetaAdaDelta",
    "MetaAdaGrad",
    "MetaAdaMax",
    "MetaAdadelta",
    "MetaAdafactor",
    "MetaAdagrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaAdamax",
    "MetaAdan",
    "MetaFromage",
    "MetaLAMB",
    "MetaLARS",
    "MetaLBFGS",
    "MetaLaProp",
    "MetaLion",
    "MetaLookahead",
    "MetaMuon",
    "MetaNAdam",
    "MetaOptimizer",
    "MetaProdigy",
    "MetaQHAdam",
    "MetaQHM",
    "MetaRAdam",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaRprop",
    "MetaSAM",
    "MetaSGD",
    "MetaScheduleFree",
    "MetaSignum",
    "MetaYogi",
]
