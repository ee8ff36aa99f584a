"""Images whose pixels have labels: what network dissection compares units with."""

from concepts.data.segmentation.broden import Broden
from concepts.data.segmentation.emoji_scenes import EmojiScenes
from concepts.data.segmentation.labels import (
    ImageLabels,
    LabelError,
    LabelSource,
    Scenes,
    TensorLabels,
    Vocabulary,
)
from concepts.data.segmentation.masks import MaskedManifest

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
