"""A Llama decoder in plain PyTorch, with parameters named as Hugging Face names them.

Weights are kept in float32. `forward` runs in the dtype asked for: bfloat16 to train, float32 to check.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    dim: int
    ffn: int
    n_layers: int
    n_heads: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5

    @property
    def head_dim(self):
        return self.dim // self.n_heads


class Linear(nn.Linear):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rope_tables(config, n_positions, device):
    """Cosines and sines, [n_positions, head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, device=device) / config.head_dim
    angles = torch.outer(torch.arange(n_positions, device=device).float(), config.rope_theta ** -exponents)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Llama's half-split rotation of x, [batch, heads, seq, head_dim]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def attend(q, k, v, block=256):
    """Causal attention, [batch, heads, seq, head_dim].

    On a CPU, PyTorch's fused kernel is three times slower in bfloat16 than these matrix products over blocks of
    queries, each of which sees only the keys up to its own end.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    outputs = []
    for start in range(0, q.shape[2], block):
        queries = q[:, :, start:start + block]
        n = queries.shape[2]
        future = torch.full((n, n), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        scores = queries @ k[:, :, :start + n].transpose(-1, -2) * q.shape[-1] ** -0.5
        outputs.append((scores + F.pad(future, (start, 0))).softmax(-1) @ v[:, :, :start + n])
    return torch.cat(outputs, 2)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.q_proj = Linear(config.dim, config.dim)
        self.k_proj = Linear(config.dim, config.dim)
        self.v_proj = Linear(config.dim, config.dim)
        self.o_proj = Linear(config.dim, config.dim)

    def forward(self, x, cos, sin):
        batch, seq, dim = x.shape
        q, k, v = (p(x).view(batch, seq, self.n_heads, -1).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = attend(q, k, v)
        return self.o_proj(y.transpose(1, 2).reshape(batch, seq, dim))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.dim, config.ffn)
        self.up_proj = Linear(config.dim, config.ffn)
        self.down_proj = Linear(config.ffn, config.dim)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.rms_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.rms_eps)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.rms_eps)


class Llama(nn.Module):
    """The output head is the embedding (tied), so `model.embed_tokens.weight` serves both."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for name, p in self.named_parameters():
            if "embed" in name:
                nn.init.normal_(p, std=5.12 / config.dim)  # a token's logit for itself begins near 5
            elif "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(p)  # every block begins as the identity
            elif p.ndim == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, ids, dtype=torch.float32):
        """Logits, [batch, seq, vocab], for ids, [batch, seq]."""
        x = self.model.embed_tokens(ids).to(dtype)
        cos, sin = rope_tables(self.config, ids.shape[1], ids.device)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x)
        return F.linear(x, self.model.embed_tokens.weight.to(dtype))

    def loss(self, ids, targets, dtype=torch.float32):
        """Mean cross entropy in nats."""
        return F.cross_entropy(self(ids, dtype).flatten(0, 1).float(), targets.flatten())
