"""Label what the neurons of a classifier respond to.

python dissect.py --help
"""

from emodissect.app.cli import start

if __name__ == "__main__":
    start("dissect")
