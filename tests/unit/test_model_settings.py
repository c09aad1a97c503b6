"""The parameter that carries a model's settings: what is written is read, and what does not fit is named."""

import json

import pytest
from pydantic import ValidationError

from serving.backend.model_settings import GraphSettings, ModelSettings, SettingsError
from serving.backend.plans import SearchPlans
from serving.backend.settings import ServingConfig
from serving.model.features import FeatureSpec
from serving.search.widths import WidthPlan


def settings(*, ranker=None, **changes):
    config = ServingConfig(widths="4-8-16:6", **changes)
    given = {
        "bundles": "build/bundles",
        "index": "/srv/index",
        "features": FeatureSpec(levels=3),
        "profile_columns": {},
        "ranker": ranker,
    }
    return ModelSettings.of(config, graph_memory="host", pad_shapes=False, **given)


def args(content, *, name="beam_scheduler", parameter="settings"):
    text = content if isinstance(content, str) else json.dumps(content)
    config = {"name": name, "parameters": {parameter: {"string_value": text}}}
    return {"model_config": json.dumps(config)}


@pytest.mark.parametrize("changes", [{}, {"load_control": "fixed"}, {"max_widths": "9-9-20:7"}])
def test_what_is_written_is_read(changes):
    made = settings(**changes)
    assert ModelSettings.read(args(made.model_dump_json())) == made
    plans = SearchPlans.of(ServingConfig(widths="4-8-16:6", **changes), levels=3, pruned=True)
    assert SearchPlans.of(made.serving, levels=3) == plans  # resolved, and nothing else
    assert made.serving.prune == "exact"
    assert plans.plan == WidthPlan((4, 8, 16), 6)


def test_settings_do_not_change():
    made = settings()
    with pytest.raises(ValidationError, match="frozen"):
        made.pad_shapes = True
    with pytest.raises(ValidationError, match="frozen"):
        made.serving.threads = 7


def changed(*path, value=None, remove=False):
    content = json.loads(settings().model_dump_json())
    at = content
    for key in path[:-1]:
        at = at[key]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed("colour", value="red"), "colour: Extra inputs are not permitted, got 'red'"),
        (changed("serving", "colour", value="red"), "serving.colour: Extra inputs are not permitted"),
        (changed("index", remove=True), "index: Field required"),
        (changed("serving", "threads", remove=True), "serving: expected every key, missing: threads"),
        (changed("serving", "threads", value="2"), "serving.threads: .*valid integer, got '2'"),
        (changed("serving", "slo_ms", value=-1), "serving.slo_ms: .*greater than 0, got -1"),
        (changed("pad_shapes", value="false"), "pad_shapes: .*valid boolean, got 'false'"),
        (changed("graph_memory", value="gpu"), "graph_memory: .*'host' or 'device', got 'gpu'"),
        ("{", "Invalid JSON"),
        ("3", "Input should be an object"),
    ],
)
def test_what_does_not_fit_is_named(content, message):
    where = "config.pbtxt of beam_scheduler, parameter settings: "
    with pytest.raises(SettingsError, match=f"^{where}.*{message}.*; render the repository again$") as error:
        ModelSettings.read(args(content))
    assert "redis://" not in str(error.value)  # it may hold a password


def test_a_config_of_another_release():
    """Its parameters were a text each."""
    with pytest.raises(SettingsError, match="settings: expected it, got parameters threads; render"):
        GraphSettings.read(args("2", parameter="threads"))
    with pytest.raises(SettingsError, match="got parameters none"):
        GraphSettings.read({"model_config": '{"name": "lazyar_prefix"}'})
