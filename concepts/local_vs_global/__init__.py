"""Local explanations against network-level ones of the same concepts, on matched pairs of images."""
