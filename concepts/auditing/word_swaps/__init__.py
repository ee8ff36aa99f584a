"""Counterfactual words in templates: what a text classifier's score does when one word is swapped for another."""
