"""The page: blocks of Gradio around ``Examiner`` and ``Drawer``."""

from __future__ import annotations

import functools
import os
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import ConfigurationError, MissingExtraError
from ..folders import name_of
from ..images import ImageSource
from .draw import Drawer
from .examine import Examiner
from .finding import render

if TYPE_CHECKING:
    import gradio

STEPS, MOST_STEPS = 30, 100
MOST_SEED = 2**53
"""Up to here a browser knows every whole number."""
KEPT_SECONDS = 600
"""How long an uploaded or drawn picture stays in the server's temporary folder."""
FONTS = ("system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")


def check_gradio() -> Any:
    """Gradio, with its reports to its makers off.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingExtraError(
            f"the app needs gradio ({error}); install it with: pip install 'lcmem_filter[app]'"
        ) from error
    return gradio


def build_app(
    examiner: Examiner, *, drawer: Drawer | None = None, training: ImageSource | None = None
) -> gradio.Blocks:
    """The page, not yet served; see ``serve``.

    Args:
        examiner: Judges what is uploaded.
        drawer: Draws prompts; without it the page has no such tab.
        training: The indexed images, with the same ids, to show the nearest ones; without it they are named only.

    Raises:
        MissingExtraError: gradio is not installed.
    """
    gr = check_gradio()
    index = examiner.filter.index
    show = functools.partial(render, training=index.pictures_in(training) if training else None)
    with gr.Blocks(
        title="Is it a copy? lcmem-filter",
        analytics_enabled=False,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    ) as page:
        gr.Markdown(_heading(examiner))
        with gr.Tab("An image"):
            _image_tab(gr, examiner, show)
        if drawer is not None:
            with gr.Tab("A prompt" if drawer.takes_prompt else "A draw"):
                _prompt_tab(gr, drawer, show)
    return page


def serve(
    page: gradio.Blocks, *, host: str = "127.0.0.1", port: int | None = None, block: bool = True
) -> str:
    """Serve a page to this machine, and return its address; nothing is shared or reported to anybody.

    Args:
        host: Address to listen at. Whoever reaches another than the default sees training images.
        port: A free one from 7860 on by default.
        block: Return only when the server is stopped, by an interrupt.

    Raises:
        ConfigurationError: the page does not answer on this machine; the port, or each from 7860 on, is taken; or the
            host is not this machine.
    """
    gr = check_gradio()
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=not block,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace")),
            css=(files(__package__) / "templates" / "app.css").read_text(encoding="utf-8"),
        )
    except OSError as error:  # Gradio says the same of either, and names options of its own
        where = "any port from 7860 on" if port is None else f"port {port}"
        raise ConfigurationError(
            f"the page cannot listen at {host}, {where}: that is taken, or {host} is not this machine; give another "
            "--port or --host"
        ) from error
    except Exception as error:  # Gradio asks its own server, and advises to share the page with the world
        raise ConfigurationError(
            f"the page does not answer at {host} ({type(error).__name__}); where a proxy is set, exempt this machine "
            "from it: NO_PROXY=127.0.0.1,localhost; else the machine may be too busy: try again"
        ) from error
    return str(address)


def _heading(examiner: Examiner) -> str:
    index, calibration = examiner.filter.index, examiner.filter.calibration
    missing = f", {len(index.unreadable):,} missing" if index.unreadable else ""
    return (
        f"# Is it a copy of a training image?\n"
        f"Compared with the {len(index):,} training images of index `{name_of(index.path).replace('`', '')}`{missing}. "
        f"Of real images that the pipeline never saw, about {100 * calibration.false_rejection_rate:.3g}% match "
        f"({calibration.n:,} of them set the threshold)."
    )


def _picture(gr: Any, label: str) -> Any:
    """Where a picture is shown; without Gradio's button that posts it on the web."""
    return gr.Image(
        label=label,
        interactive=False,
        format="png",
        height=300,
        buttons=["download", "fullscreen"],
        elem_classes="lcmem-picture",
    )


def _image_tab(gr: Any, examiner: Examiner, show: Any) -> None:
    def examine(file: str | None) -> tuple[Image.Image | None, str]:
        if file is None:
            return None, ""
        finding = examiner.examine(file)
        return finding.picture, show(finding)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = gr.File(
                label="Image file",
                type="filepath",
                height=140,
            )
            picture = _picture(gr, "As it is judged")
        with gr.Column(scale=3, min_width=320):
            verdict = gr.HTML()
    upload.change(
        examine, upload, [picture, verdict], api_name="examine", concurrency_limit=1, concurrency_id="filter"
    )


def _prompt_tab(gr: Any, drawer: Drawer, show: Any) -> None:
    def draw(prompt: str, steps: float, seed: float | None) -> tuple[Image.Image | None, str]:
        # a field that was emptied gives no seed
        finding = drawer.draw(prompt, steps=int(steps), seed=int(seed or 0))
        return finding.picture, show(finding)

    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(label="Prompt", lines=2, visible=drawer.takes_prompt)
            with gr.Row():
                steps = gr.Slider(1, MOST_STEPS, STEPS, step=1, label="Steps")
                seed = gr.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="Seed")
            button = gr.Button("Draw", variant="primary")
            picture = _picture(gr, "Drawn through the filter")
        with gr.Column(scale=3, min_width=320):
            verdict = gr.HTML()
    gr.on(
        [button.click, prompt.submit],
        draw,
        [prompt, steps, seed],
        [picture, verdict],
        api_name="draw",
        concurrency_limit=1,
        concurrency_id="filter",
    )
