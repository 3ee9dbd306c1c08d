"""The configuration's keys with their types, defaults and limits. Imports no TensorFlow.

Groups whose keys depend on what is chosen (model, loss, optimizer, schedule, and the source in data) are open here: their keys
are those of the chosen YAML file.
"""

import dataclasses
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

Section = TypeVar("Section")

LARGEST_LOSS_SCALE = 2.0**64  # where nothing that is scaled overflows, doubling would come to infinity
# Objectives and metrics of which larger is better; smaller is of all others.
LARGER_IS_BETTER = ("eval/accuracy", "eval/r2", "eval/ndcg", "eval/spearman", "steps_per_second")


def section(kind: type[Section], node: DictConfig) -> Section:
    """A part of the configuration as its dataclass."""
    found = OmegaConf.to_object(OmegaConf.merge(kind, node))
    assert isinstance(found, kind)
    return found


def limited(
    default: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str | bool, ...] = (),
) -> Any:
    """A field whose value, unless None, must be >= minimum, > above, < below, or one of choices."""
    limits = {"minimum": minimum, "above": above, "below": below, "choices": choices or None}
    return dataclasses.field(default=default, metadata={key: limit for key, limit in limits.items() if limit is not None})


@dataclasses.dataclass
class Data:
    """The keys that every data source shares; a source adds its own."""

    batch_size: int = limited(32, minimum=1)  # examples in one update, over all replicas
    eval_fraction: float = limited(0.2, above=0, below=1)  # share of the examples kept for evaluation
    split_seed: int = limited(
        0, minimum=0, below=2**32
    )  # of the train/evaluation split alone, so that a sweep over seed compares like with like
    standardize: bool = True  # features to mean 0, standard deviation 1 of the training part; real targets likewise
    sample_weight: str | None = None  # a column of the source that weighs its examples
    class_weight: str | None = limited(None, choices=("balanced",))  # weigh every class by the inverse of its frequency
    stream: bool | str = limited("auto", choices=("auto", True, False))  # batches made on the host, ahead of the loop; auto: by size
    max_resident_mb: float = limited(1024.0, minimum=0)  # stream=auto: features up to this size, in MiB, are put on the device


@dataclasses.dataclass
class Gradient:
    """Which derivative of the loss trains the model."""

    mode: str = limited("analytic", choices=("auto", "analytic"))
    verify_at_start: bool = True  # analytic mode: prove the gradient on the first real batch before the first update
    audit_every: int = limited(0, minimum=0)  # steps between two comparisons of both modes on the live batch; 0: never
    audit_tolerance: float = limited(1e-3, above=0)  # relative difference from which on float64 decides who is wrong
    on_audit: str = limited("warn", choices=("warn", "stop"))  # when the gradient that trains is found wrong


@dataclasses.dataclass
class EarlyStopping:
    """Stop when an evaluation metric no longer improves."""

    patience: int = limited(0, minimum=0)  # evaluations without improvement before stopping; 0: never stop early
    min_delta: float = limited(0.0, minimum=0)  # a smaller change than this is no improvement


@dataclasses.dataclass
class Trainer:
    """The loop."""

    steps: int | None = limited(None, minimum=1)  # updates; this or epochs
    epochs: float | None = limited(30, above=0)  # passes over the training part: ceil(epochs * n / batch_size) updates
    log_every: int = limited(1, minimum=1)  # steps
    eval_every: int = limited(250, minimum=0)  # steps; 0: never
    clip_norm: float | None = limited(None, above=0)  # of the global gradient, after the reduction over replicas
    accumulate: int = limited(1, minimum=1)  # parts into which a batch is divided, one after another: less memory, the same update
    compile: str = limited("auto", choices=("auto", "graph", "step", "chunk", "measure"))  # what becomes an XLA program
    steps_per_call: int | None = limited(None, minimum=1)  # that run on the device between two visits of the host; None: by time
    # Of a step whose loss or gradient is not finite: stop, before its update; skip: leave its update out and go on, at most 10 times in
    # a row; rollback: go back to the last checkpoint (checkpoint.every, or the best), and on after the step, at most 10 times in a run.
    on_nonfinite: str = limited("stop", choices=("stop", "skip", "rollback"))
    replay: bool = False  # compute the step at which the run in hydra.run.dir has diverged anew, print what was found, and end
    dry_run: bool = False  # show what the run would be, with its memory and time, and end; nothing is trained, and nothing is written
    overfit: bool = False  # by debug=overfit: train on the first batch alone, evaluate on it, and say whether it can be fitted
    ema_decay: float | None = limited(None, above=0, below=1)  # evaluate an exponential moving average of the weights
    early_stopping: EarlyStopping = dataclasses.field(default_factory=EarlyStopping)

    def length(self, num_examples: int, batch_size: int) -> float:
        """Of a run over so many examples, in updates, before it is rounded up."""
        return self.steps or (self.epochs or 0) * num_examples / batch_size


