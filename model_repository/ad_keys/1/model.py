"""Adapter: ads of an answer -> their keys; runs only where somebody asks. Logic: `serving.index.ad_keys`."""

import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.adapter import array
from serving.backend.answers import answer_each
from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import Outcomes
from serving.backend.request import check_num_ads
from serving.index.ad_keys import AdKeys


class TritonPythonModel:
    """One request may carry b rows."""

    def initialize(self, args):
        """Open the index."""
        settings = ModelSettings.read(args)
        self.reader = AdKeys(settings.index_folder)
        self.limits = settings.serving.limits
        self.outcomes = Outcomes(pb_utils, model="ad_keys")

    def finalize(self):
        """Leave nothing behind."""
        self.outcomes.close()
        self.reader.close()

    def execute(self, requests):
        """Look up request by request."""
        return answer_each(pb_utils, requests, self.run, outcomes=self.outcomes)

    def run(self, request):
        """Keys of one request's ads, resolved_ads [b, k]."""
        ad_ids = array(pb_utils, request, "resolved_ads")
        # Whoever calls this model past the ensemble must not keep it busy.
        check_num_ads(np.array(ad_ids.shape[1]), self.limits)
        keys = np.array(self.reader.of(ad_ids.ravel().tolist()), np.object_)
        return {"ad_keys": keys.reshape(ad_ids.shape)}
