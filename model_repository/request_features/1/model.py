"""Adapter: raw request -> features of the prefix graph. Logic: `serving.backend.request`."""

import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import time

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.adapter import (
    array,
    integer_parameter,
    pad_rows,
    rank_parameter,
    rerank_parameter,
    served_log_parameter,
    user_parameter,
)
from serving.backend.answers import answer_each
from serving.backend.draining import Draining
from serving.backend.entry import Entry
from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import Outcomes
from serving.backend.request import check_exclude, check_num_ads, check_present, request_features
from serving.backend.served import pack_context
from serving.backend.terms import check_accounts, check_cap
from serving.backend.unknown_values import UnknownValues
from serving.index.reader import IndexReader


class TritonPythonModel:
    """One request may carry b rows; shapes beside each name are of one request."""

    def initialize(self, args):
        """Open the index; a missing one fails the load with its reason."""
        self.settings = settings = ModelSettings.read(args)
        self.spec = settings.features
        self.reader = IndexReader(settings.index_folder, search=False, max_wait_s=0.0)
        self.limits, self.rank_by = settings.serving.limits, settings.serving.rank_by
        self.is_logged = settings.serving.served_log.sink != "off"
        self.terms = settings.terms
        self.outcomes = Outcomes(pb_utils, model="request_features")
        self.draining = Draining()
        self.unknown = UnknownValues(pb_utils, self.spec) if self.spec.request_features else None
        self.entry = Entry(pb_utils, max_queue=settings.serving.max_queue)

    def finalize(self):
        """Leave nothing behind."""
        self.outcomes.close()
        if self.unknown:
            self.unknown.close()
        self.entry.close()

    def execute(self, requests):
        """Check and build features, request by request."""
        self.reader.refresh()
        return answer_each(pb_utils, requests, self.run, outcomes=self.outcomes)

    def run(self, request):
        """Features of one request."""
        arrived = time.monotonic()
        self.draining.check(arrived)
        ad_ids = array(pb_utils, request, "history_ad_ids")  # [b, N]
        self.entry.check(arrived, rows=1 if ad_ids is None else len(ad_ids))  # before anything is done for it
        behaviors = array(pb_utils, request, "history_behaviors")  # [b, N]
        timestamps = array(pb_utils, request, "history_timestamps")  # [b, N]
        spec = self.spec
        profile = array(pb_utils, request, "profile") if spec.profile_sizes else None  # [b, P]
        sent = {f.name: array(pb_utils, request, f.name) for f in spec.request_features}  # [b, 1] or None
        num_ads = array(pb_utils, request, "num_ads")  # [b, 1]
        now = array(pb_utils, request, "timestamp")  # [b, 1] or None
        exclude = array(pb_utils, request, "exclude_ad_ids")  # [b, E] or None
        check_present(
            history_ad_ids=ad_ids,
            history_behaviors=behaviors,
            history_timestamps=timestamps,
            **({"profile": profile} if spec.profile_sizes else {}),
            num_ads=num_ads,
        )
        check_num_ads(num_ads[:, 0], self.limits)
        # Of ad_resolver: a wrong one is refused before anything is searched.
        rank_parameter(request, default=self.rank_by)
        ranked = rerank_parameter(request, self.settings)
        cap = check_cap(integer_parameter(request, "max_per_account"), terms=self.terms)
        rows = len(ad_ids)
        if self.is_logged:
            user_parameter(request, rows=rows)
            served_log_parameter(request)
        profile = np.zeros((rows, 0), np.int32) if profile is None else profile
        now = np.full((rows, 1), int(time.time())) if now is None else now
        exclude = np.zeros((rows, 0), np.int64) if exclude is None else exclude
        built = [
            request_features(
                spec,
                self.reader.snapshot,
                ad_ids=ad_ids[i],
                behaviors=behaviors[i],
                timestamps=timestamps[i],
                profile=profile[i],
                now=int(now[i, 0]),
                given={name: values[i, 0] for name, values in sent.items() if values is not None},
            )
            for i in range(rows)
        ]
        if self.unknown:
            self.unknown.count(name for f in built for name in f.unknown)
        return {
            "slot_ads": np.stack([f.slot_ads for f in built]),
            "slots": np.stack([f.slots for f in built]),
            **({"profile_codes": np.stack([f.profile for f in built])} if spec.column_sizes else {}),
            "excluded": pad_rows([check_exclude(e, self.limits) for e in exclude], fill=-1),
            "ignored_history": np.array([[f.ignored] for f in built], np.int32),
            "arrived": np.full((rows, 1), arrived),
            **(self.past(built, now, ranked=ranked) if self.settings.ranker else {}),
            **({"served_context": pack_context(built, now)} if self.is_logged else {}),
            **({"terms": self.packed_terms(request, built, now, cap=cap)} if self.terms else {}),
        }

    def packed_terms(self, request, built, now, *, cap):
        """What of each row decides which ads it may be shown, int64 [b, n]."""
        rows, given = len(built), self.settings.serving.attributes
        attributes = array(pb_utils, request, "attributes") if given else None  # [b, A] or None
        attributes = np.full((rows, len(given)), b"", object) if attributes is None else attributes
        accounts = array(pb_utils, request, "exclude_account_ids")  # [b, E] or None
        accounts = np.zeros((rows, 0), object) if accounts is None else accounts
        packed = [
            self.terms.pack(
                built[i].profile,
                attributes[i],
                now=int(now[i, 0]),
                max_per_account=cap,
                excluded_accounts=check_accounts(accounts[i], self.limits),
            )
            for i in range(rows)
        ]
        return pad_rows(packed, fill=0)

    @staticmethod
    def past(built, now, *, ranked):
        """What the ranking stage is told of each row; no events where it has nothing to do."""
        kept = slice(None) if ranked else slice(0)
        return {
            "past_ads": pad_rows([f.past_ads[kept] for f in built], fill=-1),
            "past_behaviors": pad_rows([f.past_behaviors[kept] for f in built], fill=0),
            "past_times": pad_rows([f.past_times[kept] for f in built], fill=0),
            "asked_at": now.astype(np.int64),
        }
