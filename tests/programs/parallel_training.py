"""Many small networks trained at once on two spirals: the whole training step under ``vmap``."""

import functorch
import torch
import torch.nn as nn
import torch.nn.functional as F

import torchopt


class MLPClassifier(nn.Module):
    def __init__(self, hidden_dim=16, n_classes=2):
        super().__init__()
        self.fc1 = nn.Linear(2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, n_classes)

    def forward(self, x):
        x = torch.tanh(self.fc1(x))
        return F.log_softmax(self.fc2(x), -1)


def make_spirals(n_samples, noise_std=0.0, rotations=1.0):
    ts = torch.linspace(0, 1, n_samples)
    rs = ts**0.5
    thetas = rs * rotations * 2 * torch.pi
    signs = torch.randint(0, 2, (n_samples,)) * 2 - 1
    labels = (signs > 0).to(torch.long)
    xs = rs * signs * torch.cos(thetas) + torch.randn(n_samples) * noise_std
    ys = rs * signs * torch.sin(thetas) + torch.randn(n_samples) * noise_std
    return torch.stack([xs, ys], dim=1), labels


torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
points, labels = make_spirals(100, noise_std=0.05)
loss_fn = nn.NLLLoss()
func_model, _ = functorch.make_functional(MLPClassifier())
optimizer = torchopt.adam(lr=0.05)


def train_step_fn(training_state, batch):
    weights, opt_state = training_state
    points, labels = batch

    def compute_loss(weights):
        output = func_model(weights, points)
        return loss_fn(output, labels)

    grad_weights, loss = functorch.grad_and_value(compute_loss)(weights)
    updates, opt_state = optimizer.update(grad_weights, opt_state, inplace=False)
    new_weights = torchopt.apply_updates(weights, updates, inplace=False)
    return loss, (new_weights, opt_state)


# one network
_, weights = functorch.make_functional(MLPClassifier())
weights = tuple(w.detach() for w in weights)
training_state = (weights, optimizer.init(weights))
for step in range(20):
    loss, training_state = train_step_fn(training_state, (points, labels))
print(f"one network: loss {loss.item():.14g}")


# an ensemble, each member on the data and from weights of its own
def init_fn(models):
    _, params, _ = functorch.combine_state_for_ensemble(models)
    params = tuple(p.detach() for p in params)
    return params, functorch.vmap(optimizer.init)(params)


parallel_train_step_fn = functorch.vmap(train_step_fn, in_dims=(0, None))
training_state = init_fn([MLPClassifier() for _ in range(4)])
for step in range(20):
    losses, training_state = parallel_train_step_fn(training_state, (points, labels))
print("same data: losses", *(f"{loss:.14g}" for loss in losses.tolist()))

# bootstrap: each member draws the points that it sees
indices = torch.randint(0, 100, (4, 100))
batches = (points[indices], labels[indices])
bootstrap_train_step_fn = functorch.vmap(train_step_fn, in_dims=(0, 0))
training_state = init_fn([MLPClassifier() for _ in range(4)])
for step in range(20):
    losses, training_state = bootstrap_train_step_fn(training_state, batches)
print("bootstrap: losses", *(f"{loss:.14g}" for loss in losses.tolist()))

ensemble = functorch.vmap(func_model, in_dims=(0, None))(training_state[0], points)
print(f"accuracy {(ensemble.mean(0).argmax(-1) == labels).double().mean().item():.14g}")
