"""The client's check of an answer: a right one has no problems, every kind of wrong one is seen."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from examples.client import AD_KEYS, OUTPUTS, Catalogue, problems
from examples.request import format_answer
from feedback.events.event import FeedbackEvent
from feedback.join.joiner import Joiner
from feedback.store.histories import Histories
from indexer.store.incoming import Incoming
from serving.keys import id_of
from tests.served import served

SIDS = [[0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 2, 2], [1, 2, 2]]  # of the ads 10, 20 .. 60


@pytest.fixture
def catalogue() -> Catalogue:
    ids = [10, 20, 30, 40, 50, 60]
    ads = pl.DataFrame(
        {"ad_id": ids, "text": [f"ad {i}" for i in ids], "status": ["active"] * 5 + ["paused"]}
    )
    events = pl.DataFrame(
        {
            "user_id": [7, 7, 8],
            "ad_id": [20, 10, 30],
            "timestamp": [50, 40, 60],
            "behavior": ["conversion", "click", "impression"],
            "value": [0.5, 8.0, 2.0],
        }
    )
    sids = pl.DataFrame({"ad_id": ids} | {f"s{t + 1}": [s[t] for s in SIDS] for t in range(3)})
    users = pl.DataFrame({"user_id": [7, 8], "age": ["young", None], "region": ["west", "moon"]})
    columns = {"age": ("old", "young"), "region": ("east", "west")}
    return Catalogue(ads, users, events, sids, columns, 61)


def _answer(ads: list[int]) -> dict[str, np.ndarray]:
    """Right answer with these ads; -1 is padding."""
    real = np.array(ads) >= 0
    return {
        "ad_ids": np.array([ads]),
        "scores": np.where(real, -0.5 - 0.25 * np.arange(len(ads)), 0).astype(np.float32)[None],
        "expected_value": np.where(real, 2.5, 0).astype(np.float32)[None],
        "sids": np.array([[SIDS[a // 10 - 1] if a >= 0 else [-1] * 3 for a in ads]], np.int32),
    }


@pytest.mark.parametrize(
    ("ads", "num_ads", "exclude"),
    [
        ([20, 30, 10], 3, []),
        ([20, 30, 10], 3, [40]),
        ([50, 40, 10, 30, 20, -1, -1], 7, []),
        ([50, 40, -1, -1], 4, [10, 20, 30]),
    ],
)
def test_a_right_answer_has_no_problems(catalogue, ads, num_ads, exclude):
    assert problems(_answer(ads), catalogue=catalogue, num_ads=num_ads, exclude=exclude) == []


def _set(name, at, value):
    def change(answer):
        answer[name][0, at] = value

    return change


WRONG = {
    "too few": ([20, 30, -1], [], None, "expected 3 ads, got 2"),
    "too many": ([20, 30, 10, 40], [], None, "expected 3 ads, got 4"),
    "padding first": ([-1, 20, 30, 10], [], None, "padding stands before an ad"),
    "twice": ([20, 20, 10], [], None, "an ad comes twice"),
    "excluded": ([20, 30, 10], [30], None, "excluded ad 30 came back"),
    "rising": ([20, 30, 10], [], _set("scores", 2, -0.1), "falling order"),
    "positive": ([20, 30, 10], [], _set("scores", 0, 0.5), "falling order"),
    "NaN score": ([20, 30, 10], [], _set("scores", 1, np.nan), "falling order"),
    "value above": ([20, 30, 10], [], _set("expected_value", 1, 8.1), "expected values between 0.5 and 8.0"),
    "value below": ([20, 30, 10], [], _set("expected_value", 1, 0.4), "expected values between 0.5 and 8.0"),
    "NaN value": ([20, 30, 10], [], _set("expected_value", 1, np.nan), "expected values between"),
    "other SID": ([20, 30, 10], [], _set("sids", 2, [0, 0, 0]), "SID is not the tokenizer's"),
    "unknown ad": ([20, 30, 10], [], _set("ad_ids", 2, 99), "SID is not the tokenizer's"),
    "paused ad": ([20, 30, 60], [], None, "ad 60 is paused or unknown"),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_kind_of_wrong_answer_is_seen(catalogue, name):
    ads, exclude, change, message = WRONG[name]
    answer = _answer(ads)
    if change is not None:
        change(answer)
    found = problems(answer, catalogue=catalogue, num_ads=3, exclude=exclude)
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_with_audiences_there_are_at_least_the_ads_for_everybody(catalogue, count):
    young = '{"where":{"age":{"in":["young"]}}}'
    audiences = pl.Series("audience", [None, young, None, None, young, None])  # 60 is paused
    restricted = replace(catalogue, ads=catalogue.ads.with_columns(audiences))
    answer = _answer([20, 30, 10, 40, 50, 50][:count])
    found = problems(answer, catalogue=restricted, num_ads=6, exclude=[])
    assert ("expected 3 to 5 ads, got" in "; ".join(found)) == (count not in (3, 4, 5))


def test_an_answer_by_value_falls_in_p_times_v(catalogue):
    answer = _answer([20, 30, 10])
    answer["expected_value"] = np.array([[0.5, 2.0, 8.0]], np.float32)
    for rank_by, order in (("value", [2, 1, 0]), ("probability", [0, 1, 2])):
        ranked = {name: values[:, order] for name, values in answer.items()}
        other = {"value": "probability", "probability": "value"}[rank_by]
        checks = {"catalogue": catalogue, "num_ads": 3, "exclude": []}
        assert problems(ranked, rank_by=rank_by, **checks) == []
        assert problems(ranked, rank_by=other, **checks) != []
        assert problems(ranked, **checks) == []  # the server's own order, whichever it is
    mixed = {name: values[:, [1, 0, 2]] for name, values in answer.items()}
    assert any("in falling order of probability or value" in p for p in problems(mixed, **checks))


def test_the_order_of_a_ranker_is_its_own(catalogue):
    mixed = {name: values[:, [1, 0, 2]] for name, values in _answer([20, 30, 10]).items()}
    checks = {"num_ads": 3, "exclude": []}
    ranked = replace(catalogue, ranker="reward")
    assert problems(mixed, catalogue=catalogue, rerank="reward", **checks) == []
    assert problems(mixed, catalogue=ranked, **checks) == []  # perhaps the server's default
    for asked, rerank in ((catalogue, None), (catalogue, "off"), (ranked, "off")):
        assert "falling order" in problems(mixed, catalogue=asked, rerank=rerank, **checks)[0]
    mixed["scores"][0, 1] = 0.5
    assert problems(mixed, catalogue=ranked, **checks)


def test_request_of_a_user(catalogue):
    tensors = catalogue.request(7, num_ads=4, exclude=[50])
    assert {name: values.tolist() for name, values in tensors.items()} == {
        "history_ad_ids": [[10, 20]],
        "history_behaviors": [[2, 3]],
        "history_timestamps": [[40, 50]],
        "profile": [[2, 2]],
        "num_ads": [[4]],
        "timestamp": [[61]],
        "exclude_ad_ids": [[50]],
    }
    assert catalogue.request(8, num_ads=4)["profile"].tolist() == [[0, 0]]  # unknown age, unseen region
    with pytest.raises(ValueError, match=r"expected a user of the logs \(7 \.\. 8\), got 9"):
        catalogue.request(9, num_ads=4)


@pytest.fixture
def keyed(catalogue):
    """The same users under keys, one of which looks like a number; ads of numbers."""
    names = {7: "anna", 8: "8"}
    ids_of = {number: id_of(name) for number, name in names.items()}
    renamed = pl.col("user_id").replace_strict(ids_of, return_dtype=pl.Int64)
    return replace(
        catalogue,
        users=catalogue.users.with_columns(renamed),
        events=catalogue.events.with_columns(renamed),
        keys={"users": pl.DataFrame({"key": list(names.values()), "user_id": list(ids_of.values())})},
    )


def test_a_user_is_asked_for_by_key_where_users_have_keys(catalogue, keyed):
    by_number, by_key = catalogue.request(7, num_ads=4), keyed.request(keyed.user("anna"), num_ads=4)
    for name, values in by_number.items():
        np.testing.assert_array_equal(by_key[name], values)
    assert keyed.user("8") == "8"
    assert (keyed.ad("40"), catalogue.user("8")) == (40, 8)
    with pytest.raises(ValueError, match=r"expected a user of the logs \('8' \.\. 'anna'\), got 'bert'"):
        keyed.request("bert", num_ads=4)
    with pytest.raises(ValueError, match="got ''|expected 1 to 256"):
        keyed.request("", num_ads=4)
    with pytest.raises(ValueError, match="invalid literal"):
        catalogue.user("anna")


def test_keys_of_an_answer_are_compared_with_its_ads(catalogue):
    assert catalogue.outputs == OUTPUTS
    names = [f"ad {i}" for i in range(6)]
    ids = [id_of(name) for name in names]
    renamed = pl.Series("ad_id", ids)
    keyed = replace(
        catalogue,
        ads=catalogue.ads.with_columns(renamed),
        sids=catalogue.sids.with_columns(renamed),
        keys={"ads": pl.DataFrame({"key": names, "ad_id": ids})},
    )
    assert keyed.outputs == (*OUTPUTS, AD_KEYS)
    answer = _answer([20, 30, 10])
    answer["ad_ids"] = np.array([[ids[1], ids[2], ids[0]]])
    answer[AD_KEYS] = np.array([[b"ad 1", b"ad 2", b"ad 0"]], np.object_)
    assert problems(answer, catalogue=keyed, num_ads=3, exclude=["ad 3", ids[4]]) == []
    assert problems(answer, catalogue=keyed, num_ads=3, exclude=["ad 2"]) == [
        f"excluded ad {ids[2]} came back"
    ]
    answer[AD_KEYS][0, 1] = b""  # created by its number
    assert problems(answer, catalogue=keyed, num_ads=3, exclude=[]) == []
    shown = format_answer(answer, catalogue=keyed, history=np.array(ids[:1])).splitlines()
    assert "  ad 1  " in shown[1]
    assert f"  {ids[2]}  " in shown[2]
    answer[AD_KEYS][0, 1] = b"ad 3"
    assert problems(answer, catalogue=keyed, num_ads=3, exclude=[]) == ["an ad's key is not its own"]


def test_events_of_feedback_follow_those_of_the_logs(catalogue, tmp_path):
    joiner = Joiner(tmp_path, now=lambda: 1e9, map_size=1 << 28)
    record = served("r", user_id=7, timestamp=61, written=1e9 - 100, ad_ids=[30, 40])
    event = FeedbackEvent(request_id="r", ad_id=40, behavior="click", timestamp=65)
    joiner.apply([Incoming(one, b"{}", "x") for one in (record, event)], offsets={})
    joiner.close()
    with Histories(tmp_path) as histories:
        tensors = catalogue.request(7, num_ads=3, histories=histories)
        newest = catalogue.request(7, num_ads=3, histories=histories, max_history=2)
        other = catalogue.request(8, num_ads=3, histories=histories)
    assert tensors["history_ad_ids"].tolist() == [[10, 20, 40]]
    assert tensors["history_behaviors"].tolist() == [[2, 3, 2]]
    assert tensors["history_timestamps"].tolist() == [[40, 50, 65]]
    assert tensors["timestamp"].tolist() == [[66]]
    assert newest["history_ad_ids"].tolist() == [[20, 40]]
    assert other["timestamp"].tolist() == [[61]]
    assert {name: values.dtype for name, values in tensors.items()} == {
        name: values.dtype for name, values in catalogue.request(7, num_ads=3).items()
    }


def test_attributes_and_accounts_are_sent_and_checked(catalogue):
    told = replace(
        catalogue, ads=catalogue.ads.with_columns(account_id=pl.Series(["a", "a", "b", "b", "c", "c"]))
    )
    tensors = told.request(7, num_ads=2, attributes=["feed", ""], exclude_accounts=["b"])
    assert tensors["attributes"].tolist() == [[b"feed", b""]]
    assert tensors["exclude_account_ids"].tolist() == [[b"b"]]
    assert not {"attributes", "exclude_account_ids"} & told.request(7, num_ads=2).keys()
    (wrong,) = problems(_answer([20, 30]), catalogue=told, num_ads=2, exclude=[], exclude_accounts=["b"])
    assert wrong == "ad 30 is paused, unknown or of an excluded account"
