"""Adapter of the cpu target: one ONNX graph on ONNX Runtime, for a Triton without a backend for it."""

import logging
import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import triton_python_backend_utils as pb_utils

from serving.backend.adapter import array
from serving.backend.answers import answer_each
from serving.backend.model_settings import GraphSettings
from serving.backend.priority import yield_to_answers
from serving.engines.ort import open_checked
from serving.model.bundle import BundleError, read_manifest
from serving.model.manifest import AD_RANKER


class TritonPythonModel:
    """Tensor names of model and graph are the same."""

    def initialize(self, args):
        """Open the graph beside this file, if it is the one of the bundle.

        With another one it loads as well, answers nothing, and the scheduler refuses its version: a version
        that does not load would keep Triton from loading the good ones at its start.
        """
        settings = GraphSettings.read(args)
        if settings.graph != AD_RANKER:  # that one is part of an answer, not of a search
            yield_to_answers()
        file = Path(__file__).with_name("model.onnx")
        self.session, self.refusal = None, None
        try:
            manifest = read_manifest(settings.bundle(args["model_version"]), verify=False)
            self.session = open_checked(file, manifest, stem=settings.graph, threads=settings.threads)
        except BundleError as error:
            logging.getLogger(__name__).error("%s", error)
            self.refusal = error
            return
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def execute(self, requests):
        """Run the graph; callers batch, so there is nothing to merge here."""
        return answer_each(pb_utils, requests, self.run)

    def run(self, request):
        """Outputs of the graph."""
        if self.refusal is not None:
            raise self.refusal
        found = self.session.run(self.outputs, {n: array(pb_utils, request, n) for n in self.inputs})
        return dict(zip(self.outputs, found, strict=True))
