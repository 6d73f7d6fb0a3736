"""Label what the neurons of a classifier respond to.

python dissect.py --help
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from emodissect.app.cli import launch, run

CONF = Path(__file__).parent / "conf"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="dissect")
def main(cfg: DictConfig) -> float | None:
    """Composes the config and hands it to the task."""
    from emodissect.app.stages import dissect

    return run(dissect, cfg)


if __name__ == "__main__":
    launch(main, CONF)
