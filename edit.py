"""Scale the chosen neurons of a layer and say honestly whether it helped.

python edit.py --help
"""

from emodissect.app.cli import start

if __name__ == "__main__":
    start("edit")
