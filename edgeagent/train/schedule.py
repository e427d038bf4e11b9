"""Learning rate, weight decay and data mix as functions of progress in [0, 1].

Two stages, as the BitNet reports describe: a high-rate cosine with weight decay, then an abrupt
drop to a lower cosine without. In stage 2 only the projections learn, so the two releases saved
there differ in planes alone. Progress is a share of steps or of minutes, whichever was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The numbers of a run."""

    stage2_start: float = 0.72
    first_release: float = 0.72 + 0.28 / 3
    peak: float = 3e-3
    stage1_end: float = 1e-3
    stage2_peak: float = 8e-4
    final: float = 3e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    stage1_story_rows: int = 4
    stage2_story_rows: int = 2

    def stage(self, progress: float) -> int:
        """1 or 2."""
        return 1 if progress < self.stage2_start else 2

    def story_rows(self, progress: float) -> int:
        """How many rows of a batch are stories."""
        return self.stage1_story_rows if self.stage(progress) == 1 else self.stage2_story_rows

    def decay(self, progress: float) -> float:
        """Weight decay: none in the second half."""
        return self.weight_decay if progress < 0.5 else 0.0

    def rate(self, progress: float, step: int) -> float:
        """The learning rate."""
        if self.stage(progress) == 1:
            done = progress / self.stage2_start
            rate = _cosine(self.peak, self.stage1_end, done)
        else:
            done = (progress - self.stage2_start) / (1 - self.stage2_start)
            rate = _cosine(self.stage2_peak, self.final, done)
        return rate * min(1.0, (step + 1) / self.warmup_steps)


def _cosine(high: float, low: float, done: float) -> float:
    """Half a cosine from ``high`` to ``low``."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
