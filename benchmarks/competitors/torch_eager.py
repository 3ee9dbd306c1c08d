"""PyTorch without compilation: data as tensors, batches by index, Adam fused; loss, accuracy and global norm of every step are kept."""

import time

import torch

from benchmarks.competitors import job as jobs
from benchmarks.competitors.torch_model import adam, build, global_norm, loss_and_accuracy, tensors


def main() -> None:
    job = jobs.read_job()
    x, y = tensors(job)
    model = build(job, tuple(x.shape[1:]))
    optimizer = adam(model)
    order = jobs.Order(len(x), job.batch_size)

    def window(num_steps: int) -> tuple[int, float, float]:
        started = time.perf_counter()
        kept = []
        for rows in torch.from_numpy(order.batches(num_steps)):
            optimizer.zero_grad()
            loss, accuracy = loss_and_accuracy(model, x[rows], y[rows])
            loss.backward()
            kept.append((loss.detach(), accuracy, global_norm(model)))
            optimizer.step()
        return num_steps, time.perf_counter() - started, kept[-1][0].item()

    jobs.take_turns(["torch"], sum(parameter.numel() for parameter in model.parameters()), window)


if __name__ == "__main__":
    main()
