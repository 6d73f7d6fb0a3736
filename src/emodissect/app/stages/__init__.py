"""Stages shared by the verbs: the classifier, its labels, the study of its edits, and their pages."""
