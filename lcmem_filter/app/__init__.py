"""A small web page for trying one image, or one prompt, against an index (extra ``app``)."""

from .draw import Drawer
from .examine import Examiner
from .finding import Finding, render
from .page import build_app, check_gradio, serve

__all__ = ["Drawer", "Examiner", "Finding", "build_app", "check_gradio", "render", "serve"]
