"""debug=overfit: whether the model, the loss and the gradient can fit one batch."""

import dataclasses
import math
from collections.abc import Mapping

from losses.base import Loss
from trainer.errors import ConfigError, UserError
from trainer.progress import say
from trainer.schema import LARGER_IS_BETTER

_LEFT = 0.05  # of the error at the start, where a batch counts as fitted


@dataclasses.dataclass(frozen=True)
class Overfit:
    """What is judged, and by what it began with."""

    tag: str  # of an evaluation
    start: float  # its value before the first step
    num_examples: int

    @classmethod
    def of(cls, evaluation: Mapping[str, float], num_examples: int) -> "Overfit":
        """By the evaluation of the initial weights.

        The error is what a metric that is 1 at best lacks to that; of counts the deviance; otherwise the loss.
        """
        there = [tag for tag in (*LARGER_IS_BETTER, "eval/deviance") if math.isfinite(evaluation.get(tag, math.nan))]
        tag = there[0] if there else "eval/loss"
        found = cls(tag, evaluation[tag], num_examples)
        if found.error(found.start) < 0:
            raise ConfigError(
                f"debug=overfit: {tag} is {found.start:.4g} before the first step: only what is positive can come near 0; type another loss"
            )
        return found

    def error(self, value: float) -> float:
        return 1 - value if self.tag in LARGER_IS_BETTER else value

    def reached(self, evaluation: Mapping[str, float]) -> bool:
        """Whether a twentieth, or less, is left of the error."""
        return self.error(evaluation[self.tag]) <= _LEFT * self.error(self.start)

    def judge(self, final: Mapping[str, float], step: int, loss: Loss, gradient_mode: str) -> None:
        """Says that the batch is fitted; UserError, with what to try, where it is not."""
        what = f"{self.tag} is {final[self.tag]:.4g} on the {self.num_examples} examples of one batch after {step} steps"
        began = f"{self.start:.4g} before the first"
        if self.reached(final):
            say(f"fits: {what}, {began}: the model, the loss and gradient={gradient_mode} can learn")
            return
        others = " or ".join(f"gradient={mode}" for mode in loss.modes if mode != gradient_mode)
        goal = _LEFT * self.error(self.start)
        bound = f"at least {1 - goal:.4g}" if self.tag in LARGER_IS_BETTER else f"at most {goal:.4g}"
        raise UserError(
            f"does not fit: {what}, {began}, and {bound} would be: type {f'{others}, ' if others else ''}another optimizer.learning_rate, "
            "a larger model, or more trainer.steps; examples with the same features and other targets can't be fitted at all"
        )
