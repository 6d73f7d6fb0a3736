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
    """Runs the verb that the first word names with the words behind it."""
    verb, *words = sys.argv[1:] or ["--help"]
    # the processes that Lightning starts for ddp have the words that Hydra was given, as written below
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
        print(f"There is no verb '{verb}'. {nearest(verb, [*VERBS, 'dashboard'])}\n\n{USAGE}", end="", file=sys.stderr)
        sys.exit(2)


def complete(words: list[str]) -> None:
    """Tab completion: Hydra's, without the verb; the verbs where none has been typed."""
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
