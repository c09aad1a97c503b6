"""Terms of a request from the client's tensors to the ads: packed once, read by search and look-up."""

import json
import re
import shutil

import numpy as np
import pytest

from export.render import render
from export.rendered import write_attributes
from indexer.events.parse import event_of
from indexer.sidecar.audience_columns import AudienceColumns, columns_of
from indexer.store.incoming import Incoming
from indexer.store.index_store import IndexStore
from serving.backend.request import RequestError, RequestLimits
from serving.backend.settings import ServingConfig
from serving.backend.terms import TermColumns, check_accounts, check_cap, unpack_terms
from serving.index.audience import AudienceError
from serving.index.eligible import NO_TERMS
from serving.keys import hash_of
from serving.model.bundle import read_manifest
from serving.model.request_features import RequestFeature
from tests.fake_triton import FakeTriton, Request, TritonError, load_model
from tests.other_process import in_other_process
from tests.pipeline import copy_of, serving_config
from tests.unit.test_adapters import GRAPHS, history

PLACES = ("feed", "story")
COLUMNS = TermColumns(
    {"age": ("old", "young")},
    request_features=(RequestFeature(name="hour", column="hour", size=24),),
    attributes={"place": PLACES, "region": "any"},
)


ZURICH = "Zürich".encode()


def packed(codes=(1, 14), attributes=(b"feed", ZURICH), accounts=(b"acme", b"", b"acme"), cap=2):
    return COLUMNS.pack(
        np.array(codes), list(attributes), now=77, max_per_account=cap, excluded_accounts=list(accounts)
    )


def test_what_is_packed_is_unpacked():
    terms, cap = COLUMNS.unpack(np.append(packed(), [0, 0]))  # rows of a batch are filled up
    assert (terms.now, cap) == (77, 2)
    assert terms.excluded_accounts == (hash_of("acme"),)
    values = {"age": "old", "hour": "13", "place": "feed", "region": "Zürich"}
    assert terms.values == {name: hash_of(value) for name, value in values.items()}


def test_what_is_not_known_is_left_out():
    terms, _ = COLUMNS.unpack(packed(codes=(0, 0), attributes=(b"billboard", b"")))
    assert terms.values == {}
    assert COLUMNS.unpack(packed(attributes=(b"\xff\xfe", b"")))[0].values.keys() == {"age", "hour"}


def test_bad_attributes_and_lists_are_refused():
    with pytest.raises(RequestError, match=r"attributes: expected 2 values \(place, region\), got 1"):
        packed(attributes=(b"feed",))
    with pytest.raises(
        RequestError, match=r"attributes \(region\): expected a text of at most 256 characters, got 300"
    ):
        packed(attributes=(b"feed", b"x" * 300))
    with pytest.raises(RequestError, match="exclude_account_ids: expected at most 2 accounts, got 3"):
        check_accounts([b"a", b"b", b"c"], RequestLimits(max_exclude=2))
    with pytest.raises(
        RequestError, match="parameter max_per_account: expected a server with serving.audience on"
    ):
        check_cap(1, terms=None)
    assert check_cap(None, terms=None) == 0


def test_without_terms_requests_are_nobodys():
    assert unpack_terms(None, None, rows=2) == [(NO_TERMS, 0)] * 2
    assert NO_TERMS.now < 0  # in no flight


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attributes": {"place": PLACES}}, "attributes: expected none with audience off"),
        ({"audience": "on", "attributes": {"Place": PLACES}}, "attributes: expected a name"),
        (
            {"audience": "on", "attributes": {"place": ()}},
            r"attributes.place: expected a list of 1 to 1024 texts",
        ),
        (
            {"audience": "on", "attributes": {"place": ("a", "a")}},
            "attributes.place: expected distinct values",
        ),
        ({"audience": "on", "attributes": {"place": "some"}}, "attributes.place"),
    ],
)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ServingConfig(**given)


