"""The models in PyTorch, for the eager loop and Lightning, with the initial weights of Keras' layers."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.competitors.job import EPSILON, LEARNING_RATE, NORM_EPSILON, NUM_HEADS, NUM_LAYERS, WIDTH, Job


class Attention(nn.Module):
    """Causal, with one projection for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = self.inward(x).view(batch, length, 3, NUM_HEADS, WIDTH // NUM_HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outward(mixed.transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    """Attention and a dense layer four times as wide, each after a normalization and beside the input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.dense_norm = nn.LayerNorm(WIDTH, NORM_EPSILON), nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.attention = Attention()
        self.dense = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.dense(self.dense_norm(x))


class Transformer(nn.Module):
    """Tokens [batch, length] to logits [batch, length, num_tokens]."""

    def __init__(self, num_tokens: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, WIDTH)
        self.positions = nn.Parameter(torch.empty(length, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(NUM_LAYERS)), nn.LayerNorm(WIDTH, NORM_EPSILON))
        self.output = nn.Linear(WIDTH, num_tokens)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.blocks(self.embedding(tokens) + self.positions))


def build(job: Job, shape: tuple[int, ...]) -> nn.Module:
    """From examples [batch, *shape] to logits [batch, (length,) num_outputs]; of images [batch, channels, height, width]."""
    torch.manual_seed(0)
    model: nn.Module
    if job.model == "mlp":
        hidden = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(job.dropout), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(job.dropout)]
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, job.num_outputs))
    elif job.model == "cnn":
        convolutions = [
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, job.num_outputs))
    else:
        model = Transformer(job.num_outputs, shape[0])
    if job.model == "cnn":
        model.to(memory_format=torch.channels_last)  # a fifth faster on the CPU
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def tensors(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """All features and targets, as PyTorch takes them."""
    features, targets = job.arrays()
    x, y = torch.from_numpy(features), torch.from_numpy(targets).long()
    return (x.permute(0, 3, 1, 2) if job.model == "cnn" else x), y


def loss_and_accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(x).flatten(0, -2)
    y = y.flatten()
    loss = functional.cross_entropy(logits, y)
    return loss, (logits.detach().argmax(-1) == y).float().mean()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPSILON, fused=True)


def global_norm(model: nn.Module) -> torch.Tensor:
    return nn.utils.get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
