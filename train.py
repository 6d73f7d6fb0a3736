"""Train a classifier on facial expressions and test its best checkpoint.

python train.py --help
"""

from emodissect.app.cli import start

if __name__ == "__main__":
    start("train")