def test_a_column_has_one_meaning():
    with pytest.raises(
        ValueError, match="serving.attributes: expected names that no profile column .* got age"
    ):
        TermColumns({"age": ("old",)}, request_features=(), attributes={"age": "any"})


AUDIENCES = [
    {},
    {"where": {"age": {"in": ["old"]}}},
    {"where": {"place": {"not_in": ["story"]}, "age": {"in": ["young"]}}},
    {"end": 900},
]


def _give_audiences(index):
    with IndexStore(index, sync=False) as store, store.file.read() as reading:
        ads = [int.from_bytes(key, "big") for key, _ in reading.txn.cursor(db=reading.tables.ads)]
    with IndexStore(index, sync=False) as store:
        events = [
            event_of({"kind": "update", "ad_id": a, "version": 1, "audience": AUDIENCES[a % 4]}) for a in ads
        ]
        outcomes = store.apply([Incoming(e, b"", "test") for e in events])
    return {o.result for o in outcomes}, ads


@pytest.fixture
def targeted(pipeline, tmp_path):
    """A deployment in which ad i has the audience i % 4, and its ads."""
    made = copy_of(pipeline, tmp_path / "run")
    results, ads = in_other_process(_give_audiences, made.index)
    assert results == {"applied"}
    config = serving_config().model_copy(
        update={"audience": "on", "attributes": {"place": PLACES, "weather": "any"}}
    )
    render(made.bundles, made.repository, index=made.index, config=config)
    return made, ads


class Server:
    """The models of a deployment, one after the other as the ensemble wires them."""

    def __init__(self, made):
        self.triton, self.made = FakeTriton(), made
        for name in GRAPHS:
            adapter = self.open(name)
            self.triton.models[name] = lambda version, inputs, a=adapter: a.execute([Request(inputs)])[
                0
            ].arrays()

    def open(self, name):
        folder = self.made.repository / name
        return load_model(folder / "1" / "model.py", self.triton, config=folder / "config.pbtxt")

    def step(self, name, requests, closing):
        model = self.open(name)
        answers = model.execute(requests)
        closing(model).close()
        return answers

    def answers(self, asked, parameters=None):
        """Ads of each request, or its error."""
        parameters = parameters or [{}] * len(asked)
        sent = [Request(inputs, json.dumps(p)) for inputs, p in zip(asked, parameters, strict=True)]
        built = self.step("request_features", sent, lambda m: m.reader)
        found = [a.error() if a.has_error() else None for a in built]
        good = [i for i, error in enumerate(found) if error is None]
        terms = {i: built[i].arrays() for i in good}
        searches = [
            Request(
                {k: v for k, v in terms[i].items() if k not in ("excluded", "ignored_history")}
                | {"num_ads": asked[i]["num_ads"], "exclude": terms[i]["excluded"]}
            )
            for i in good
        ]
        beams = self.step("beam_scheduler", searches, lambda m: m.scheduler._reader)
        looked_up = [
            Request(
                {k: v for k, v in beam.arrays().items() if k not in ("beam_widths", "degraded")}
                | {
                    "num_ads": asked[i]["num_ads"],
                    "exclude": terms[i]["excluded"],
                    "terms": terms[i]["terms"],
                }
            )
            for i, beam in zip(good, beams, strict=True)
        ]
        for i, answer in zip(good, self.step("ad_resolver", looked_up, lambda m: m.reader), strict=True):
            found[i] = answer.arrays()["ad_ids"]
        return found


def asking(age, place, *, now=1_000, **more):
    inputs = history([3], num_ads=40, now=now, profile=np.array([[age, 1]], np.int32), **more)
    return inputs if place is None else inputs | {"attributes": np.array([[place, b""]], object)}


