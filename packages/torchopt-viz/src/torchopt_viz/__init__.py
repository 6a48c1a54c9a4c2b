"""See the gradient flow, see the optimizer move: graphs and trajectories as pictures.

:func:`gradient_graph` describes the graph that a backward pass goes through. :func:`record` watches
the computation first, so that modules, source lines and the places where gradients stop are known.
:func:`make_dot` draws the graph, :func:`save_html` writes it as a page to explore.

:func:`plot_trajectory` runs optimizers on one of the :data:`test_functions` and draws their path.
:func:`plot_inner_losses` and :func:`plot_learning_rates` show what meta-learning does.
"""

from torchopt_viz._collect import gradient_graph
from torchopt_viz._dot import make_dot, resize_graph
from torchopt_viz._functions import TestFunction, test_functions
from torchopt_viz._graph import Graph, Group, Memory, Node, Repeat, Saved
from torchopt_viz._meta_plots import plot_inner_losses, plot_learning_rates
from torchopt_viz._page import save_html
from torchopt_viz._plot_trajectory import TrajectoryPlot, plot_trajectory, test_optim
from torchopt_viz._record import record
from torchopt_viz._recording import Cut, Recording
from torchopt_viz._style import TrajectoryStyle
from torchopt_viz._trajectory import NonFiniteStepWarning, Trajectory, run_trajectory

__all__ = [
    "Cut",
    "Graph",
    "Group",
    "Memory",
    "Node",
    "NonFiniteStepWarning",
    "Recording",
    "Repeat",
    "Saved",
    "TestFunction",
    "Trajectory",
    "TrajectoryPlot",
    "TrajectoryStyle",
    "gradient_graph",
    "make_dot",
    "plot_inner_losses",
    "plot_learning_rates",
    "plot_trajectory",
    "record",
    "resize_graph",
    "run_trajectory",
    "save_html",
    "test_functions",
    "test_optim",
]
