"""Generation jobs: many images through a filtered pipeline, resumable, with the evidence beside them."""

from .plan import Plan, Request, plan_of, read_requests
from .run import Generated, generate

__all__ = ["Generated", "Plan", "Request", "generate", "plan_of", "read_requests"]
