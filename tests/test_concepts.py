"""Concept sets: read from any file format, cleaned with a report, mapped to classes in any spelling."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from emodissect.concepts.concept_set import ConceptSet, concept_set, read_concepts
from emodissect.core.errors import UserError
from emodissect.core.spelling import class_key, clean_name, name_key
from emodissect.data.images import ImageSet, Splits

CONF = Path(__file__).parents[1] / "conf" / "concepts"
FER2013 = ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")


def _set(name: str) -> ConceptSet:
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"))


@pytest.mark.parametrize(("name", "count"), [("fer7", 7), ("expressions25", 25)])
def test_shipped_sets_hold_the_studys_concepts(name: str, count: int) -> None:
    concepts = _set(name)
    golden = json.loads((Path(__file__).parent / "goldens" / "concept_sets.json").read_text())[name]["concepts"]
    assert len(concepts) == count
    assert concepts.names == tuple(golden)
    assert {name: list(of) for name, of in concepts.classes.items()} == golden
    assert concepts.origin == name


def test_fer7_is_the_identity_over_fer2013s_classes() -> None:
    assert torch.equal(_set("fer7").class_mask(FER2013), torch.eye(7, dtype=torch.bool))


def test_expressions25_against_the_drawing_programs_own_table() -> None:
    from emodissect.demo.sketches import CONCEPT_CLASSES

    concepts = _set("expressions25")
    assert concepts.names == tuple(CONCEPT_CLASSES)
    assert all(concepts.classes[name] == tuple(of) for name, of in CONCEPT_CLASSES.items())


def test_class_mask_by_hand() -> None:
    concepts = concept_set({"Smile": ["happy"], "Closed Eyes": "sad", "Hat": None, "ANGER": None})
    mask = concepts.class_mask(("angry", "Happiness", "SAD"))
    assert mask.tolist() == [[False, True, False], [False, False, True], [False, False, False], [True, False, False]]


@pytest.mark.parametrize("spelling", ["anger", "ANGRY", " Angry ", "an-gry", "Anger_"])
def test_classes_match_in_any_spelling(spelling: str) -> None:
    assert class_key(spelling) == "angry"
    assert concept_set({"Frown": [spelling]}).class_mask(("happy", "Angry")).tolist() == [[False, True]]


def test_unknown_class_is_reported_with_the_nearest() -> None:
    concepts = concept_set({"Smile": ["hapy"]}, origin="mine.txt")
    with pytest.raises(UserError, match=r"'Smile' of mine.txt has the class 'hapy'.*Did you mean 'Happy'"):
        concepts.class_mask(FER2013)


def test_text_is_tidied_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.txt"
    lines = (
        "\ufeffSmile",
        "",
        "  Wide  Open Eyes ",
        "smile",
        "WIDE open eyes",
        "   ",
        "Expression étonnée",
        "Le\u200bad",
    )
    file.write_bytes("\r\n".join(lines).encode())
    with caplog.at_level(logging.INFO):
        concepts = read_concepts(file)
    assert concepts.names == ("Smile", "Wide Open Eyes", "Expression étonnée", "Lead")
    assert "4 concepts" in caplog.text
    assert "2 blank left out, 2 duplicate left out" in caplog.text
    assert "1 not ASCII" in caplog.text


def test_what_is_taken_off_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine.txt").write_text("# my words\n1) Smile\n2) Frown  # of anger\n")
    with caplog.at_level(logging.INFO):
        assert read_concepts(tmp_path / "mine.txt").names == ("Smile", "Frown")
    assert "2 comments left out, 2 numbers removed" in caplog.text


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (("1 eye closed", "2 eyes closed", "a smile"), ("1 eye closed", "2 eyes closed", "a smile")),
        (("3 teeth", "32 teeth"), ("3 teeth", "32 teeth")),
        (("C# major", "- dash", "smile"), ("C# major", "- dash", "smile")),
        (("1. Smile",), ("1. Smile",)),
    ],
)
def test_numbers_and_marks_that_belong_to_names_stay(lines: tuple[str, ...], names: tuple[str, ...], tmp_path: Path):
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    assert read_concepts(tmp_path / "mine.txt").names == names


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("\x1b[31mSmile\x1b[0m", "Smile"),
        ("Smile\x1b]0;title\x07", "Smile"),
        ("Smile\x07\x00\x9b31m", "Smile31m"),
        ("Sou\trire gêné\r\n", "Sou rire gêné"),
        ("a\tb", "a b"),
        ("\u202eSmile\u200b", "Smile"),
        ("Smi\udcffle", "Smi\ufffdle"),
        ("e\u0301tonne\u0301", "étonné"),
        ("[red]Smile[/]", "[red]Smile[/]"),
        ("喜び", "喜び"),
    ],
)
def test_names_hold_nothing_that_a_terminal_obeys(raw: str, clean: str) -> None:
    assert concept_set([raw, "other"]).names[0] == clean
    one = ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), torch.arange(1))
    assert Splits(one, one, one, (raw, "other")).class_names == (clean, "other")


def test_concepts_of_classes_that_the_data_lack_are_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """CK+ has no neutral faces."""
    words = concept_set({"Smile": "happy", "Calm": "neutral", "Frown": ["angry", "hapy"], "Glasses": None}, "mine.txt")
    kept = words.of_data(("anger", "happy"))
    assert kept.names == ("Smile", "Frown", "Glasses")
    assert kept.classes == {"Smile": ("happy",), "Frown": ("angry",)}
    assert kept.class_mask(("anger", "happy")).tolist() == [[False, True], [True, False], [False, False]]
    for said in ("no class 'neutral', 'hapy'", "Dropped: 'Calm'.", "other classes: 'Frown'", "Did you mean 'happy'"):
        assert said in caplog.text
    assert words.of_data(("angry", "happy", "neutral", "hapy")) is words
    with pytest.raises(UserError, match=r"Every concept of mine\.txt.*neutral"):
        concept_set({"Calm": "neutral"}, "mine.txt").of_data(("happy",))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("Sourire gêné\nSmile\n".encode(encoding))
    assert read_concepts(file).names == ("Sourire gêné", "Smile")


def test_duplicates_join_their_classes() -> None:
    concepts = read = concept_set([("Smile")])
    assert read.classes == {}
    from emodissect.concepts.concept_set import tidied

    concepts = tidied([("Smile", ("happy",)), ("smile ", ("Happy", "surprise"))], "x")
    assert concepts.names == ("Smile",)
    assert concepts.class_mask(("happy", "surprise")).tolist() == [[True, True]]


FORMS = {
    "list.yaml": "- Smile\n- no\n- 1\n",
    "map.yaml": "Smile: happy\n'no': [angry, disgust]\n'1':\n",
    "nested.yml": "origin: x\nconcepts:\n  Smile: [happy]\n  no: angry\n  1: []\n",
    "list.json": '["Smile", "no", "1"]',
    "map.json": '{"Smile": ["happy"], "no": "angry", "1": null}',
    "rows.json": '[{"concept": "Smile", "classes": ["happy"]}, {"name": "no"}, {"1": "sad"}]',
    "plain.csv": "Smile,happy\nno,angry;disgust\n1,\n",
    "titled.csv": 'id,concept,classes\n0,Smile,happy\n1,no,"angry, disgust"\n2,1,\n',
    "semicolon.csv": "concept;classes\nSmile;happy\nno;angry,disgust\n1;\n",
    "single.csv": "concept\nSmile\nno\n1\n",
    "lines.txt": "Smile\nno\n1\n",
    "lines": "Smile\nno\n1\n",
    "map.tsv": "concept\tclasses\nSmile\thappy\nno\tangry;disgust\n1\t\n",
    "lines_commented.txt": "# my words\nSmile # of joy\n  // no more\nno\n1\n",
    "map_commented.csv": "# my words\nconcept,classes\nSmile,happy\n# none\nno,angry;disgust\n1,\n",
    "lines_numbered.txt": "1. Smile\n2. no\n3. 1\n",
    "lines_counted.txt": "0 Smile\n1 no\n2 1\n",
    "lines_with_bullets.txt": "- Smile\n- no\n\n- 1\n",
    "list_numbered.csv": "0,Smile\n1,no\n2,1\n",
    "list_numbered.json": '{"0": "Smile", "1": "no", "2": "1"}',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text(FORMS[name], encoding="utf-8")
    concepts = read_concepts(file)
    assert concepts.names == ("Smile", "no", "1")
    if "list" in name or "lines" in name or name == "single.csv":
        assert concepts.classes == {}
    else:
        assert concepts.classes["Smile"] == ("happy",)
    if ("map." in name and name != "map.json") or name in ("plain.csv", "titled.csv", "semicolon.csv"):
        assert concepts.classes["no"] == ("angry", "disgust")
    assert concepts.origin == str(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", "contains no concepts"),
        ("blank.txt", "\n \n\ufeff\n", "contains no concepts"),
        ("empty.yaml", "", "contains no concepts"),
        ("empty.json", "[]", "contains no concepts"),
        ("empty.csv", "concept,classes\n", "contains no concepts"),
        ("broken.json", '{"Smile": ', "cannot be read"),
        ("broken.yaml", "a: [b\nc: d", "cannot be read"),
        ("scalar.yaml", "Smile", "not a single value"),
        ("sets.json", '{"fer7": {"about": "x"}}', "classes of 'fer7'"),
        ("mine.xlsx", "x", "format '.xlsx' is not accepted"),
        ("binary.txt", "a\0b", "not a text file"),
        ("open.csv", 'concept,classes\nSmile,happy\n"Frown,sad\nTears,sad\n', "the quote in line 3 is not closed"),
        (
            "swallow.csv",
            'Smile,happy\n"Frown,sad\nTears","sad"\nFear,\n',
            "opens in line 2 is not closed on the same line",
        ),
        ("inner.csv", 'Smile,happy\n"Fro"wn,sad\n', "the quote in line 2 is not closed"),
        ("deep.json", "[" * 100_000, "nested too deeply|cannot be read"),
        ("deep.yaml", "[" * 3000, "nested too deeply"),
        ("number.json", "[" + "1" * 5000 + "]", "cannot be read"),
        (
            "bomb.yaml",
            "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x, [y]'}]\n" for n in range(9)),
            "classes of 'a0'",
        ),
    ],
)
def test_what_is_no_concept_set(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_concepts(file)
    assert "concept" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt does not exist.*\.csv"):
        read_concepts(tmp_path / "none.txt")


def test_file_config(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Smile\n")
    cfg = OmegaConf.load(CONF / "file.yaml")
    cfg.path = str(tmp_path / "mine.txt")
    assert instantiate(cfg).names == ("Smile",)


def test_twenty_thousand_concepts_are_read_once_each(tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("\n".join(f"concept number {i}" for i in range(20_000)) + "\n" + "Concept Number 3\n")
    concepts = read_concepts(file)
    mask = concepts.class_mask(FER2013)
    assert len(concepts) == 20_000
    assert mask.shape == (20_000, 7)
    assert not mask.any()


@given(st.lists(st.text(max_size=12), max_size=20))
def test_names_are_clean_distinct_and_in_order(lines: list[str]) -> None:
    wanted: dict[str, str] = {}
    for line in lines:
        if clean_name(line):
            wanted.setdefault(name_key(clean_name(line)), clean_name(line))
    if not wanted:
        with pytest.raises(UserError):
            concept_set(lines)
        return
    names = concept_set(lines).names
    assert names == tuple(wanted.values())
    assert all(name == " ".join(name.split()) for name in names)
    assert concept_set(names).names == names


def test_fingerprint_is_content() -> None:
    assert concept_set(["a", "b"], "x").fingerprint() == concept_set(["a ", "b"], "y").fingerprint()
    assert concept_set(["a", "b"]).fingerprint() != concept_set(["b", "a"]).fingerprint()
    assert yaml.safe_dump(_set("fer7").fingerprint())


def test_half_letters_of_a_json_file_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text('["sm\\ud800ile", "fr\\udcffown"]')
    assert read_concepts(tmp_path / "words.json").names == ("sm\ufffdile", "fr\ufffdown")
