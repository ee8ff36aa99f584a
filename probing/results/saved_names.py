"""Short names under which saved results name their classes, so that a class may move and its files still load.

A file holds names, never places: what is read is data and must not choose what is imported.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import TypeVar

from probing.core.errors import ProbingError

C = TypeVar("C", bound=type)


class SavedNameError(ProbingError, LookupError):
    """A class has no name in saved files, or a name stands for no class."""


def _by_name(homes: Mapping[str, str]) -> dict[str, str]:
    """Return the place `module:class` of each short name: the class's own, or what stands after a colon."""
    found: dict[str, str] = {}
    for module, classes in homes.items():
        for entry in classes.split():
            cls, _, name = entry.partition(":")
            found[name or cls] = f"{module}:{cls}"
    return found


# Where the classes are now: whoever moves or renames one changes its line here, and keeps its short name.
_PLACES = _by_name(
    {
        "probing.results.result": "Provenance",
        "probing.models.precision": "Precision",
        "probing.models.geometry": "Geometry",
        "probing.statistics.estimators": "Hinge Lda Logistic Pattern Ridge:RidgeEstimator",
        "probing.atlas": "Atlas AtlasResult Pca Umap",
        "probing.attribution.attention": "AttentionRelevance AttentionRollout",
        "probing.attribution.base": "Attribution",
        "probing.attribution.baselines": "Blurred Constant Extremes Mean Samples Uniform:UniformBaseline",
        "probing.attribution.cam.grad_cam": "AblationCAM GradCAM GradCAMPlusPlus GuidedGradCAM HiResCAM LayerCAM XGradCAM",
        "probing.attribution.cam.eigen_cam": "EigenCAM",
        "probing.attribution.cam.finer_cam": "FinerCAM",
        "probing.attribution.cam.score_cam": "ScoreCAM",
        "probing.attribution.cam.cam": "CAM",
        "probing.attribution.conductance": "InternalInfluence LayerConductance",
        "probing.attribution.curved_paths": "BlurIG GuidedIG",
        "probing.attribution.deep_lift": "DeepLIFT DeepSHAP",
        "probing.attribution.gradient": "Deconvolution GradientTimesInput GuidedBackprop Saliency SmoothGrad",
        "probing.attribution.perturbation.lime": "LIME TextAttribution TextLIME",
        "probing.attribution.perturbation.occlusion": "FeatureAblation Occlusion",
        "probing.attribution.perturbation.rise": "RISE",
        "probing.attribution.perturbation.interactions": "InteractionResult PairInteractions",
        "probing.attribution.perturbation.owen": "Owen OwenSampling",
        "probing.attribution.perturbation.shapley": "Shapley",
        "probing.attribution.perturbation.sobol": "Sobol",
        "probing.attribution.perturbation.tables": "TableAttribution TableLIME",
        "probing.attribution.lrp.conditional": "ConditionalLRP",
        "probing.attribution.lrp.lrp": "LRP",
        "probing.attribution.lrp.composites": "EpsilonAlpha2Beta1 EpsilonAlpha2Beta1Flat EpsilonGammaBox EpsilonPlus "
        "EpsilonPlusFlat PerLayer Uniform:UniformComposite",
        "probing.attribution.perturbation.parts": "Occurrences PartMean Words",
        "probing.attribution.path": "ExpectedGradients IntegratedGradients LayerIntegratedGradients",
        "probing.attribution.perturbation.regression": "Lasso Ridge:RidgeSurrogate",
        "probing.attribution.lrp.rules": "AlphaBeta Epsilon Flat:FlatRule Gamma Pass WSquare ZBox ZPlus",
        "probing.attribution.perturbation.superpixels": "Blocks Each EachToken Given Grid:GridParts Quickshift Separate "
        "Slic",
        "probing.attribution.perturbation.surrogate": "ExactShapley KernelShap Local:LocalSurrogate ShapleySampling",
        "probing.attribution.training_data": "InfluenceResult RepresentationSimilarity TracIn",
        "probing.attribution.xrai": "XRAI",
        "probing.evaluation.axioms": "AxiomTable Check Completeness Dummy ImplementationInvariance InputShift Linearity "
        "SensitivityA Symmetry",
        "probing.evaluation.base": "Measurement",
        "probing.evaluation.complexity": "EffectivePlaces ExplanationLength Gini PictureBytes",
        "probing.evaluation.reference_maps": "EdgeDetector InputSize RandomMap",
        "probing.evaluation.scorecard.cost": "Cost",
        "probing.evaluation.curves": "Curves Deletion Insertion PixelFlipping Road",
        "probing.evaluation.localisation": "EnergyShare InsideAuroc MaskIou PointingGame RelevanceRank WeakLocalisation",
        "probing.evaluation.removal": "Imputed",
        "probing.evaluation.irof": "Irof",
        "probing.evaluation.monotonicity": "Monotonicity MonotonicityCorrelation",
        "probing.evaluation.rationales": "Comprehensiveness Sufficiency",
        "probing.evaluation.retraining": "DataRandomisation Kar Retrained Roar Training",
        "probing.evaluation.robustness": "Infidelity MaxSensitivity SeedStability SensitivityN",
        "probing.evaluation.randomisation": "CascadingRandomisation EfficientRandomisation IndependentRandomisation "
        "Randomisation SmoothRandomisation",
        "probing.evaluation.significance": "PartSignificance PartsResult",
        "probing.evaluation.scorecard.scorecard": "Row Scorecard",
        "probing.evaluation.scorecard.measure": "Scoring",
        "probing.evaluation.similarity": "AbsoluteSpearman HogSimilarity SignedSpearman Ssim TopIou",
        "probing.maximization.optimizers": "Adam Normalized Plain Progress",
        "probing.maximization.parameterisations": "Fourier Maco Pixels Shared",
        "probing.maximization.lucent": "LucentImage",
        "probing.maximization.regularizers": "Ball Blur Box ClipSmallContribution ClipSmallNorm Decay L1 L2 TotalVariation",
        "probing.maximization.result": "Beside Maximization",
        "probing.maximization.run": "Maximize",
        "probing.maximization.pixel_space": "Space",
        "probing.maximization.transforms": "Crop Jitter Pad Rotate Scale",
        "probing.probes.probes": "RidgeProbe SoftmaxProbe",
        "probing.probes.layer_probes": "LayerProbes",
        "probing.probes.leave_one_out": "LeaveOneOutProbes LeaveOneOutResult",
        "probing.probes.reduction": "Flat:FlatReduction GlobalAverage Grid:GridReduction RandomProjection RandomSubset",
        "probing.probes.result": "ProbeResult",
        "probing.probes.training_probes": "ProbeHistory",
        "concepts.dissection.ablation": "Ablation AblationResult",
        "concepts.auditing.analyses.atlas": "AttributeAtlases",
        "concepts.auditing.analyses.discovery": "AttributeAtoms",
        "concepts.auditing.analyses.heat_maps": "HeatMapComparison Shown:ShownMaps",
        "concepts.auditing.analyses.dissection": "AttributeUnits",
        "concepts.auditing.analyses.dreams": "ConceptDreams Dreams",
        "concepts.auditing.analyses.probes": "AttributeProbes",
        "concepts.discovery.dictionary": "Dictionary Nearest:NearestCoder NonNegative:NonNegativeCoder "
        "Projection:ProjectionCoder TopK:TopKCoder",
        "concepts.discovery.discovery": "Discovery",
        "concepts.discovery.matching": "Agreement:DictionaryAgreement",
        "concepts.discovery.naming": "Naming",
        "concepts.discovery.replacement": "Replacement",
        "concepts.discovery.result": "DiscoveryResult Importance:AtomImportance TwinReading",
        "concepts.discovery.learners": "KMeans Nmf Pca:PcaDictionary SemiNmf",
        "concepts.discovery.slices": "Slices SlicesResult",
        "concepts.discovery.sparse_autoencoder": "TopKAutoencoder",
        "concepts.erasure.corrections": "GroupDro LastLayer Projection:AttributeProjection",
        "concepts.erasure.erasure": "Erasure",
        "concepts.erasure.mending": "Mending",
        "concepts.erasure.mending_result": "MendingResult",
        "concepts.erasure.patching": "Patching PatchingResult",
        "concepts.erasure.read_used_moved": "ReadUsedMoved",
        "concepts.erasure.result": "ErasureResult",
        "concepts.erasure.table": "ReadUsedMovedResult",
        "concepts.tcav.associations": "Associations",
        "concepts.local_vs_global.compare": "Compare",
        "concepts.local_vs_global.result": "Comparison Parting",
        "concepts.dissection.dissection": "Dissection",
        "concepts.dissection.protocols": "Protocol",
        "concepts.dissection.result": "DissectionResult NullScores",
        "concepts.dissection.rotation": "Rotation",
        "concepts.dissection.label_tests": "LabelTest",
        "concepts.tcav.sampling": "LeaveOneOut Relabelled",
        "concepts.effects.logit_effect": "LogitEffect",
        "concepts.effects.result": "EffectResult",
        "concepts.scorecard_rows": "NetworkRows",
        "concepts.effects.concept_attribution": "ConceptAttribution ConceptGradients",
        "concepts.auditing.measurement.results": "AuditResults Backdrop:AuditBackdrop CellRow:AuditCell "
        "ClusterRow:AuditCluster ConceptInfo:AuditConcept LayerRow:AuditLayer LikenessRow:AuditLikeness "
        "PairRow:AuditPair PickedRow:AuditPicked PositionRow:AuditPosition SwapRow:AuditSwap TargetInfo:AuditTarget",
        "concepts.auditing.model_comparison.compare": "Difference:AuditDifference Side:AuditSide SideBySide",
        "concepts.auditing.replication.replicate": "Replication",
        "concepts.tcav.tcav": "Tcav",
        "concepts.tcav.result": "TcavResult",
        "concepts.dissection.unit_contrasts": "UnitContrasts UnitShifts",
        "concepts.auditing.word_swaps.result": "WordResult",
    }
)

