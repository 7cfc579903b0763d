"""Which checkpoint is the best, and when a run that gets no better ends."""

import math

from qwenvl_agent.config import TrainConfig


def is_better(metrics: dict[str, float], best: dict) -> bool:
    """Whether these become `best`; those of an evaluation in which no episode could be played never do."""
    could_play = metrics.get("rollout/error_rate") != 1.0
    return bool(metrics) and could_play and (not best or score(metrics) > score(best))


def score(metrics: dict[str, float]) -> tuple[float, float]:
    """Orders checkpoints: success in rollouts or hits on screens, then held-out loss."""
    success = metrics.get("rollout/success_rate", metrics.get("clicks/box_hit_rate", 0.0))
    return success, -metrics.get("eval/token_loss/all", math.inf)


def has_stalled(best: dict, step: int, cfg: TrainConfig) -> bool:
    """Whether `train.patience` evaluations in a row were no better than the best before them."""
    return cfg.patience > 0 and bool(best) and step - best["step"] >= cfg.patience * cfg.eval_every
