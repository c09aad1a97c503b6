"""Which versions are listed, kept, pinned and gone back to; the commands that do it."""

import pytest

from console.actions import Actions
from export import commands
from export.versions import listed, pin, remove_superseded, version_before
from serving.model.bundle import BundleError, versions
from serving.model.current import current_version, point_current
from serving.model.pinned import PINNED, PinError, pinned_version
from tests.pipeline import copy_of
from tests.unit.test_scheduler import add_version
from web.errors import HttpError


@pytest.fixture
def made(pipeline, tmp_path):
    """Versions 1 to 5, of which 1, 2, 3 and 5 served."""
    copied = copy_of(pipeline, tmp_path)
    for version in range(2, 6):
        add_version(copied.bundles, version)
        if version != 4:
            point_current(copied.bundles, version)
    return copied


def command(made, name, *more):
    options = [] if name == "versions" else ["--config=configs/demo.yaml", "--set=serving.widths=4-8-16:6"]
    options += [] if name == "versions" else ["--set=serving.graph_calls=in_process"]
    options += [] if name == "versions" else [f"--repository={made.repository}"]
    commands.main([name, f"--run={made.folder}", *options, *more])


def test_a_rollback_goes_to_the_one_that_served_before(made, capsys):
    """And further back the next time, not to what was left a moment ago."""
    assert version_before(made.bundles) == 3  # 4 never served
    for expected in (3, 2, 1):
        command(made, "rollback")
        assert current_version(made.bundles) == expected
        assert capsys.readouterr().out == f"version {expected} serves\n"
    with pytest.raises(SystemExit, match="expected a version that served before 1, found none"):
        command(made, "rollback")
    command(made, "rollback", "--version=4")
    assert current_version(made.bundles) == 4


def test_a_pin_holds(made, capsys):
    command(made, "pin", "--version=2")
    assert (pinned_version(made.bundles), current_version(made.bundles)) == (2, 2)
    for name in ("publish", "rollback"):
        with pytest.raises(SystemExit, match="error: model version .: expected version 2, which is pinned"):
            command(made, name)
    assert current_version(made.bundles) == 2
    command(made, "pin", "--off")
    command(made, "publish")
    assert current_version(made.bundles) == 5
    assert pinned_version(made.bundles) is None
    with pytest.raises(BundleError, match="expected one of the versions .*, got 9"):
        pin(made.bundles, 9)


def test_nothing_passes_a_pin(made):
    """Not only the commands that know of it: every way to move CURRENT ends in one function."""
    command(made, "pin", "--version=2")
    with pytest.raises(PinError, match="model version 3: expected version 2, which is pinned"):
        point_current(made.bundles, 3)
    with pytest.raises(HttpError, match="which is pinned"):
        Actions(bundles=made.bundles).perform("rollback", b'{"version": 3}')
    assert current_version(made.bundles) == 2


def test_a_pin_that_says_nothing_lets_nothing_pass(made):
    (made.bundles / PINNED).write_text("two\n")
    with pytest.raises(PinError, match="expected the version that is pinned, got 'two'"):
        pinned_version(made.bundles)
    with pytest.raises(SystemExit, match="CURRENT.pinned"):
        command(made, "rollback")
    assert current_version(made.bundles) == 5


def test_the_last_stay_and_what_serves_is_pinned_or_in_use(made):
    for version in range(6, 9):
        add_version(made.bundles, version, **({"tokenizer_id": "not-ready"} if version == 7 else {}))
    point_current(made.bundles, 3)
    point_current(made.bundles, 7)  # no server can use it: they stay at 3
    pin(made.bundles, 2)  # as if it had been pinned while another one served
    assert remove_superseded(made.bundles, index=made.index, kept=2) == [1, 4, 5, 6]
    assert versions(made.bundles) == [2, 3, 7, 8]
    assert remove_superseded(made.bundles, index=made.index, kept=2) == []
    assert not list(made.bundles.glob(".*.gone"))


def test_the_newest_of_each_tokenizer_of_the_index_stays(made, monkeypatch):
    """The sidecar encodes new ads with it, also where all servers are at another tokenizer by now."""
    monkeypatch.setattr("export.versions.ready_generations", lambda index: {made.tokenizer_id, "newer"})
    for version in range(6, 10):
        add_version(made.bundles, version, tokenizer_id="newer")
        point_current(made.bundles, version)
    assert remove_superseded(made.bundles, index=made.index, kept=2) == [1, 2, 3, 4, 6, 7]
    assert versions(made.bundles) == [5, 8, 9]


def test_versions_are_listed(made, capsys):
    pin(made.bundles, 3)
    (made.bundles / "4" / "manifest.json").write_text("{")
    rows = {row["version"]: row for row in listed(made.bundles)}
    assert [row["state"] for v, row in rows.items() if v != 4] == [
        "served",
        "served",
        "served, pinned",
        "serves",
    ]
    assert rows[4]["state"].startswith("damaged: ")
    command(made, "versions")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["version", "step", "precision", "base", "recall50", "seconds", "state"]
    assert lines[5].split()[0] == "5"
    assert lines[5].endswith("serves")


def test_a_command_without_what_it_needs_says_so(made):
    with pytest.raises(SystemExit, match="checkpoints: expected a checkpoint|stats.json: expected it"):
        command(made, "publish", "--checkpoint=latest")
    words = ["publish", f"--run={made.folder}", "--config=configs/demo.yaml", "--version=5"]
    words += [f"--repository={made.repository}", "--set=serving.widths=4-8-16:6"]
    with pytest.raises(SystemExit, match="--load: expected the command that makes the server load"):
        commands.main(words)
    with pytest.raises(
        SystemExit, match=r"`false lazyar_\w+` ended with status 1 .*--load true moves CURRENT"
    ):
        commands.main([*words, "--load=false"])
