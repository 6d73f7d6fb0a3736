"""What the verbs use: the classifier, its labels, the study of its edits, and their pages."""
