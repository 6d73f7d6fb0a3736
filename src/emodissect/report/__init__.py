"""One self-contained HTML page per run: data frames in, one file out, no network."""

from emodissect.report.dissection import DissectionPage
from emodissect.report.editing import EditPage
from emodissect.report.page import Extra
from emodissect.report.sweep import SweepPage
from emodissect.report.training import TrainPage

__all__ = ["DissectionPage", "EditPage", "Extra", "SweepPage", "TrainPage"]
