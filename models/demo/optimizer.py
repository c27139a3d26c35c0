"""Muon for the matrices, AdamW for the embedding and the norms, as one optimizer.

Muon (Keller Jordan, 2024) replaces the momentum of a matrix by the nearest orthogonal one. It is reported to need
fewer tokens than AdamW, which is what counts here; the two were not compared here.
"""
import torch


def orthogonalize(g):
    """Five Newton-Schulz steps on a stack of matrices, [n, rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).to(g.dtype)


class Optimizer:
    def __init__(self, model, muon_lr=0.02, adam_lr=0.003, weight_decay=0.1, momentum=0.95, betas=(0.9, 0.95)):
        self.muon_lr, self.weight_decay, self.momentum = muon_lr, weight_decay, momentum
        matrices = {}
        others = []
        for name, p in model.named_parameters():
            if p.ndim == 2 and "embed" not in name:
                matrices.setdefault(tuple(p.shape), []).append(p)
            else:
                others.append(p)
        self.stacks = list(matrices.values())  # equal shapes are orthogonalised together
        self.buffers = [torch.zeros(len(stack), *stack[0].shape, device=stack[0].device) for stack in self.stacks]
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=betas, eps=1e-10, weight_decay=0.0)
        self.adam_lr = adam_lr

    @torch.no_grad()
    def step(self, factor):
        """One update at `factor` of the full learning rates; clears the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        self.adam.step()
        self.adam.zero_grad()
        lr = self.muon_lr * factor
        for stack, buffer in zip(self.stacks, self.buffers):
            g = torch.stack([p.grad for p in stack])
            buffer.lerp_(g, 1 - self.momentum)
            update = orthogonalize(g.lerp(buffer, self.momentum))  # Nesterov
            scale = lr * max(1, g.shape[1] / g.shape[2]) ** 0.5
            for p, u in zip(stack, update):
                p.mul_(1 - lr * self.weight_decay).sub_(u, alpha=scale)
                p.grad = None

    def state_dict(self):
        return {"buffers": self.buffers, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        for buffer, saved in zip(self.buffers, state["buffers"]):
            buffer.copy_(saved)
        self.adam.load_state_dict(state["adam"])
