"""One audit on two sets of images: what replicates."""
