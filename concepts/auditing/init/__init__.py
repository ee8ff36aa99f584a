"""A first audit from someone's own pictures: what is found, whether it is enough, and the files that are written."""
