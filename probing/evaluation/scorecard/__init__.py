"""The scorecard: every method measured by every criterion on the same images, and what it cost."""
