"""Class activation maps: what a layer's maps say of a score (CAM, Grad-CAM and their kin)."""
