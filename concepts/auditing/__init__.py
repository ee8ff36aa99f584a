"""An audit: one file in, measurements, analyses and one report out."""
