from .attention import (
    AttentionRelevance as AttentionRelevance,
    AttentionRollout as AttentionRollout,
)
from .base import (
    Attribution as Attribution,
    AttributionMethod as AttributionMethod,
    LocalMethod as LocalMethod,
    attribution as attribution,
    checked as checked,
)
from .baselines import (
    Blurred as Blurred,
    Constant as Constant,
    Extremes as Extremes,
    Mean as Mean,
    Samples as Samples,
    Uniform as Uniform,
)
from .cam.cam import CAM as CAM
from .cam.eigen_cam import EigenCAM as EigenCAM
from .cam.finer_cam import FinerCAM as FinerCAM
from .cam.grad_cam import (
    AblationCAM as AblationCAM,
    GradCAM as GradCAM,
    GradCAMPlusPlus as GradCAMPlusPlus,
    GuidedGradCAM as GuidedGradCAM,
    HiResCAM as HiResCAM,
    LayerCAM as LayerCAM,
    XGradCAM as XGradCAM,
)
from .cam.score_cam import ScoreCAM as ScoreCAM
from .conductance import (
    InternalInfluence as InternalInfluence,
    LayerConductance as LayerConductance,
)
from .curved_paths import (
    BlurIG as BlurIG,
    GuidedIG as GuidedIG,
)
from .deep_lift import (
    DeepLIFT as DeepLIFT,
    DeepSHAP as DeepSHAP,
)
from .gradient import (
    Deconvolution as Deconvolution,
    GradientTimesInput as GradientTimesInput,
    GuidedBackprop as GuidedBackprop,
    Saliency as Saliency,
    SmoothGrad as SmoothGrad,
)
from .lrp.conditional import (
    ConditionalLRP as ConditionalLRP,
    DirectionPart as DirectionPart,
    UnitPart as UnitPart,
)
from .lrp.lrp import LRP as LRP
from .methods import (
    ATTENTION_METHODS as ATTENTION_METHODS,
    METHODS as METHODS,
    TEXT_METHODS as TEXT_METHODS,
)
from .path import (
    ExpectedGradients as ExpectedGradients,
    IntegratedGradients as IntegratedGradients,
    LayerIntegratedGradients as LayerIntegratedGradients,
)
from .perturbation.interactions import InteractionResult as InteractionResult, PairInteractions as PairInteractions
from .perturbation.lime import (
    LIME as LIME,
    TextLIME as TextLIME,
)
from .perturbation.occlusion import (
    FeatureAblation as FeatureAblation,
    Occlusion as Occlusion,
)
from .perturbation.owen import Owen as Owen
from .perturbation.rise import RISE as RISE
from .perturbation.shapley import Shapley as Shapley
from .perturbation.sobol import Sobol as Sobol
from .perturbation.tables import (
    TableAttribution as TableAttribution,
    TableLIME as TableLIME,
)
from .priors import attribution_prior as attribution_prior
from .training_data import (
    RepresentationSimilarity as RepresentationSimilarity,
    TracIn as TracIn,
)
from .xrai import XRAI as XRAI
