"""One network: how it is loaded, its layers, hooks, scores and gradients, and how a pass of it runs.

A layer is a dotted path; the model that is given is left as it was found.
"""
