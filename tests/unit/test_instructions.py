"""Templates that word an ad by its form: which one fits, what it says, and files that hold none."""

from pathlib import Path

import pytest

from serving.embedding.instructions import Instructions
from training.tokenizer.instructions import read_instructions

FILE = Path("training/tokenizer/instructions.yaml")
LAST = {"form": "any", "instruction": "An ad: {text}"}


@pytest.fixture(scope="module")
def shipped():
    return read_instructions(FILE)


@pytest.mark.parametrize(
    ("conversion_type", "text", "form"),
    [
        ("live_view", "shoes", "live"),
        ("LIVE_ORDER", "summer shoes", "live"),
        ("app_install", "a puzzle", "app"),
        ("lead", "mortgage advice", "lead"),
        ("plain", "a year of VIP membership", "virtual_product"),
        ("plain", "hotel by the sea", "local_service"),
        ("external", "shoes", "external_advertiser"),
        ("plain", "shoes", "physical_goods"),
        ("plain", "alive and gamely", "physical_goods"),  # whole words only
    ],
)
def test_the_form_of_an_ad_chooses_its_template(shipped, conversion_type, text, form):
    assert shipped.form("advertiser", conversion_type, text) == form


def test_every_condition_of_a_template_must_hold():
    both = {
        "form": "both",
        "when": {"conversion_type": ["live"], "words": ["Shoes"]},
        "instruction": "{text}",
    }
    made = Instructions([both, LAST])
    assert [made.form("a", c, t) for c, t in (("LIVE", "red shoes"), ("live", "x"), ("y", "shoes"))] == [
        "both",
        "any",
        "any",
    ]


def test_at_least_six_forms_have_a_template_of_their_own(shipped):
    forms = [template["form"] for template in shipped.templates]
    assert len(set(forms)) == len(forms) >= 6
    assert len({template["instruction"] for template in shipped.templates}) == len(forms)


def test_a_sentence_has_the_fields_of_the_ad_and_braces_of_a_text_are_text():
    made = Instructions([{"form": "x", "instruction": "{account_id} sells {text} for a {conversion_type}."}])
    assert made.sentence("acme", "click", "{text} {0}") == "acme sells {text} {0} for a click."
    assert made.sentence("acme", "click", " \n") == " \n"
    assert Instructions(made.templates).sentence("a", "b", "c") == "a sells c for a b."


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "expected a last template without `when`"),
        ([LAST | {"when": {"words": ["x"]}}], "expected a last template without `when`"),
        ([LAST, {"instruction": "{text}"}], "template 2: expected form, instruction .* got"),
        ([LAST | {"words": []}], "template 1: expected form, instruction"),
        ([LAST | {"instruction": "no place"}], "template 1: expected {text} and no other than"),
        ([LAST | {"instruction": "{text} {price}"}], "template 1: expected {text} and no other than"),
        ([LAST | {"instruction": "{text"}], "template 1: instruction '{text'"),
        ([LAST | {"instruction": "An ad: {text:d}"}], "as they stand here, got 'An ad: {text:d}'"),
        ([LAST | {"instruction": "{text:{account_id}}"}], "as they stand here"),
        ([LAST | {"instruction": "{text!r}"}], "as they stand here"),
        ([LAST | {"instruction": "{text} {text.upper}"}], "as they stand here"),
        ([LAST | {"instruction": "{text} {account_id[0]}"}], "as they stand here"),
        ([LAST | {"when": {"colour": ["red"]}}, LAST], "expected `when` of account_id"),
        ([LAST | {"when": {"words": "red"}}, LAST], "when, words: expected a list of texts, got 'red'"),
    ],
)
def test_templates_that_are_none(templates, message):
    with pytest.raises(ValueError, match=message):
        Instructions(templates)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "expected instruction templates in YAML"), ("a: 1", "got dict"), ("- form: x", "template 1")],
)
def test_a_file_that_holds_none_is_named(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"mine.yaml: .*{message}"):
        read_instructions(path)
    with pytest.raises(OSError, match="no_file"):
        read_instructions(tmp_path / "no_file.yaml")