@dataclasses.dataclass
class Strategy:
    """Where replicas run."""

    name: str = limited("auto", choices=("auto", "mirrored", "cpu_sim", "one_device"))
    num_devices: int | None = limited(None, minimum=1)  # None: all there are
    device: str | None = None  # one_device: its name, such as GPU:1


@dataclasses.dataclass
class Precision:
    """The dtype that layers compute in; losses and norms are float32 at least."""

    policy: str = limited("float32", choices=("float32", "mixed_bfloat16", "mixed_float16"))
    loss_scale: float = limited(32768.0, minimum=1, below=LARGEST_LOSS_SCALE)  # mixed_float16: what the loss is multiplied by at first
    loss_scale_every: int = limited(2000, minimum=1)  # steps without overflow until it is doubled; an overflow halves it


@dataclasses.dataclass
class Checkpoint:
    """What is kept for resuming."""

    every: int = limited(500, minimum=0)  # steps; 0: at the end only
    keep: int = limited(2, minimum=1)  # newest checkpoints kept beside the best
    monitor: str = "eval/loss"  # the metric that decides which is best
    goal: str | None = limited(None, choices=("min", "max"))  # whether smaller or larger is better; None: by the metric


@dataclasses.dataclass
class Logging:
    """What is written besides metrics.jsonl."""

    tensorboard: bool = True
    per_variable: bool = True  # the gradient norm of every variable, grad_norm/<path>
    histogram_every: int = limited(0, minimum=0)  # steps between two histograms of every variable's raw gradient; 0: never
    profile_steps: list[int] = dataclasses.field(default_factory=list)  # first and last step of a profile; empty: none
    mlflow: bool = False  # the same beside TensorBoard
    mlflow_uri: str | None = None  # of the tracking server; None: MLFLOW_TRACKING_URI, or what MLflow takes then
    mlflow_experiment: str | None = None  # None: MLFLOW_EXPERIMENT_NAME, or gradtrain
    mlflow_every: int = limited(1, minimum=1)  # steps between two that are sent; evaluations and the last step always are


@dataclasses.dataclass
class Optuna:
    """A search by Optuna in place of every combination: each trial is a job with values of its choice."""

    trials: int | None = limited(None, minimum=1)  # of the whole study, those of earlier commands included; None: no search
    objective: str = "eval/loss"  # a number of summary.json: a metric at the end, or wall_seconds and the like
    objectives: list[str] = dataclasses.field(default_factory=list)  # several, instead of objective
    directions: list[str] = dataclasses.field(default_factory=list)  # minimize or maximize, one for each; empty: by the objective
    sampler: str = limited("tpe", choices=("tpe", "random", "nsgaii"))
    seed: int = limited(0, minimum=0, below=2**32)  # of the sampler
    storage: str | None = None  # a database, such as sqlite:///study.db, typed; None: in the sweep's directory
    study_name: str = "gradtrain"


@dataclasses.dataclass
class Sweep:
    """How the jobs of a sweep are run; what they compute does not depend on it."""

    parallel: int | None = limited(None, minimum=1)  # jobs at once, which share cores and GPUs; None: one, or as the launcher says
    compare: bool = False  # when they are through, by trainer.compare
    optuna: Optuna = dataclasses.field(default_factory=Optuna)


@dataclasses.dataclass
class Config:
    """The whole configuration."""

    seed: int = limited(0, minimum=0, below=2**32)  # of weights, order of the data, and layers' randomness
    resume: str = "auto"  # auto, never, must, or the path of a run directory
    trust: list[str] = dataclasses.field(default_factory=list)  # packages whose _target_ may be built; command line only
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradient: Gradient = dataclasses.field(default_factory=Gradient)
    trainer: Trainer = dataclasses.field(default_factory=Trainer)
    strategy: Strategy = dataclasses.field(default_factory=Strategy)
    precision: Precision = dataclasses.field(default_factory=Precision)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    logging: Logging = dataclasses.field(default_factory=Logging)
    sweep: Sweep = dataclasses.field(default_factory=Sweep)
