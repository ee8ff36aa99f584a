"""Every local method, by the name that the command line takes: the contract tests, the zoo and the scorecard go by it."""

from probing.attribution.attention import AttentionRelevance, AttentionRollout
from probing.attribution.base import LocalMethod
from probing.attribution.cam.cam import CAM
from probing.attribution.cam.eigen_cam import EigenCAM
from probing.attribution.cam.finer_cam import FinerCAM
from probing.attribution.cam.grad_cam import (
    AblationCAM,
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from probing.attribution.cam.score_cam import ScoreCAM
from probing.attribution.conductance import InternalInfluence, LayerConductance
from probing.attribution.curved_paths import BlurIG, GuidedIG
from probing.attribution.deep_lift import DeepLIFT
from probing.attribution.gradient import (
    Deconvolution,
    GradientTimesInput,
    GuidedBackprop,
    Saliency,
    SmoothGrad,
)
from probing.attribution.lrp.lrp import LRP
from probing.attribution.path import (
    ExpectedGradients,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from probing.attribution.perturbation.lime import LIME, TextLIME
from probing.attribution.perturbation.occlusion import FeatureAblation, Occlusion
from probing.attribution.perturbation.owen import Owen
from probing.attribution.perturbation.rise import RISE
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.sobol import Sobol
from probing.attribution.xrai import XRAI

METHODS: dict[str, type[LocalMethod]] = {
    "saliency": Saliency,
    "gradient_times_input": GradientTimesInput,
    "guided_backprop": GuidedBackprop,
    "deconvolution": Deconvolution,
    "smoothgrad": SmoothGrad,
    "ig": IntegratedGradients,
    "guided_ig": GuidedIG,
    "blur_ig": BlurIG,
    "xrai": XRAI,
    "layer_ig": LayerIntegratedGradients,
    "layer_conductance": LayerConductance,
    "internal_influence": InternalInfluence,
    "expected_gradients": ExpectedGradients,
    "cam": CAM,
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "guided_gradcam": GuidedGradCAM,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
    "xgradcam": XGradCAM,
    "ablationcam": AblationCAM,
    "scorecam": ScoreCAM,
    "eigencam": EigenCAM,
    "finercam": FinerCAM,
    "deeplift": DeepLIFT,
    "lrp": LRP,
    "lime": LIME,
    "occlusion": Occlusion,
    "feature_ablation": FeatureAblation,
    "rise": RISE,
    "shapley": Shapley,
    "owen": Owen,
    "sobol": Sobol,
}

ATTENTION_METHODS: dict[str, type[LocalMethod]] = {
    "rollout": AttentionRollout,
    "attention_relevance": AttentionRelevance,
}
"""These take networks with attention only, and read its weights."""

TEXT_METHODS: dict[str, type[TextLIME]] = {"lime": TextLIME}
"""These explain any function from texts to class scores, and so are called with a text, not with inputs of a model."""
