"""TRL's configs, for one GPU a process."""

from __future__ import annotations

from typing import Any

from trl import DPOConfig, RewardConfig, RLOOConfig, SFTConfig


class _OneGpu:
    """Several GPUs take a launcher; without one transformers would spread each batch over all it
    sees, and multiply it.
    """

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: at most one."""
        seen: Any = super()
        return min(1, int(seen.n_gpu))


class Sft(_OneGpu, SFTConfig):  # type: ignore[misc]
    """Of supervised fine-tuning."""


class Dpo(_OneGpu, DPOConfig):  # type: ignore[misc]
    """Of direct preference optimisation."""


class Reward(_OneGpu, RewardConfig):  # type: ignore[misc]
    """Of the reward model."""


class Rloo(_OneGpu, RLOOConfig):  # type: ignore[misc]
    """Of reinforcement learning."""


STAGE_CONFIGS: dict[str, Any] = {"sft": Sft, "dpo": Dpo, "reward": Reward, "rl": Rloo}
