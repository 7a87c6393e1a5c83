"""A small HTTP service: GET /image?prompt=... answers with a PNG, or with 503 where every draw was a copy.

pip install fastapi uvicorn
python service.py PIPELINE INDEX
"""

import io
import sys
from threading import Lock

import uvicorn
from diffusers import StableDiffusionPipeline
from fastapi import FastAPI, Response

import lcmem_filter


def service(pipeline: str, index: str) -> FastAPI:
    app, turn = FastAPI(), Lock()
    pipe = StableDiffusionPipeline.from_pretrained(pipeline)
    pipe.with_memorization_filter(index, on_exhausted="raise")
    app.add_exception_handler(lcmem_filter.MemorizationError, lambda *_: Response(status_code=503))

    @app.get("/image")
    def image(prompt: str) -> Response:
        with turn:
            drawn = pipe(prompt, num_inference_steps=25).images[0]
        encoded = io.BytesIO()
        drawn.save(encoded, "PNG")
        return Response(encoded.getvalue(), media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(service(*sys.argv[1:]))
