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
    parameters,
    resolve_path,
    text_parameter,
)
from serving.backend.answers import answer_together
from serving.backend.request import RequestLimits, check_exclude, check_num_ads, parse_widths
from serving.backend.scheduler_load import SchedulerLoad, make_cache
from serving.batch import SearchRequest
from serving.engines.bls import BlsExecutor
from serving.engines.ort import OrtGraphs
from serving.engines.padding import PaddedExecutor, ShapeBuckets
from serving.engines.timed import TimedExecutor
from serving.index.reader import IndexReader
from serving.load.ladder import Ladder
from serving.model.active_model import ActiveModel
from serving.model.bundle import read_current
from serving.scheduler import Scheduler
from serving.search.cold_start import ColdStart
from serving.search.normalise import parse_normalise
from serving.search.widths import WidthPlan


class TritonPythonModel:
    """All requests of a batch share one search, so one call a level serves them all."""

    def initialize(self, args):
        """Open index and manifest; the graphs are called first when a request comes."""
        config = parameters(args)
        self.graphs = None
        if config["graph_calls"] == "in_process":
            self.graphs = OrtGraphs(resolve_path(config["bundles"]), threads=int(config["threads"]))
        bundles = resolve_path(config["bundles"])
        reader = IndexReader(
            resolve_path(config["index"]), tokenizer_id=read_current(bundles, verify=False).tokenizer_id
        )
        active = ActiveModel(bundles, reader=reader, is_loaded=self.is_loaded)
        self.levels = active.manifest.levels
        self.device_memory = config["graph_memory"] == "device"
        plan, widest = (
            WidthPlan.parse(config[name], levels=self.levels) for name in ("widths", "max_widths")
        )
        ladder = Ladder.parse(config["ladder"], base=plan)
        self.plans = (plan, ladder.plans[0], widest)
        self.pad_to = int(config["max_batch_size"]) if config["pad_shapes"] == "true" else None
        self.limits = RequestLimits(
            max_num_ads=int(config["max_num_ads"]), max_exclude=int(config["max_exclude"])
        )
        self.load = SchedulerLoad(pb_utils, config, ladder=ladder, instance=args["model_instance_name"])
        self.scheduler = Scheduler(
            reader,
            active,
            plan=plan,
            max_plan=widest,
            normalise=parse_normalise(config["normalise"], levels=self.levels),
            make_executor=self.make_executor,
            make_cold_start=lambda manifest: ColdStart.load(
                bundles / str(manifest.version), manifest, share=float(config["cold_start"])
            ),
            policy=self.load.policy,
            cache=make_cache(config),
            queue=self.load.queue,
        )

    def finalize(self):
        """Stop watching the queue."""
        self.load.close()

    def is_loaded(self, manifest):
        """Whether Triton, or this process, has every graph of that version."""
        if self.graphs:
            return self.graphs.load(manifest)
        names = ["lazyar_prefix", *(f"lazyar_tail_{t}" for t in range(2, manifest.levels + 2))]
        return all(pb_utils.is_model_ready(model_name=n, model_version=str(manifest.version)) for n in names)

    def make_executor(self, manifest):
        """Engine of one model version."""
        if self.graphs:
            executor = self.graphs.executor(manifest)
        else:
            executor = BlsExecutor(
                pb_utils, levels=manifest.levels, version=manifest.version, device_memory=self.device_memory
            )
            executor = executor if self.pad_to is None else PaddedExecutor(executor, self.buckets(manifest))
        return TimedExecutor(executor, last_level=manifest.levels + 1, report=self.load.observe_level)

    def buckets(self, manifest):
        """Shapes that the engines have CUDA graphs for."""
        return ShapeBuckets.of(
            self.plans,
            level_sizes=manifest.level_sizes,
            value_buckets=len(manifest.value_table),
            max_batch=self.pad_to,
        )

    def execute(self, requests):
        """Search for all rows of all requests at once."""
        return answer_together(pb_utils, requests, rows=self.rows, run=self.search, outputs=self.outputs)

    def search(self, rows):
        """Answers of all rows."""
        answers, report = self.scheduler.search(rows)
        self.load.show(report)
        return answers

    def rows(self, request):
        """Searches of one request: slot_ads [b, S], slots [b, S, 3], profile [b, P], num_ads [b, 1] .."""
        cap, widths = integer_parameter(request, "width_cap"), text_parameter(request, "widths")
        plan = None if widths is None else parse_widths(widths, levels=self.levels)
        deadline, use_cache = integer_parameter(request, "deadline_ms"), cache_parameter(request)
        ads, slots, profile, num_ads, exclude, arrived = (
            array(pb_utils, request, name)
            for name in ("slot_ads", "slots", "profile_codes", "num_ads", "exclude", "arrived")
        )
        # Again: whoever calls this model past the ensemble must not fill memory.
        check_num_ads(num_ads, self.limits)
        return [
            SearchRequest(
                slot_ads=ads[i],
                slots=slots[i],
                profile=profile[i],
                num_ads=int(num_ads[i, 0]),
                exclude=check_exclude(exclude[i], self.limits),
                plan=plan,
                width_cap=cap,
                arrived=float(arrived[i, 0]),
                deadline=None if deadline is None else float(arrived[i, 0]) + deadline / 1e3,
                use_cache=use_cache,
            )
            for i in range(len(ads))
        ]

    @staticmethod
    def outputs(results):
        """Tensors of one request's rows."""
        return {
            "beam_sids": pad_rows([r.sids for r in results], fill=-1),
            "beam_scores": pad_rows([r.scores for r in results], fill=-np.inf),
            "beam_values": pad_rows([r.expected_value for r in results], fill=np.nan),
            "model_version": np.array([[r.model_version] for r in results], np.int64),
            "searched_version": np.array([[r.index_version] for r in results], np.int64),
            "beam_widths": np.stack([r.beam_widths for r in results]),
            "degraded": np.array([[r.degraded] for r in results]),
        }
