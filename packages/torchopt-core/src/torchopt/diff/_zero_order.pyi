# Written by stubs.py (`nox -s stubs`): do not edit.

from types import ModuleType
import torchopt_zero

class ZeroOrder(ModuleType):
    Antithetic = torchopt_zero.Antithetic
    Diagnostics = torchopt_zero.Diagnostics
    Estimator = torchopt_zero.Estimator
    FiniteDifference = torchopt_zero.FiniteDifference
    Forward = torchopt_zero.Forward
    Gaussian = torchopt_zero.Gaussian
    GuidedES = torchopt_zero.GuidedES
    LeaveOneOut = torchopt_zero.LeaveOneOut
    LinearControl = torchopt_zero.LinearControl
    LowRank = torchopt_zero.LowRank
    MeZO = torchopt_zero.MeZO
    Naive = torchopt_zero.Naive
    Noise = torchopt_zero.Noise
    NoiseReuseES = torchopt_zero.NoiseReuseES
    Orthogonal = torchopt_zero.Orthogonal
    PersistentES = torchopt_zero.PersistentES
    Rademacher = torchopt_zero.Rademacher
    RankShaped = torchopt_zero.RankShaped
    SPSA = torchopt_zero.SPSA
    Sobol = torchopt_zero.Sobol
    Workers = torchopt_zero.Workers
    ZeroOrderGradientModule = torchopt_zero.ZeroOrderGradientModule
    diagnose = staticmethod(torchopt_zero.diagnose)
    class DiscreteModule(ModuleType):
        Blackbox = torchopt_zero.discrete.Blackbox
        Perturbed = torchopt_zero.discrete.Perturbed
        Solver = torchopt_zero.discrete.Solver
        argmax = staticmethod(torchopt_zero.discrete.argmax)
        assignment = staticmethod(torchopt_zero.discrete.assignment)
        fenchel_young_loss = staticmethod(torchopt_zero.discrete.fenchel_young_loss)
        gumbel_softmax = staticmethod(torchopt_zero.discrete.gumbel_softmax)
        ranking = staticmethod(torchopt_zero.discrete.ranking)
        shortest_path = staticmethod(torchopt_zero.discrete.shortest_path)
        sorting = staticmethod(torchopt_zero.discrete.sorting)
        sorting_scores = staticmethod(torchopt_zero.discrete.sorting_scores)
        straight_through = staticmethod(torchopt_zero.discrete.straight_through)
        straight_through_bernoulli = staticmethod(torchopt_zero.discrete.straight_through_bernoulli)
        straight_through_categorical = staticmethod(torchopt_zero.discrete.straight_through_categorical)
    discrete: DiscreteModule
    enable_zero_order_gradients = staticmethod(torchopt_zero.enable_zero_order_gradients)
    zero_order = staticmethod(torchopt_zero.zero_order)
    __call__ = staticmethod(torchopt_zero.zero_order)
