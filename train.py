"""Train a classifier on facial expressions and test its best checkpoint.

python train.py --help
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from emodissect.app.cli import launch, run

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Composes the config and hands it to the task."""
    from emodissect.app.stages import train

    return run(train, cfg)


if __name__ == "__main__":
    launch(main, CONF)
