"""MAML for reinforcement learning (Finn, Abbeel, Levine 2017) on tabular Markov processes."""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.optim as optim
from torch.distributions import Categorical

import torchopt

TASK_NUM, TRAJ_NUM, TRAJ_LEN = 4, 10, 10
STATE_DIM, ACTION_DIM = 10, 5
GAMMA, LAMBDA = 0.99, 0.95


class Traj(NamedTuple):
    obs: torch.Tensor
    acs: torch.Tensor
    next_obs: torch.Tensor
    rews: torch.Tensor
    gammas: torch.Tensor


class TabularMDP:
    """Duan et al. 2016: rewards have means N(1, 1), transitions are drawn from a flat Dirichlet."""

    def __init__(self):
        self.transitions = torch.distributions.Dirichlet(torch.ones(STATE_DIM)).sample(
            (STATE_DIM, ACTION_DIM)
        )
        self.means = 1 + torch.randn(STATE_DIM, ACTION_DIM)

    def step(self, state, action):
        rew = self.means[state, action] + torch.randn(len(state))
        return Categorical(self.transitions[state, action]).sample(), rew


class CategoricalMLPPolicy(nn.Module):
    def __init__(self, input_size, output_size):
        super().__init__()
        self.torso = nn.Sequential(nn.Linear(input_size, 32), nn.ReLU())
        self.policy_head = nn.Linear(32, output_size)
        self.value_head = nn.Linear(32, 1)

    def forward(self, inputs):
        embedding = self.torso(nn.functional.one_hot(inputs, STATE_DIM).to(torch.float64))
        return Categorical(logits=self.policy_head(embedding)), self.value_head(embedding)


def sample_traj(env, policy):
    ob = torch.zeros(TRAJ_NUM, dtype=torch.long)
    columns = []
    for _ in range(TRAJ_LEN):
        with torch.no_grad():
            pi, _ = policy(ob)
        ac = pi.sample()
        next_ob, rew = env.step(ob, ac)
        columns.append((ob, ac, next_ob, rew, GAMMA * torch.ones(TRAJ_NUM)))
        ob = next_ob
    return Traj(*(torch.stack(column) for column in zip(*columns)))


def a2c_loss(traj, policy, value_coef):
    pi, values = policy(traj.obs)
    log_probs = pi.log_prob(traj.acs)
    values = values.squeeze(-1)
    with torch.no_grad():
        _, next_values = policy(traj.next_obs)
        next_values = next_values.squeeze(-1)
        # generalized advantages
        advantages = torch.zeros(TRAJ_LEN + 1, TRAJ_NUM)
        for t in reversed(range(TRAJ_LEN)):
            delta = traj.rews[t] + traj.gammas[t] * next_values[t] - values[t]
            advantages[t] = delta + LAMBDA * traj.gammas[t] * advantages[t + 1]
    returns = advantages[:-1] + values.detach()
    action_loss = -(log_probs * advantages[:-1]).mean()
    value_loss = value_coef * (values - returns).square().mean()
    return action_loss + value_loss


def evaluate(tasks, policy):
    inner_opt = torchopt.MetaSGD(policy, lr=0.1)
    pre_rews, post_rews = [], []
    policy_state_dict = torchopt.extract_state_dict(policy)
    optim_state_dict = torchopt.extract_state_dict(inner_opt)
    for env in tasks:
        pre_trajs = sample_traj(env, policy)
        inner_opt.step(a2c_loss(pre_trajs, policy, value_coef=0.5))
        post_trajs = sample_traj(env, policy)
        pre_rews.append(pre_trajs.rews.sum(0).mean().item())
        post_rews.append(post_trajs.rews.sum(0).mean().item())
        torchopt.recover_state_dict(policy, policy_state_dict)
        torchopt.recover_state_dict(inner_opt, optim_state_dict)
    return sum(pre_rews) / len(tasks), sum(post_rews) / len(tasks)


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    policy = CategoricalMLPPolicy(STATE_DIM, ACTION_DIM)
    inner_opt = torchopt.MetaSGD(policy, lr=0.1)
    outer_opt = optim.Adam(policy.parameters(), lr=1e-2)
    for i in range(3):
        tasks = [TabularMDP() for _ in range(TASK_NUM)]
        outer_opt.zero_grad()
        policy_state_dict = torchopt.extract_state_dict(policy)
        optim_state_dict = torchopt.extract_state_dict(inner_opt)
        outer_losses = []
        for env in tasks:
            inner_opt.step(a2c_loss(sample_traj(env, policy), policy, value_coef=0.5))
            outer_loss = a2c_loss(sample_traj(env, policy), policy, value_coef=0.5)
            outer_losses.append(outer_loss)
            torchopt.recover_state_dict(policy, policy_state_dict)
            torchopt.recover_state_dict(inner_opt, optim_state_dict)
        torch.mean(torch.stack(outer_losses)).backward()
        norm = torch.cat([p.grad.flatten() for p in policy.parameters()]).norm()
        outer_opt.step()
        pre, post = evaluate(tasks, policy)
        print(f"iteration {i} meta-gradient {norm.item():.14g} pre {pre:.14g} post {post:.14g}")


if __name__ == "__main__":
    main()
