"""The installed command: ``emodissect train | dissect | edit | dashboard``, or ``python -m emodissect``."""

from __future__ import annotations

import importlib.metadata
import os
import sys

from emodissect.app.cli import VERBS, start
from emodissect.core.errors import nearest

USAGE = """\
emodissect: find out what the neurons of an image classifier respond to, change them, and say whether it helped.

  emodissect train       train a classifier, test its best checkpoint
  emodissect dissect     label what its neurons respond to
  emodissect edit        change chosen neurons, and test whether it helped
  emodissect dashboard   build a W&B workspace for the runs (extra dashboard)

emodissect <verb> --help lists the config groups and keys of a verb.
Results go to logs/ in the working directory. --config-dir=<folder> adds config groups of your own.
"""


def main() -> None:
    """Run the verb named by the first argument with the remaining ones."""
    verb, *words = sys.argv[1:] or ["--help"]
    # processes that Lightning starts for ddp get the arguments that Hydra got, i.e. those set below
    verb = verb.removeprefix("--config-name=")
    if verb in VERBS:
        sys.argv[1:] = [f"--config-name={verb}", *words]
        start(verb)
    elif verb == "dashboard":
        from emodissect.report import dashboard

        sys.exit(dashboard.main(words))
    elif verb in ("--version", "-V"):
        print(f"emodissect {importlib.metadata.version('emodissect')}")
    elif verb in ("--help", "-h"):
        print(USAGE, end="")
    elif verb in ("--shell-completion", "-sc"):
        complete(words)
    else:
        print(f"Unknown verb '{verb}'. {nearest(verb, [*VERBS, 'dashboard'])}\n\n{USAGE}", end="", file=sys.stderr)
        sys.exit(2)


def complete(words: list[str]) -> None:
    """Tab completion: of the verbs first, then Hydra's."""
    line = os.environ.get("COMP_LINE", "").split(" ")
    if "install" in words[0] or "uninstall" in words[0]:
        verb = "train"
    elif len(line) > 2 and line[1] in VERBS:
        verb = line[1]
        os.environ["COMP_LINE"] = " ".join([line[0], *line[2:]])
    else:
        print(" ".join([*VERBS, "dashboard"]))
        return
    sys.argv[1:] = ["-sc", *words]
    start(verb)
