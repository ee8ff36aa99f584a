"""Streaming statistics that are exact, tests that keep their level, and linear classifiers by the hundred.

It knows tensors only: nothing here runs a network.
"""