def test_from_request_to_ads_that_it_may_see(targeted):
    made, _ = targeted
    asked = [
        asking(1, b"feed"),
        asking(2, b"feed"),
        asking(2, b"story"),
        asking(2, None),
        asking(0, b"feed", now=899),
        asking(1, b"feed") | {"attributes": np.array([[b"feed", b"x" * 999]], object)},
    ]
    found = Server(made).answers(asked)
    allowed = [{0, 1}, {0, 2}, {0}, {0}, {0, 3}]
    for ads, classes in zip(found[:5], allowed, strict=True):
        kinds = ads[ads >= 0] % 4
        assert set(kinds.tolist()) == classes
    assert found[5].code() == TritonError.INVALID_ARG  # and of this request only
    assert re.search(r"attributes \(weather\): expected a text of at most 256", found[5].message())


def test_configs_have_the_tensors_of_terms_where_there_are_terms(targeted, pipeline):
    made, _ = targeted
    for name in ("gr4ad", "request_features"):
        text = (made.repository / name / "config.pbtxt").read_text()
        assert 'name: "attributes" data_type: TYPE_STRING dims: [ 2 ] optional: true' in text
        assert 'name: "exclude_account_ids" data_type: TYPE_STRING dims: [ -1 ] optional: true' in text
    for name in ("gr4ad", "request_features", "beam_scheduler", "ad_resolver"):
        assert "terms" in (made.repository / name / "config.pbtxt").read_text()
        plain = (pipeline.repository / name / "config.pbtxt").read_text()
        assert '"terms"' not in plain
        assert "exclude_account_ids" not in plain


def test_a_server_without_audiences_shows_ads_that_have_one_to_nobody(targeted):
    made, _ = targeted
    render(made.bundles, made.repository, index=made.index, config=serving_config())
    server = Server(made)
    built = server.step("request_features", [Request(history([3], num_ads=40))], lambda m: m.reader)[
        0
    ].arrays()
    assert "terms" not in built
    inputs = {k: v for k, v in built.items() if k not in ("excluded", "ignored_history")}
    inputs |= {"num_ads": np.array([[40]], np.int32), "exclude": built["excluded"]}
    beams = server.step("beam_scheduler", [Request(inputs)], lambda m: m.scheduler._reader)[0].arrays()
    inputs = {k: v for k, v in beams.items() if k not in ("beam_widths", "degraded")}
    inputs |= {"num_ads": np.array([[40]], np.int32), "exclude": built["excluded"]}
    ads = server.step("ad_resolver", [Request(inputs)], lambda m: m.reader)[0].arrays()["ad_ids"]
    assert set((ads[ads >= 0] % 4).tolist()) == {0}


def test_the_sidecar_learns_which_columns_there_are(pipeline, tmp_path):
    class Store:
        columns = None

    path = tmp_path / "attributes.json"
    path.write_text(json.dumps({"place": PLACES, "weather": "any"}))
    manifest = read_manifest(pipeline.bundles / "1", verify=False)
    assert columns_of(manifest) == {"age": ("old", "young"), "region": ("east", "north", "west")}
    store = Store()
    AudienceColumns(store, pipeline.bundles, attributes=path)()
    assert store.columns == {**columns_of(manifest), "place": PLACES, "weather": None}
    # Without a file of one's own: the one of the export, as soon as there is one.
    bundles = tmp_path / "bundles"
    shutil.copytree(pipeline.bundles, bundles)
    chore = AudienceColumns(store, bundles, attributes=None)
    chore()
    assert store.columns == columns_of(manifest)
    write_attributes(bundles, ServingConfig(audience="on", attributes={"place": PLACES}))
    chore._look_at = 0.0
    chore()
    assert store.columns == {**columns_of(manifest), "place": PLACES}
    write_attributes(bundles, ServingConfig())
    chore._look_at = 0.0
    chore()
    assert store.columns == columns_of(manifest)
    with pytest.raises(FileNotFoundError):
        AudienceColumns(store, bundles, attributes=tmp_path / "none.json")()
    path.write_text('{"place": []}')
    with pytest.raises(
        AudienceError, match=r"attributes.json: attributes.place: expected a list of 1 to 1024"
    ):
        AudienceColumns(Store(), pipeline.bundles, attributes=path)()
