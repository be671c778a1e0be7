"""The task's answers are right, by checks that share no code with it; its splits never meet."""

import re
from collections import Counter

import pytest

from amidkd.demo import task
from amidkd.demo.skills import SKILLS
from amidkd.demo.task import make_rows, split_of, write_task
from amidkd.demo.words import CATEGORIES, NOUNS, OPPOSITES, PAST
from amidkd.errors import SettingError
from amidkd.record import read_json_lines

ROWS = make_rows(11, 4000, "train")
KIND = {word: kind for kind, words in CATEGORIES.items() for word in words}
WORD_OF_NUMBER = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]))
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June"]
MONTHS += ["July", "August", "September", "October", "November", "December"]
PLURALS = {
    "wolf": {"wolves"}, "fox": {"foxes"}, "mouse": {"mice"}, "goose": {"geese"}, "sheep": {"sheep"},
    "cherry": {"cherries"}, "peach": {"peaches"}, "potato": {"potatoes"}, "radish": {"radishes"}, "foot": {"feet"},
    "tooth": {"teeth"}, "knife": {"knives"}, "bus": {"buses"}, "church": {"churches"}, "dress": {"dresses"},
    "scarf": {"scarves", "scarfs"},
}  # fmt: skip


def listed(text: str) -> list[str]:
    """The listed words of a prompt or an answer, in order: nouns beside commas, or the two ends of such a list."""
    words = re.findall(r"\w+", text)
    return [word for word in words if word in KIND]


def in_list(prompt: str) -> list[str]:
    """The words of the prompt's one list; what stands before it or after it by itself is not in it."""
    longest = max(re.findall(r"\w+(?:, \w+)+", prompt), key=len)
    return longest.split(", ")


def noun_in(prompt: str) -> str:
    (noun,) = [word for word in re.findall(r"\w+", prompt) if word in NOUNS]
    return noun


def number_forms(value: int) -> set[str]:
    return {str(value), WORD_OF_NUMBER[value]}


def sort(prompt):
    words = in_list(prompt)
    return {", ".join(sorted(words))}


def reverse(prompt):
    return {", ".join(reversed(in_list(prompt)))}


def position(prompt):
    words = in_list(prompt)
    (place,) = re.findall(r"first|second|last", prompt)
    return {{"first": words[0], "second": words[1], "last": words[len(words) - 1]}[place]}


def longest(prompt):
    words = in_list(prompt)
    return {word for word in words if all(len(word) >= len(other) for other in words)}


def letters(prompt):
    return number_forms(len(noun_in(prompt)))


def spell(prompt):
    return {" ".join(list(noun_in(prompt)))}


def initial(prompt):
    noun = noun_in(prompt)
    return {noun[-1] if "last" in prompt else noun[0]}


def starts(prompt):
    letter = re.findall(r"\b[a-z]\b", prompt)[-1]
    return {noun for noun in KIND if noun.startswith(letter)}


def add(prompt):
    a, b = map(int, re.findall(r"\d+", prompt))
    return {str(a + b), f"{a} plus {b} is {a + b}"}


def plural(prompt):
    noun = noun_in(prompt)
    return PLURALS.get(noun, {noun + "s"})


def article(prompt):
    noun = noun_in(prompt)
    return {f"an {noun}" if re.match("[aeiou]", noun) else f"a {noun}"}


def past(prompt):
    (verb,) = [word for word in re.findall(r"\w+", prompt) if word in PAST]
    return set(PAST[verb])


def opposite(prompt):
    words = [word for word in re.findall(r"\w+", prompt) if word in OPPOSITES]
    (word,) = words
    return {text for other in OPPOSITES[word] for text in (other, f"{other} is the opposite of {word}")}


def calendar(prompt):
    (name,) = [word for word in re.findall(r"\w+", prompt) if word in DAYS + MONTHS]
    names = DAYS if name in DAYS else MONTHS
    place = names.index(name)
    found = names[place - 1] if "before" in prompt else (names + names[:1])[place + 1]
    return {found, f"it is {found}"}


def kind(prompt):
    noun = noun_in(prompt)
    phrase = ("an " if KIND[noun] in ("animal", "instrument") else "a ") + KIND[noun]
    named = noun if KIND[noun] == "colour" else ("an " if noun[0] in "aeiou" else "a ") + noun
    return {phrase, f"{named} is {phrase}"}


def example(prompt):
    (found,) = [kind for kind in CATEGORIES if re.search(rf"\b{kind}\b", prompt)]
    return set(CATEGORIES[found])


def another(prompt):
    (noun,) = [word for word in re.findall(r"\w+", prompt) if word in KIND]
    return {other for other in KIND if KIND[other] == KIND[noun]} - {noun}


