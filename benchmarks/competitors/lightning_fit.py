"""Lightning: its Trainer without logger, checkpoints, progress bar and summary, over batches by index.

Loss, accuracy and global norm of every step are kept. A window is one `fit`, timed from the start of training to its end.
"""

import time
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from benchmarks.competitors import job as jobs
from benchmarks.competitors.torch_model import adam, build, global_norm, loss_and_accuracy, tensors


class Batches:
    """A window's batches, cut from tensors."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> None:
        self.x, self.y, self.rows = x, y, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self.rows:
            yield self.x[rows], self.y[rows]


class Task(lightning.LightningModule):
    """One model and what is kept of its steps."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.norms: list[torch.Tensor] = []
        self.optimizer = adam(model)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss, accuracy = loss_and_accuracy(self.model, *batch)
        self.kept.append((loss.detach(), accuracy))
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.norms.append(global_norm(self.model))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def on_train_start(self) -> None:
        self.kept, self.norms = [], []
        self.started = time.perf_counter()

    def on_train_end(self) -> None:
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    job = jobs.read_job()
    x, y = tensors(job)
    task = Task(build(job, tuple(x.shape[1:])))
    order = jobs.Order(len(x), job.batch_size)

    def window(num_steps: int) -> tuple[int, float, float]:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, **quiet)
        trainer.fit(task, Batches(x, y, torch.from_numpy(order.batches(num_steps))))
        return num_steps, task.seconds, task.kept[-1][0].item()

    jobs.take_turns(["lightning", "torch"], sum(parameter.numel() for parameter in task.parameters()), window)


if __name__ == "__main__":
    main()
