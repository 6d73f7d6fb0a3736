#!/usr/bin/env bash
# A sweep over layers and factors: six jobs, one table (sweep.csv), one page (sweep.html): bash examples/sweep.sh [overrides]
set -euo pipefail
emodissect edit -m layer=lin1,lin2 factor=1.25,1.5,2 "$@"
