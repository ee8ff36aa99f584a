"""Relate what a network computes to concepts that people have names for.

Where images come from: `concepts.data.manifest`. Concepts and their random counterparts: `concepts.data.concept_sets`. Concept
directions: `concepts.tcav.cav`. Whether a class depends on them: `concepts.tcav.tcav`. A whole audit: `concepts.auditing.run`.
"""

from probing import __version__

__all__ = ["__version__"]
