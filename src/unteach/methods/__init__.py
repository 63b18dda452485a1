"""The losses of unlearning as pure functions, and the dict `METHODS` that names them."""

from unteach.losses.token import (
    clamped_log_odds,
    forward_kl_to_reference,
    gradient_ascent,
    negative_log_likelihood,
    saturation_importance,
    unlikelihood,
    weighted_gradient_ascent,
)
from unteach.methods.methods import DEFAULT_METHOD, METHODS, ROLES, Method, RetainTerm, get_method
from unteach.methods.terms import RoleTokens, objective_terms, step_counts, total_loss

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "ROLES",
    "Method",
    "RetainTerm",
    "RoleTokens",
    "clamped_log_odds",
    "forward_kl_to_reference",
    "get_method",
    "gradient_ascent",
    "negative_log_likelihood",
    "objective_terms",
    "saturation_importance",
    "step_counts",
    "total_loss",
    "unlikelihood",
    "weighted_gradient_ascent",
]
