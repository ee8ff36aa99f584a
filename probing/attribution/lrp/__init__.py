"""Layer-wise relevance propagation: rules, composites of rules, and the ledger that must add up."""
