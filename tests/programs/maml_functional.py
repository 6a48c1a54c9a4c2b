"""Few-shot classification by functional MAML (Finn, Abbeel, Levine 2017), tasks under ``vmap``."""

import functools

import functorch
import torch
import torch.nn as nn
import torch.nn.functional as F

import torchopt


class Tasks:
    """Each class is a direction in space, seen with noise: an N-way K-shot episode is `next`."""

    def __init__(self, batchsz, n_way, k_shot, k_query, dim=8, n_classes=20):
        self.centers = torch.randn(n_classes, dim)
        self.batchsz, self.n_way, self.k_shot, self.k_query = batchsz, n_way, k_shot, k_query

    def next(self):
        xs, ys = [], []
        for _ in range(self.batchsz):
            classes = torch.randperm(len(self.centers))[: self.n_way]
            y = torch.arange(self.n_way).repeat(self.k_shot + self.k_query)
            x = self.centers[classes][y]
            xs.append(x + 0.5 * torch.randn_like(x))
            ys.append(y)
        x, y = torch.stack(xs), torch.stack(ys)
        n = self.n_way * self.k_shot
        return x[:, :n], y[:, :n], x[:, n:], y[:, n:]


def loss_for_task(net, n_inner_iter, x_spt, y_spt, x_qry, y_qry):
    params, buffers, fnet = net

    def compute_loss(new_params, buffers, x, y):
        logits = fnet(new_params, buffers, x)
        return F.cross_entropy(logits, y)

    diffopt = torchopt.sgd(lr=1e-1)
    opt_state = diffopt.init(params)
    new_params = params
    for _ in range(n_inner_iter):
        grads = functorch.grad(compute_loss)(new_params, buffers, x_spt, y_spt)
        updates, opt_state = diffopt.update(grads, opt_state, inplace=False)
        new_params = torchopt.apply_updates(new_params, updates, inplace=False)

    # the final set of adapted parameters induces some final loss and accuracy on the query set
    qry_logits = fnet(new_params, buffers, x_qry)
    qry_loss = F.cross_entropy(qry_logits, y_qry)
    qry_acc = (qry_logits.argmax(dim=1) == y_qry).sum() / y_qry.shape[0]
    return qry_loss, qry_acc


def train(db, net, meta_opt, meta_opt_state, epoch, n_train_iter):
    params, buffers, fnet = net
    qry_losses, qry_accs = [], []
    for _ in range(n_train_iter):
        x_spt, y_spt, x_qry, y_qry = db.next()
        # In parallel, train one MAML per task
        compute_loss_for_task = functools.partial(loss_for_task, net, 5)
        losses, accs = functorch.vmap(compute_loss_for_task)(x_spt, y_spt, x_qry, y_qry)
        loss = losses.mean()
        grads = torch.autograd.grad(loss, params)
        updates, meta_opt_state = meta_opt.update(grads, meta_opt_state)
        params = torchopt.apply_updates(params, updates)
        qry_losses.append(loss.item())
        qry_accs.append(accs.mean().item())
    print(
        f"epoch {epoch} loss {sum(qry_losses) / n_train_iter:.14g} "
        f"acc {100 * sum(qry_accs) / n_train_iter:.14g}"
    )
    return (params, buffers, fnet), meta_opt_state


def test(db, net, epoch, n_test_iter):
    losses, accs = [], []
    for _ in range(n_test_iter):
        for task in zip(*db.next()):
            loss, acc = loss_for_task(net, 5, *task)
            losses.append(loss.item())
            accs.append(acc.item())
    print(
        f"epoch {epoch} test loss {sum(losses) / len(losses):.14g} "
        f"acc {100 * sum(accs) / len(accs):.14g}"
    )


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    n_way = 3
    db = Tasks(4, n_way, k_shot=1, k_query=5)
    net = nn.Sequential(
        nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, n_way),
    )  # fmt: skip
    fnet, params, buffers = functorch.make_functional_with_buffers(net)
    net = (params, buffers, fnet)
    meta_opt = torchopt.adam(lr=1e-2)
    meta_opt_state = meta_opt.init(params)
    for epoch in range(2):
        net, meta_opt_state = train(db, net, meta_opt, meta_opt_state, epoch, n_train_iter=10)
        test(db, net, epoch, n_test_iter=2)


if __name__ == "__main__":
    main()
