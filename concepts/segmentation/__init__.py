"""Images whose pixels have labels: what network dissection compares units with."""

from concepts.segmentation.broden import Broden
from concepts.segmentation.emoji import EmojiScenes
from concepts.segmentation.labels import (
    ImageLabels,
    LabelError,
    LabelSource,
    Scenes,
    TensorLabels,
    Vocabulary,
)
from concepts.segmentation.masks import MaskedManifest

__all__ = [
    "Broden",
    "EmojiScenes",
    "ImageLabels",
    "LabelError",
    "LabelSource",
    "MaskedManifest",
    "Scenes",
    "TensorLabels",
    "Vocabulary",
]
