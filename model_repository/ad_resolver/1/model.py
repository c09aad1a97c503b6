"""Adapter: beams -> ads, looked up live. Logic: `serving.backend.resolve`."""

import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.adapter import array, pad_rows, rank_parameter
from serving.backend.answers import answer_each
from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import Outcomes
from serving.backend.request import check_num_ads
from serving.backend.resolve import NO_AD, VersionSnapshots, resolve
from serving.backend.resolver_metrics import ResolverMetrics
from serving.index.reader import IndexReader


class TritonPythonModel:
    """One request may carry b rows; their answers are padded to the longest."""

    def initialize(self, args):
        """Open the index."""
        settings = ModelSettings.read(args)
        # No wait: an ad that was paused is in no answer from then on.
        self.reader = IndexReader(settings.index_folder, max_wait_s=0.0, search=False)
        self.snapshots = VersionSnapshots(self.reader, settings.bundles_folder)
        self.metrics = ResolverMetrics(pb_utils, self.reader)
        self.outcomes = Outcomes(pb_utils, model="ad_resolver", last=True)
        self.limits, self.rank_by = settings.serving.limits, settings.serving.rank_by

    def finalize(self):
        """Leave nothing behind."""
        self.metrics.close()
        self.outcomes.close()

    def execute(self, requests):
        """Resolve request by request with the index as of now."""
        self.reader.refresh()
        self.metrics.look()
        return answer_each(pb_utils, requests, self.run, outcomes=self.outcomes)

    def run(self, request):
        """Ads of one request: beam_sids [b, n, T], beam_scores and beam_values [b, n]."""
        sids, scores, values, models, searched, num_ads, exclude = (
            array(pb_utils, request, name)
            for name in (
                *("beam_sids", "beam_scores", "beam_values", "searched_model", "searched_version"),
                *("num_ads", "exclude"),
            )
        )
        # Again: whoever calls this model past the ensemble must not fill memory.
        check_num_ads(num_ads, self.limits)
        rank_by = rank_parameter(request, default=self.rank_by)
        snapshots = [self.snapshots.of(int(v)) for v in models[:, 0]]
        rows = [
            resolve(
                snapshots[i],
                sids[i],
                scores=scores[i],
                expected_value=values[i],
                num_ads=int(num_ads[i, 0]),
                exclude=exclude[i],
                rank_by=rank_by,
            )
            for i in range(len(sids))
        ]
        ad_ids = pad_rows([r.ad_ids for r in rows], fill=NO_AD)
        self.metrics.count(ad_ids, num_ads)
        return {
            "ad_ids": ad_ids,
            "resolved_ads": ad_ids,
            "scores": pad_rows([r.scores for r in rows], fill=0),
            "expected_value": pad_rows([r.expected_value for r in rows], fill=0),
            "sids": pad_rows([r.sids for r in rows], fill=-1),
            "model_version": models,
            # What is at least in it: the search may be a little behind.
            "index_version": np.minimum(np.array([[s.version] for s in snapshots], np.int64), searched),
        }
