# type: ignore  # Ray's decorators replace what they decorate, which type checkers cannot follow
"""Serves the network with Ray Serve, on one machine or on many.

    serve run serve_ray:app

Every machine needs this folder and these packages, and no torch:

    pip install -r requirements.txt "ray[serve]"
    pip install --no-deps resnetlab=={version}

Requests and answers are those of `resnetlab serve`:

    curl --data-binary @photo.jpg http://127.0.0.1:8000/v1/predict

Ray's proxy has no keys and no limit for the size of a request. Put one that has them between it and the internet.
"""

import asyncio
from pathlib import Path

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from resnetlab import UserError
from resnetlab.exporting.session import open_exported
from resnetlab.serving.app import Question, prediction

MODEL = Path(__file__).with_name("model.onnx")  # or model-int8.onnx
LARGEST = 20 * 2**20
"""The most bytes of an image file."""


@serve.deployment(
    ray_actor_options={"num_cpus": 1},
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 16},
    max_ongoing_requests=64,
    max_queued_requests=256,  # further requests get 503
)
class Network:
    """One copy of the network, on one core; Ray starts more of them under load."""

    def __init__(self) -> None:
        self.exported = open_exported(MODEL, threads=1)
        self.exported.selftest()  # this processor computes what the exporting one did

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0)
    async def scores(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the probabilities of the images that wait, together."""
        return list((await asyncio.to_thread(self.exported.run, np.stack(images)))["probabilities"])

    async def __call__(self, request: Request) -> JSONResponse:
        """Answers a request, whose body is an image file."""
        body = await request.body()
        if len(body) > LARGEST:
            return _error(413, "too_large", f"expected an image file of at most {LARGEST:,} bytes.")
        try:
            image = await asyncio.to_thread(self.exported.frame, body)
        except UserError as error:
            return _error(422, "unreadable_image", str(error))
        answer = {"probabilities": await self.scores(image)}
        found = prediction(answer, self.exported.class_names, Question())
        return JSONResponse({"model": self.exported.name, "predictions": [found]})


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


app = Network.bind()
