from .examples import (
    DatasetExamples as DatasetExamples,
    ExampleSet as ExampleSet,
    ImageExamples as ImageExamples,
    ImageFiles as ImageFiles,
    TensorExamples as TensorExamples,
    TextExamples as TextExamples,
    as_examples as as_examples,
    concat as concat,
    examples as examples,
)
from .images import Preprocess as Preprocess
from .texts import TextClassifier as TextClassifier
