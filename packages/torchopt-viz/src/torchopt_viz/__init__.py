"""See the gradient flow, see the optimizer move: graphs and trajectories as pictures."""

from torchopt_viz._functions import TestFunction, test_functions
from torchopt_viz._meta_plots import plot_inner_losses, plot_learning_rates
from torchopt_viz._plot_trajectory import TrajectoryPlot, plot_trajectory, test_optim
from torchopt_viz._trajectory import NonFiniteStepWarning, Trajectory, run_trajectory

__all__ = [
    "NonFiniteStepWarning",
    "TestFunction",
    "Trajectory",
    "TrajectoryPlot",
    "plot_inner_losses",
    "plot_learning_rates",
    "plot_trajectory",
    "run_trajectory",
    "test_functions",
    "test_optim",
]
