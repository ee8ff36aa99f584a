"""Where named images and masks come from: manifests, folders, concept sets and random counterparts, synthetic concepts."""
