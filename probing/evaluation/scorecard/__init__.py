"""The scorecard: every method measured by every criterion on the same images, and what it cost."""

DEFAULT_METHODS = (
    "saliency",
    "gradient_times_input",
    "guided_backprop",
    "smoothgrad",
    "ig",
    "gradcam",
    "layercam",
    "lrp",
    "lime",
)
"""What is compared where no method is named."""