# Version 0.1 wrote `module:class` into its files. These are the places of its classes; no line changes any more.
_PLACES_0_1 = _by_name(
    {
        "probing.provenance": "Provenance",
        "probing.precision": "Precision",
        "probing.geometry": "Geometry",
        "probing.estimators": "Hinge Lda Logistic Pattern Ridge:RidgeEstimator",
        "probing.embedding": "Atlas AtlasResult Pca Umap",
        "probing.attribution.base": "Attribution",
        "probing.attribution.baselines": "Blurred Constant Mean Samples Uniform:UniformBaseline",
        "probing.attribution.cam": "AblationCAM GradCAM GradCAMPlusPlus GuidedGradCAM HiResCAM LayerCAM",
        "probing.attribution.exact_cam": "CAM",
        "probing.attribution.gradient": "Deconvolution GradientTimesInput GuidedBackprop Saliency SmoothGrad",
        "probing.attribution.lime": "LIME TextAttribution TextLIME",
        "probing.attribution.lrp": "LRP",
        "probing.attribution.lrp_composites": "EpsilonAlpha2Beta1 EpsilonAlpha2Beta1Flat EpsilonGammaBox EpsilonPlus "
        "EpsilonPlusFlat PerLayer Uniform:UniformComposite",
        "probing.attribution.parts": "Occurrences PartMean Words",
        "probing.attribution.path": "ExpectedGradients IntegratedGradients LayerIntegratedGradients",
        "probing.attribution.regression": "Lasso Ridge:RidgeSurrogate",
        "probing.attribution.rules": "AlphaBeta Epsilon Flat:FlatRule Gamma Pass WSquare ZBox ZPlus",
        "probing.attribution.superpixels": "Each Given Grid:GridParts Quickshift Slic",
        "probing.attribution.surrogate": "ExactShapley KernelShap Local:LocalSurrogate",
        "probing.evaluation.axioms": "AxiomTable Check Completeness Dummy ImplementationInvariance InputShift Linearity "
        "SensitivityA Symmetry",
        "probing.evaluation.base": "Measurement",
        "probing.evaluation.complexity": "EffectivePlaces ExplanationLength Gini PictureBytes",
        "probing.evaluation.controls": "EdgeDetector InputSize RandomMap",
        "probing.evaluation.cost": "Cost",
        "probing.evaluation.curves": "Curves Deletion Insertion PixelFlipping Road",
        "probing.evaluation.localisation": "EnergyShare InsideAuroc MaskIou PointingGame RelevanceRank WeakLocalisation",
        "probing.evaluation.removal": "Imputed",
        "probing.evaluation.retraining": "DataRandomisation Kar Retrained Roar Training",
        "probing.evaluation.robustness": "Infidelity MaxSensitivity SeedStability SensitivityN",
        "probing.evaluation.sanity": "CascadingRandomisation IndependentRandomisation Randomisation",
        "probing.evaluation.scorecard": "Row Scorecard",
        "probing.evaluation.scoring": "Scoring",
        "probing.evaluation.similarity": "AbsoluteSpearman HogSimilarity SignedSpearman Ssim TopIou",
        "probing.maximize.ascent": "Adam Normalized Plain Progress",
        "probing.maximize.images": "Fourier Maco Pixels Shared",
        "probing.maximize.lucent": "LucentImage",
        "probing.maximize.regularizers": "Ball Blur Box ClipSmallContribution ClipSmallNorm Decay L1 L2 TotalVariation",
        "probing.maximize.result": "Beside Maximization",
        "probing.maximize.run": "Maximize",
        "probing.maximize.space": "Space",
        "probing.maximize.transforms": "Crop Jitter Pad Rotate Scale",
        "probing.probes.kinds": "RidgeProbe SoftmaxProbe",
        "probing.probes.layers": "LayerProbes",
        "probing.probes.reduction": "Flat:FlatReduction GlobalAverage Grid:GridReduction RandomProjection RandomSubset",
        "probing.probes.result": "ProbeResult",
        "probing.probes.training": "ProbeHistory",
        "concepts.ablation": "Ablation AblationResult",
        "concepts.analyses.atlas": "AttributeAtlases",
        "concepts.analyses.compare": "HeatMapComparison Shown:ShownMaps",
        "concepts.analyses.dissection": "AttributeUnits",
        "concepts.analyses.dreams": "ConceptDreams Dreams",
        "concepts.analyses.probes": "AttributeProbes",
        "concepts.bias": "Associations",
        "concepts.compare": "Compare",
        "concepts.compare_result": "Comparison Parting",
        "concepts.dissect": "Dissection",
        "concepts.dissection.protocols": "Protocol",
        "concepts.dissection.result": "DissectionResult NullScores",
        "concepts.dissection.rotation": "Rotation",
        "concepts.dissection.sanity": "LabelTest",
        "concepts.draws": "LeaveOneOut Relabelled",
        "concepts.effect": "LogitEffect",
        "concepts.effect_result": "EffectResult",
        "concepts.network_rows": "NetworkRows",
        "concepts.projection": "ConceptAttribution ConceptGradients",
        "concepts.replication": "Replication",
        "concepts.tcav": "Tcav",
        "concepts.tcav_result": "TcavResult",
        "concepts.units": "UnitContrasts UnitShifts",
        "concepts.word_result": "WordResult",
    }
)
_NAMES_0_1 = {place: name for name, place in _PLACES_0_1.items()}
_NAMES = {place: name for name, place in _PLACES.items()}
_REGISTERED: dict[str, type] = {}


