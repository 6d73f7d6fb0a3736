"""What the verbs stand on: the classifier, its labels, the study of its edits, and their pages."""
