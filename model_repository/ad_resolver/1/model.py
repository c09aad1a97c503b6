"""Adapter: beams -> ads, looked up live, then ranked. Logic: `serving.backend.resolve`, `.reranking`."""

import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import functools
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.adapter import (
    array,
    pad_rows,
    rank_parameter,
    rerank_parameter,
    served_log_parameter,
    user_parameter,
)
from serving.backend.answers import answer_together
from serving.backend.engine import make_ranker
from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import Outcomes
from serving.backend.request import check_num_ads
from serving.backend.reranking import Past, Resolved, VersionRankers, rerank
from serving.backend.resolve import NO_AD, VersionSnapshots, find_ads
from serving.backend.resolver_metrics import ResolverMetrics
from serving.backend.served import make_served_log
from serving.backend.terms import unpack_terms
from serving.index.reader import IndexReader


class TritonPythonModel:
    """One request may carry b rows; their answers are padded to the longest."""

    def initialize(self, args):
        """Open the index."""
        self.settings = settings = ModelSettings.read(args)
        # No wait: an ad that was paused is in no answer from then on.
        self.reader = IndexReader(settings.index_folder, max_wait_s=0.0, search=False)
        self.snapshots = VersionSnapshots(self.reader, settings.bundles_folder)
        self.rankers = VersionRankers(
            settings.bundles_folder, functools.partial(make_ranker, pb_utils, settings)
        )
        self.terms = settings.terms
        self.metrics = ResolverMetrics(pb_utils, self.reader)
        self.outcomes = Outcomes(pb_utils, model="ad_resolver", last=True)
        self.served = make_served_log(settings, tell=self.metrics.served)
        if self.served:
            self.metrics.show_served()

    def finalize(self):
        """Leave nothing behind."""
        if self.served:
            self.served.close()
        self.metrics.close()
        self.outcomes.close()

    def execute(self, requests):
        """Look up all rows with the index as of now, and rank together those that ask for it."""
        self.reader.refresh()
        self.metrics.look()
        if self.served:
            self.served.tell()
        return answer_together(
            pb_utils,
            requests,
            rows=self.rows,
            run=self.rank,
            outputs=self.outputs,
            outcomes=self.outcomes,
        )

    def rows(self, request):
        """Rows of one request: beam_sids [b, n, T], beam_scores and beam_values [b, n] .."""
        sids, scores, values, models, searched, num_ads, exclude = (
            array(pb_utils, request, name)
            for name in (
                *("beam_sids", "beam_scores", "beam_values", "searched_model", "searched_version"),
                *("num_ads", "exclude"),
            )
        )
        # Again: whoever calls this model past the ensemble must not fill memory.
        check_num_ads(num_ads, self.settings.serving.limits)
        serving = self.settings.serving
        rank_by = rank_parameter(request, default=serving.rank_by)
        pasts = self.pasts(request, len(sids)) if rerank_parameter(request, self.settings) else None
        asked = self.asked(request, len(sids), rank_by=rank_by, reranked=pasts is not None)
        terms = unpack_terms(self.terms, array(pb_utils, request, "terms"), rows=len(sids))
        snapshots = [self.snapshots.of(int(v)) for v in models[:, 0]]
        return [
            Resolved(
                ads=find_ads(
                    snapshots[i],
                    sids[i],
                    scores=scores[i],
                    expected_value=values[i],
                    num_ads=int(num_ads[i, 0]),
                    exclude=exclude[i],
                    rank_by=rank_by,
                    pool=serving.rerank_pool if pasts else 0,
                    terms=terms[i][0],
                    max_per_account=terms[i][1],
                ),
                num_ads=int(num_ads[i, 0]),
                version=int(models[i, 0]),
                # What is at least in it: the search may be a little behind.
                index_version=min(snapshots[i].version, int(searched[i, 0])),
                snapshot=snapshots[i],
                past=pasts[i] if pasts else None,
                asked=asked[i],
            )
            for i in range(len(sids))
        ]

    def asked(self, request, rows, *, rank_by, reranked):
        """What the served log says of each row; None where it says nothing."""
        if not self.served or not served_log_parameter(request):
            return [None] * rows
        return self.served.asked(
            request.request_id(),
            user_parameter(request, rows=rows),
            rows=rows,
            array=lambda name: array(pb_utils, request, name),
            rank_by=rank_by,
            reranked=reranked,
        )

    def pasts(self, request, rows):
        """What a ranker is told: past_ads, past_behaviors and past_times [b, h], asked_at [b, 1]."""
        ads, behaviors, times, now, profile = (
            array(pb_utils, request, name)
            for name in ("past_ads", "past_behaviors", "past_times", "asked_at", "profile_codes")
        )
        profile = np.zeros((rows, 0), np.int32) if profile is None else profile  # a model without columns
        return [
            Past(ads=ads[i], behaviors=behaviors[i], times=times[i], now=int(now[i, 0]), profile=profile[i])
            for i in range(rows)
        ]

    def rank(self, rows):
        """Answers of all rows."""
        began = time.monotonic()
        answers = rerank(rows, self.rankers)
        ranked = sum(row.past is not None for row in rows)
        if ranked:
            self.metrics.ranked(ranked, seconds=time.monotonic() - began)
        return answers

    def outputs(self, answers):
        """Tensors of one request's rows."""
        for answer in answers if self.served else ():
            self.served.answered(
                answer.asked, answer.ads, model_version=answer.version, index_version=answer.index_version
            )
        ad_ids = pad_rows([a.ads.ad_ids for a in answers], fill=NO_AD)
        self.metrics.count(ad_ids, np.array([[a.num_ads] for a in answers]))
        return {
            "ad_ids": ad_ids,
            "resolved_ads": ad_ids,
            "scores": pad_rows([a.ads.scores for a in answers], fill=0),
            "expected_value": pad_rows([a.ads.expected_value for a in answers], fill=0),
            "sids": pad_rows([a.ads.sids for a in answers], fill=-1),
            "model_version": np.array([[a.version] for a in answers], np.int64),
            "index_version": np.array([[a.index_version] for a in answers], np.int64),
        }