def saved_as(name: str) -> Callable[[C], C]:
    """Return a decorator that gives a frozen dataclass of yours its name in saved files, so that it can be loaded.

    The module that holds it must be imported before a file is loaded.

    Args:
        name: with a dot, such as `"mylab.Found"`; names without are the suite's.

    Raises:
        SavedNameError: if the name has no dot, or stands for another class.

    Example:
        >>> @saved_as("mylab.Found")
        ... @dataclass(frozen=True)
        ... class Found(Result):
        ...     values: Tensor
    """

    def register(cls: C) -> C:
        place = _place(cls)
        if "." not in name or ":" in name:
            raise SavedNameError(f"give {place} a name with a dot and no colon, such as 'mylab.Found', got {name!r}.")
        other = _REGISTERED.get(name)
        if other is not None and _place(other) != place:
            raise SavedNameError(f"the name {name!r} stands for {_place(other)}: give {place} another.")
        _REGISTERED[name] = cls
        return cls

    return register


def name_of(cls: type) -> str | None:
    """Return a class's name in saved files; None for one that has none."""
    own = next((name for name, known in _REGISTERED.items() if known is cls), None)
    return own or _NAMES.get(_place(cls))


def class_of(name: str) -> type:
    """Return the class that a saved file names, by its short name or as version 0.1 wrote it.

    Raises:
        SavedNameError: if there is none.
    """
    short = _NAMES_0_1.get(name, name)
    if short in _REGISTERED:
        return _REGISTERED[short]
    if short not in _PLACES:
        raise SavedNameError(
            f"{name!r} is no registered name of a class: it is of a later version, or of a module of your own that "
            "must be imported first and register it by 'saved_as'"
        )
    module, _, cls = _PLACES[short].partition(":")
    found: type = getattr(importlib.import_module(module), cls)
    return found


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