def odd_one_out(prompt):
    words = in_list(prompt)
    kinds = Counter(KIND[word] for word in words)
    return {word for word in words if kinds[KIND[word]] == 1}


def how_many(prompt):
    kinds = {"garments": "garment", "body parts": "body part"} | {f"{k}s": k for k in CATEGORIES}
    (asked,) = {kinds[name] for name in kinds if name in prompt}
    return number_forms(sum(KIND[word] == asked for word in listed(prompt)))


def remove(prompt):
    words = listed(prompt)
    (gone,) = [word for word, times in Counter(words).items() if times == 2]
    return {", ".join(word for word in in_list(prompt) if word != gone)}


CHECKS = {
    "sort": sort, "reverse": reverse, "position": position, "longest": longest, "letters": letters, "spell": spell,
    "initial": initial, "starts": starts, "add": add, "plural": plural, "article": article, "past": past,
    "opposite": opposite, "calendar": calendar, "kind": kind, "example": example, "another": another,
    "odd one out": odd_one_out, "how many": how_many, "remove": remove,
}  # fmt: skip


def test_every_skill_has_an_independent_check() -> None:
    assert {skill.name for skill in SKILLS} == set(CHECKS)


@pytest.mark.parametrize("skill", sorted(CHECKS))
def test_references_are_all_the_right_answers(skill: str) -> None:
    rows = [row for row in ROWS if row["skill"] == skill]
    assert len(rows) >= 30
    for row in rows:
        assert set(row["references"]) == CHECKS[skill](row["prompt"]), row
        assert row["completion"] in row["references"]
        assert len(set(row["references"])) == len(row["references"])


def test_opposites_and_past_forms_spot_checks() -> None:
    assert OPPOSITES["short"] == ("long", "tall")
    assert PAST["catch"] == ("caught",)
    assert PAST["dream"] == ("dreamed", "dreamt")
    for word, others in OPPOSITES.items():
        assert word not in others
        assert all(other in OPPOSITES or other in ("difficult", "little", "large", "quick", "shut") for other in others)


def test_words_name_one_kind_of_thing() -> None:
    assert len(NOUNS) == len(set(NOUNS)) == len(KIND)


def test_same_seed_same_rows_and_other_seed_other_rows() -> None:
    assert make_rows(5, 200, "train") == make_rows(5, 200, "train")
    assert make_rows(5, 200, "train") != make_rows(6, 200, "train")
    assert make_rows(5, 100, "train") == make_rows(5, 200, "train")[:100]


def test_prompts_are_distinct_and_splits_never_meet() -> None:
    prompts = {split: [row["prompt"] for row in make_rows(3, 600, split)] for split in ("train", "validation", "test")}
    for split, found in prompts.items():
        assert len(set(found)) == len(found)
        assert {split_of(prompt) for prompt in found} == {split}
    train = {row["prompt"] for row in make_rows(99, 8000, "train")}
    assert not train & set(prompts["test"])
    assert not train & set(prompts["validation"])


def test_skills_come_evenly_while_they_have_new_prompts() -> None:
    counts = Counter(row["skill"] for row in make_rows(0, 1000, "train"))
    assert set(counts) == set(CHECKS)
    large = [counts[name] for name in ("sort", "reverse", "position", "longest", "odd one out", "remove")]
    assert max(large) < 2 * min(large)


def test_more_rows_than_there_are_prompts(monkeypatch) -> None:
    few = [skill for skill in SKILLS if skill.name in ("example", "starts")]
    monkeypatch.setattr(task, "SKILLS", few)
    with pytest.raises(SettingError, match=r"the task has \d+ prompts in its test split; 1000 were asked for"):
        make_rows(0, 1000, "test")


def test_rows_may_repeat_with_another_answer_and_by_weight() -> None:
    rows = make_rows(0, 4000, "train", distinct=False, weights={"sort": 4})
    counts = Counter(row["skill"] for row in rows)
    assert counts["sort"] > 2.5 * max(times for name, times in counts.items() if name != "sort")
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["prompt"], set()).add(row["completion"])
    assert max(map(len, answers.values())) > 1
    assert set(task.TEACHER_WEIGHTS) <= {skill.name for skill in SKILLS}


def test_written_files_are_what_the_recipe_reads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(task, "TEACHER_ROWS", 50)
    monkeypatch.setattr(task, "VALIDATION_ROWS", 20)
    write_task(tmp_path / "demo_task")
    made = make_rows(task.TEACHER_SEED, 50, "train", distinct=False, weights=task.TEACHER_WEIGHTS)
    assert read_json_lines(tmp_path / "demo_task" / "train.jsonl") == made
    assert len(read_json_lines(tmp_path / "demo_task" / "validation.jsonl")) == 20
    assert (tmp_path / "demo_task" / "tokenizer" / "tokenizer.json").is_file()
