"""Explanations by changing parts of an input and fitting what the score does: LIME and Shapley values."""
