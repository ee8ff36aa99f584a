__version__: str

from .atlas import Atlas as Atlas
from .attribution.attention import (
    AttentionRelevance as AttentionRelevance,
    AttentionRollout as AttentionRollout,
)
from .attribution.cam.cam import CAM as CAM
from .attribution.cam.eigen_cam import EigenCAM as EigenCAM
from .attribution.cam.finer_cam import FinerCAM as FinerCAM
from .attribution.cam.grad_cam import (
    AblationCAM as AblationCAM,
    GradCAM as GradCAM,
    GradCAMPlusPlus as GradCAMPlusPlus,
    GuidedGradCAM as GuidedGradCAM,
    HiResCAM as HiResCAM,
    LayerCAM as LayerCAM,
    XGradCAM as XGradCAM,
)
from .attribution.cam.score_cam import ScoreCAM as ScoreCAM
from .attribution.conductance import (
    InternalInfluence as InternalInfluence,
    LayerConductance as LayerConductance,
)
from .attribution.curved_paths import (
    BlurIG as BlurIG,
    GuidedIG as GuidedIG,
)
from .attribution.deep_lift import (
    DeepLIFT as DeepLIFT,
    DeepSHAP as DeepSHAP,
)
from .attribution.gradient import (
    Deconvolution as Deconvolution,
    GradientTimesInput as GradientTimesInput,
    GuidedBackprop as GuidedBackprop,
    Saliency as Saliency,
    SmoothGrad as SmoothGrad,
)
from .attribution.lrp.lrp import LRP as LRP
from .attribution.methods import METHODS as METHODS
from .attribution.path import (
    ExpectedGradients as ExpectedGradients,
    IntegratedGradients as IntegratedGradients,
    LayerIntegratedGradients as LayerIntegratedGradients,
)
from .attribution.perturbation.lime import (
    LIME as LIME,
    TextLIME as TextLIME,
)
from .attribution.xrai import XRAI as XRAI
from .core.errors import ProbingError as ProbingError
from .core.inputs import Inputs as Inputs
from .data.examples import (
    ExampleSet as ExampleSet,
    as_examples as as_examples,
    examples as examples,
)
from .evaluation.scorecard.measure import evaluate as evaluate
from .maximization.run import maximize as maximize
from .models.hooks import (
    capture as capture,
    edit as edit,
)
from .models.loading import (
    LoadedModel as LoadedModel,
    load as load,
)
from .models.precision import Precision as Precision
from .models.scores import Score as Score
from .models.summary import summarize as summarize
from .probes.layer_probes import LayerProbes as LayerProbes
from .results.result import Result as Result
from .store.store import ActivationStore as ActivationStore
