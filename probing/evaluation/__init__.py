"""Is an explanation to be trusted? Axioms, sanity checks, removal curves, localisation, robustness, and a scorecard."""
