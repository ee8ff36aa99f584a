from .broden import Broden as Broden
from .emoji_scenes import EmojiScenes as EmojiScenes
from .labels import (
    ImageLabels as ImageLabels,
    LabelError as LabelError,
    LabelSource as LabelSource,
    Scenes as Scenes,
    TensorLabels as TensorLabels,
    Vocabulary as Vocabulary,
)
from .masks import MaskedManifest as MaskedManifest
