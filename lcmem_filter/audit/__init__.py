"""Audits: is any of a finished set of images a copy of a training image, and how far can the answer be trusted?"""

from .allow import read_allow_list
from .on_the_fly import temporary_index
from .run import Audit, audit_images

__all__ = ["Audit", "audit_images", "read_allow_list", "temporary_index"]
