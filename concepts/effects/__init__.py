"""What a concept's direction does to the logits, against the measured effect of swapping the concept itself."""
