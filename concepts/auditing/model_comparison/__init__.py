"""Two audits of the same images beside each other, by paired tests."""
