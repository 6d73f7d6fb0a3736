"""Dissect, edit and honestly re-evaluate the neurons of facial-expression classifiers."""
