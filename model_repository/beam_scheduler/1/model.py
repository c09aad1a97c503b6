"""Adapter: features -> beams, through the graph models. Logic: `serving.scheduler`."""

import os
import sys
from pathlib import Path

# The stub starts Python isolated: the checkout and its virtual environment come first, before NumPy is
# imported.
ROOT = Path(os.environ.get("GR4AD_HOME", Path(__file__).resolve().parents[3]))
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob(".venv/lib/python*/site-packages"))]

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.adapter import (
    array,
    cache_parameter,
    integer_parameter,
    pad_rows,
    ranked_among,
    text_parameter,
)
from serving.backend.answers import answer_together
from serving.backend.engine import make_engine
from serving.backend.model_settings import ModelSettings
from serving.backend.outcomes import Outcomes
from serving.backend.plans import SearchPlans
from serving.backend.priority import yield_to_answers
from serving.backend.request import check_exclude, check_num_ads, parse_widths
from serving.backend.scheduler_load import SchedulerLoad, make_cache
from serving.backend.terms import unpack_terms
from serving.batch import SearchAnswer, SearchRequest
from serving.engines.timed import TimedExecutor
from serving.index.reader import IndexReader
from serving.load.pruning import Pruning
from serving.model.active_model import ActiveModel
from serving.scheduler import Scheduler
from serving.search.cold_start import ColdStart


class TritonPythonModel:
    """All requests of a batch share one search, so one call a level serves them all."""

    def initialize(self, args):
        """Open index and manifest; the graphs are called first when a request comes."""
        yield_to_answers()
        settings = ModelSettings.read(args)
        serving, bundles = settings.serving, settings.bundles_folder
        reader = IndexReader(settings.index_folder)
        self.engine = make_engine(pb_utils, settings, repository=Path(args["model_repository"]).parent)
        active = ActiveModel(
            bundles,
            reader=reader,
            graphs=self.engine,
            features=settings.features,
            ranker=settings.ranker,
            canaries=serving.graph_calls == "in_process",
        )
        self.levels = active.manifest.levels
        self.limits, self.is_logged = serving.limits, serving.served_log.sink != "off"
        self.terms = settings.terms
        self.outcomes = Outcomes(pb_utils, model=args["model_instance_name"])
        plans = SearchPlans.of(serving, levels=self.levels)
        self.settings = settings
        pruning = Pruning(levels=self.levels) if serving.prune == "exact" else None
        self.load = SchedulerLoad(
            pb_utils,
            serving,
            ladder=plans.ladder,
            instance=args["model_instance_name"],
            pruning=pruning,
        )
        self.scheduler = Scheduler(
            reader,
            active,
            plan=plans.plan,
            max_plan=plans.max_plan,
            normalise=plans.normalise,
            make_executor=self.make_executor,
            make_cold_start=lambda manifest: ColdStart.load(
                bundles / str(manifest.version), manifest, share=serving.cold_start
            ),
            policy=self.load,
            pruning=pruning,
            cache=make_cache(serving),
            queue=self.load.queue,
        )

    def finalize(self):
        """Stop watching the queue, and give metrics back."""
        self.load.close()
        self.outcomes.close()

    def make_executor(self, manifest):
        """Engine of one model version, timed."""
        return TimedExecutor(
            self.engine.executor(manifest),
            last_level=manifest.levels + 1,
            report=self.load.observe_level,
        )

    def execute(self, requests):
        """Search for all rows of all requests at once."""
        return answer_together(
            pb_utils,
            requests,
            rows=self.rows,
            run=self.search,
            outputs=self.outputs,
            outcomes=self.outcomes,
        )

    def search(self, rows):
        """Answers of all rows."""
        self.load.took(row.arrived for row in rows)
        answers, report = self.scheduler.search(rows)
        found = zip(rows, answers, strict=True)
        self.load.show(report, answered=[row.arrived for row, a in found if isinstance(a, SearchAnswer)])
        return answers

    def rows(self, request):
        """Searches of one request: slot_ads [b, S], slots [b, S, 3], profile [b, P + Q], num_ads [b, 1] .."""
        cap, widths = integer_parameter(request, "width_cap"), text_parameter(request, "widths")
        plan = None if widths is None else parse_widths(widths, levels=self.levels)
        deadline, use_cache = integer_parameter(request, "deadline_ms"), cache_parameter(request)
        ads, slots, profile, num_ads, exclude, arrived = (
            array(pb_utils, request, name)
            for name in ("slot_ads", "slots", "profile_codes", "num_ads", "exclude", "arrived")
        )
        profile = np.zeros((len(ads), 0), np.int32) if profile is None else profile  # a model without columns
        terms = unpack_terms(self.terms, array(pb_utils, request, "terms"), rows=len(ads))
        among, by_value = ranked_among(request, self.settings)
        # Again: whoever calls this model past the ensemble must not fill memory.
        check_num_ads(num_ads, self.limits)
        return [
            SearchRequest(
                slot_ads=ads[i],
                slots=slots[i],
                profile=profile[i],
                num_ads=int(num_ads[i, 0]),
                exclude=check_exclude(exclude[i], self.limits),
                ranked_among=among,
                by_value=by_value,
                plan=plan,
                width_cap=cap,
                arrived=float(arrived[i, 0]),
                deadline=None if deadline is None else float(arrived[i, 0]) + deadline / 1e3,
                use_cache=use_cache,
                request_id=request.request_id() or None,
                terms=terms[i][0],
                max_per_account=terms[i][1],
            )
            for i in range(len(ads))
        ]

    def outputs(self, results):
        """Tensors of one request's rows; the plan once more for the served log."""
        widths = np.stack([r.beam_widths for r in results])
        degraded = np.array([[r.degraded] for r in results])
        return {
            "beam_sids": pad_rows([r.sids for r in results], fill=-1),
            "beam_scores": pad_rows([r.scores for r in results], fill=-np.inf),
            "beam_values": pad_rows([r.expected_value for r in results], fill=np.nan),
            "searched_model": np.array([[r.model_version] for r in results], np.int64),
            "searched_version": np.array([[r.index_version] for r in results], np.int64),
            "beam_widths": widths,
            "degraded": degraded,
            **({"served_plan": np.concatenate([widths, degraded], axis=1)} if self.is_logged else {}),
        }
