"""LOLA-DiCE (Foerster et al. 2018) on the iterated prisoner's dilemma, with sampled rollouts."""

import torch
import torch.nn as nn

import torchopt

GAMMA, LEN_ROLLOUT, BATCH_SIZE = 0.96, 20, 32


class IPD:
    """States: the start, and CC, CD, DC, DD as the first player sees them."""

    def __init__(self):
        self.payout = torch.tensor([[-1.0, -3.0], [0.0, -2.0]])

    def reset(self):
        zeros = torch.zeros(BATCH_SIZE, dtype=torch.long)
        return zeros, zeros

    def step(self, ac0, ac1):
        s0, s1 = 1 + 2 * ac0 + ac1, 1 + 2 * ac1 + ac0
        return (s0, s1), (self.payout[ac0, ac1], self.payout[ac1, ac0])


class ThetaModel(nn.Module):
    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta.detach().clone())


def magic_box(x):
    return torch.exp(x - x.detach())


class Memory:
    def __init__(self):
        self.self_logprobs, self.other_logprobs, self.values, self.rewards = [], [], [], []

    def add(self, lp, other_lp, v, r):
        self.self_logprobs.append(lp)
        self.other_logprobs.append(other_lp)
        self.values.append(v)
        self.rewards.append(r)

    def dice_objective(self, use_baseline=True):
        self_logprobs = torch.stack(self.self_logprobs, dim=1)
        other_logprobs = torch.stack(self.other_logprobs, dim=1)
        values = torch.stack(self.values, dim=1)
        rewards = torch.stack(self.rewards, dim=1)

        # apply discount
        cum_discount = torch.cumprod(GAMMA * torch.ones(rewards.size()), dim=1) / GAMMA
        discounted_rewards = rewards * cum_discount
        discounted_values = values * cum_discount

        # stochastic nodes involved in rewards' dependencies
        dependencies = torch.cumsum(self_logprobs + other_logprobs, dim=1)
        # logprob of all stochastic nodes
        stochastic_nodes = self_logprobs + other_logprobs
        # dice objective
        dice_objective = torch.mean(torch.sum(magic_box(dependencies) * discounted_rewards, dim=1))
        if use_baseline:
            # variance reduction
            baseline_term = torch.mean(
                torch.sum((1 - magic_box(stochastic_nodes)) * discounted_values, dim=1)
            )
            dice_objective = dice_objective + baseline_term
        return -dice_objective  # want to minimize -objective

    def value_loss(self):
        values = torch.stack(self.values, dim=1)
        rewards = torch.stack(self.rewards, dim=1)
        return torch.mean((rewards - values) ** 2)


def act(states, theta, values):
    probs = torch.sigmoid(theta)[states]  # of cooperating
    m = torch.distributions.Bernoulli(1 - probs)
    actions = m.sample()
    return actions.long(), m.log_prob(actions), values[states]


def rollout(ipd, agents, thetas):
    memories = Memory(), Memory()
    s0, s1 = ipd.reset()
    score = 0.0
    for _ in range(LEN_ROLLOUT):
        a0, lp0, v0 = act(s0, thetas[0], agents[0].values)
        a1, lp1, v1 = act(s1, thetas[1], agents[1].values)
        (s0, s1), (r0, r1) = ipd.step(a0, a1)
        memories[0].add(lp0, lp1, v0, r0)
        memories[1].add(lp1, lp0, v1, r1)
        score += torch.stack([r0.mean(), r1.mean()]) / LEN_ROLLOUT
    return memories, score


class Agent:
    def __init__(self):
        # init theta and its optimizer
        self.theta = ThetaModel(0.5 * torch.randn(5))
        self.theta_optimizer = torchopt.Adam(self.theta.parameters(), lr=0.2)
        # init values and its optimizer
        self.values = nn.Parameter(torch.zeros(5))
        self.value_optimizer = torch.optim.Adam([self.values], lr=0.1)
        # a copy of the other agent, which learns in the look-ahead
        self.virtual_theta = ThetaModel(self.theta.theta)
        self.virtual_optimizer = torchopt.MetaSGD(self.virtual_theta, lr=0.3)

    def set_virtual(self, other):
        self.virtual_theta = ThetaModel(other.theta.theta)
        self.virtual_optimizer = torchopt.MetaSGD(self.virtual_theta, lr=0.3)


def play(agents, ipd, n_lookaheads, n_update):
    for update in range(n_update):
        objectives = []
        for me, agent in enumerate(agents):
            agent.set_virtual(agents[1 - me])
            for _ in range(n_lookaheads):
                # the other one learns, which is differentiated
                thetas = [agent.theta.theta, agent.virtual_theta.theta]
                memories, _ = rollout(ipd, agents, thetas if me == 0 else thetas[::-1])
                agent.virtual_optimizer.step(memories[1 - me].dice_objective())
            thetas = [agent.theta.theta, agent.virtual_theta.theta]
            memories, _ = rollout(ipd, agents, thetas if me == 0 else thetas[::-1])
            objectives.append((memories[me].dice_objective(), memories[me].value_loss()))
        for agent, (objective, v_loss) in zip(agents, objectives):
            agent.theta_optimizer.zero_grad()
            (agent.theta.theta.grad,) = torch.autograd.grad(
                objective, agent.theta.theta, retain_graph=True
            )
            agent.theta_optimizer.step()
            (agent.values.grad,) = torch.autograd.grad(v_loss, agent.values)
            agent.value_optimizer.step()
        _, score = rollout(ipd, agents, [a.theta.theta.detach() for a in agents])
        print(f"update {update} score", *(f"{value:.14g}" for value in score.tolist()))
    for agent in agents:
        policy = torch.sigmoid(agent.theta.theta).tolist()
        print("policy", *(f"{probability:.14g}" for probability in policy))


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for n_lookaheads in range(3):
        torch.manual_seed(0)
        print(f"lookaheads {n_lookaheads}")
        play([Agent(), Agent()], IPD(), n_lookaheads, n_update=4)
