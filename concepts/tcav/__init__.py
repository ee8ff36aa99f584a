"""TCAV (Kim et al. 2018): concept activation vectors, directional derivatives, and tests that keep their level."""
