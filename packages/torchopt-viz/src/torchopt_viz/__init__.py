"""See the gradient flow, see the optimizer move: graphs and trajectories as pictures."""
