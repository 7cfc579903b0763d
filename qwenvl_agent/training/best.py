"""Which checkpoint is the best, and when a run that gets no better ends."""

import math

from qwenvl_agent.config import TrainConfig
from qwenvl_agent.evaluation.suites import Suite


def is_better(metrics: dict[str, float], best: dict, suite: Suite) -> bool:
    """Whether these become `best`; those of an evaluation in which no episode could be played never do."""
    is_told = bool(metrics) and suite.could_measure(metrics)
    return is_told and (not best or score(metrics, suite) > score(best, suite))


def score(metrics: dict[str, float], suite: Suite) -> tuple[float, float]:
    """Orders checkpoints: the suite's success, then held-out loss."""
    return suite.success(metrics), -metrics.get("eval/token_loss/all", math.inf)


def has_stalled(best: dict, step: int, cfg: TrainConfig) -> bool:
    """Whether `train.patience` evaluations in a row were no better than the best before them."""
    return cfg.patience > 0 and bool(best) and step - best["step"] >= cfg.patience * cfg.eval_every
