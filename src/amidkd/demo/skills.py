"""The skills of the demo's task: what is asked, in several wordings, and every right answer.

A skill draws the things that it asks about from a random generator and returns them by name for its templates,
together with all right answers. Several answers are right where a question leaves room ("Name an animal"), so that a
good teacher has a distribution to teach and not only one text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from amidkd.demo.words import (
    CATEGORIES,
    DAYS,
    MONTHS,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    PAST,
    category_of,
    plurals,
    with_article,
)

__all__ = ["SKILLS", "Skill"]

Drawn = tuple[dict[str, str], Sequence[str]]


@dataclass(frozen=True)
class Skill:
    """One kind of instruction.

    Args:
        name: What tests and tables call it.
        draw: Gives the fields of a template and every right answer, at least one.
        templates: Wordings, with the fields in braces.
    """

    name: str
    draw: Callable[[Random], Drawn]
    templates: tuple[str, ...]

    def ask(self, rng: Random) -> tuple[str, tuple[str, ...]]:
        """An instruction and its right answers, each once."""
        fields, answers = self.draw(rng)
        return rng.choice(self.templates).format(**fields), tuple(dict.fromkeys(answers))


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def _number(value: int) -> tuple[str, ...]:
    """A small number in digits and as a word."""
    return (str(value), NUMBER_WORDS[value])


def _some_nouns(rng: Random, least: int, most: int) -> list[str]:
    return rng.sample(NOUNS, rng.randint(least, most))


def _sort(rng: Random) -> Drawn:
    words = _some_nouns(rng, 2, 3)
    return {"list": _listed(words)}, [_listed(sorted(words))]


def _reverse(rng: Random) -> Drawn:
    words = _some_nouns(rng, 2, 3)
    return {"list": _listed(words)}, [_listed(words[::-1])]


def _position(rng: Random) -> Drawn:
    words = _some_nouns(rng, 3, 3)
    place, index = rng.choice([("first", 0), ("second", 1), ("last", -1)])
    return {"list": _listed(words), "place": place}, [words[index]]


def _longest(rng: Random) -> Drawn:
    words = _some_nouns(rng, 2, 3)
    most = max(map(len, words))
    return {"list": _listed(words)}, [word for word in words if len(word) == most]


def _letters(rng: Random) -> Drawn:
    word = rng.choice(NOUNS)
    return {"word": word}, _number(len(word))


def _spell(rng: Random) -> Drawn:
    word = rng.choice(NOUNS)
    return {"word": word}, [" ".join(word)]


def _initial(rng: Random) -> Drawn:
    word = rng.choice(NOUNS)
    place, index = rng.choice([("first", 0), ("last", -1)])
    return {"word": word, "place": place}, [word[index]]


def _starts(rng: Random) -> Drawn:
    letter = rng.choice(NOUNS)[0]
    return {"letter": letter}, [word for word in NOUNS if word[0] == letter]


def _add(rng: Random) -> Drawn:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return {"a": str(a), "b": str(b)}, [str(a + b), f"{a} plus {b} is {a + b}"]


def _plural(rng: Random) -> Drawn:
    word = rng.choice([noun for noun in NOUNS if category_of(noun) != "colour"])
    return {"word": word}, plurals(word)


def _article(rng: Random) -> Drawn:
    word = rng.choice([noun for noun in NOUNS if category_of(noun) != "colour"])
    return {"word": word}, [with_article(word)]


def _past(rng: Random) -> Drawn:
    verb = rng.choice(list(PAST))
    return {"word": verb}, PAST[verb]


def _opposite(rng: Random) -> Drawn:
    word = rng.choice(list(OPPOSITES))
    return {"word": word}, [*OPPOSITES[word], *(f"{other} is the opposite of {word}" for other in OPPOSITES[word])]


def _calendar(rng: Random) -> Drawn:
    unit, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    relation, step = rng.choice([("after", 1), ("before", -1)])
    name = rng.choice(names)
    found = names[(names.index(name) + step) % len(names)]
    return {"unit": unit, "relation": relation, "name": name}, [found, f"it is {found}"]


def _kind(rng: Random) -> Drawn:
    word = rng.choice(NOUNS)
    kind = with_article(category_of(word))
    named = word if category_of(word) == "colour" else with_article(word)
    return {"word": word}, [kind, f"{named} is {kind}"]


def _example(rng: Random) -> Drawn:
    category = rng.choice(list(CATEGORIES))
    return {"kind": with_article(category)}, CATEGORIES[category]


def _another(rng: Random) -> Drawn:
    word = rng.choice(NOUNS)
    category = category_of(word)
    return {"kind": category, "word": word}, [other for other in CATEGORIES[category] if other != word]


def _odd_one_out(rng: Random) -> Drawn:
    many, one = rng.sample(list(CATEGORIES), 2)
    odd = rng.choice(CATEGORIES[one])
    words = [*rng.sample(CATEGORIES[many], 2), odd]
    rng.shuffle(words)
    return {"list": _listed(words)}, [odd]


def _how_many(rng: Random) -> Drawn:
    category = rng.choice(list(CATEGORIES))
    wanted = rng.randint(0, 2)
    others = [word for word in NOUNS if category_of(word) != category]
    words = rng.sample(CATEGORIES[category], wanted) + rng.sample(others, rng.randint(1, 3 - wanted))
    rng.shuffle(words)
    return {"list": _listed(words), "kinds": plurals(category)[0]}, _number(wanted)


def _remove(rng: Random) -> Drawn:
    words = _some_nouns(rng, 2, 3)
    gone = rng.choice(words)
    return {"list": _listed(words), "word": gone}, [_listed([word for word in words if word != gone])]


SKILLS: tuple[Skill, ...] = (
    Skill(
        "sort", _sort,
        (
            "Sort these words: {list}",
            "Put these words in alphabetical order: {list}",
            "Arrange from a to z: {list}",
            "{list}: sort them by the alphabet",
        ),
    ),
    Skill(
        "reverse", _reverse,
        (
            "Reverse this list: {list}",
            "Write these words in reverse order: {list}",
            "Say the list from last to first: {list}",
            "{list}: turn the order around",
        ),
    ),
    Skill(
        "position", _position,
        (
            "What is the {place} word in this list: {list}",
            "Which word comes {place}: {list}",
            "Take the {place} one of {list}",
            "{list}: which one is {place}?",
        ),
    ),
    Skill(
        "longest", _longest,
        (
            "Which word is the longest: {list}",
            "Find the longest word: {list}",
            "{list}: which one has the most letters?",
            "Pick the word with the most letters: {list}",
        ),
    ),
    Skill(
        "letters", _letters,
        (
            "How many letters are in {word}?",
            "Count the letters of {word}",
            "How long is the word {word}?",
            "What is the number of letters in {word}?",
            "{word}: how many letters?",
        ),
    ),
    Skill(
        "spell", _spell,
        (
            "Spell the word {word}",
            "How do you spell {word}?",
            "Write {word} letter by letter",
            "Give the letters of {word}",
            "{word}: spell it",
        ),
    ),
    Skill(
        "initial", _initial,
        (
            "What is the {place} letter of {word}?",
            "Which letter comes {place} in {word}?",
            "{word}: give its {place} letter",
            "Name the {place} letter in the word {word}",
        ),
    ),
    Skill(
        "starts", _starts,
        (
            "Give a word that starts with {letter}",
            "Say a word that begins with {letter}",
            "Name a word whose first letter is {letter}",
            "Find any word that begins with the letter {letter}",
            "Tell me a word that starts with the letter {letter}",
            "Which word starts with {letter}?",
        ),
    ),
    Skill(
        "add", _add,
        ("What is {a} plus {b}?", "Add {a} and {b}", "{a} + {b}", "How much is {a} and {b} together?"),
    ),
    Skill(
        "plural", _plural,
        (
            "What is the plural of {word}?",
            "Make {word} plural",
            "One {word}, two what?",
            "Write the plural form of {word}",
            "More than one {word}: how do you say it?",
        ),
    ),
    Skill(
        "article", _article,
        (
            "A or an: {word}",
            "Put a or an before {word}",
            "Which article goes with {word}?",
            "Write {word} with its article",
        ),
    ),
    Skill(
        "past", _past,
        (
            "What is the past tense of {word}?",
            "Put {word} into the past",
            "Today I {word}, yesterday I what?",
            "Write the past form of {word}",
            "{word}: what is it in the past?",
        ),
    ),
    Skill(
        "opposite", _opposite,
        (
            "What is the opposite of {word}?",
            "Give the opposite of {word}",
            "Which word means the reverse of {word}?",
            "{word}: say the opposite",
            "Not {word} but what?",
        ),
    ),
    Skill(
        "calendar", _calendar,
        (
            "Which {unit} comes {relation} {name}?",
            "What {unit} is {relation} {name}?",
            "Name the {unit} {relation} {name}",
            "Tell me the {unit} that is {relation} {name}",
            "{name}: which {unit} is {relation} it?",
        ),
    ),
    Skill(
        "kind", _kind,
        (
            "What kind of thing is {word}?",
            "What does the word {word} name?",
            "Say what {word} is",
            "{word}: what is that?",
            "To which group does {word} belong?",
        ),
    ),
    Skill(
        "example", _example,
        (
            "Name {kind}",
            "Give an example of {kind}",
            "Say the name of {kind}",
            "Tell me {kind}",
            "Can you think of {kind}?",
            "I need {kind}: which one?",
        ),
    ),
    Skill(
        "another", _another,
        (
            "Name a {kind} other than {word}",
            "Which other {kind} is there beside {word}?",
            "Tell me one more {kind} like {word}",
            "{word} is one {kind}: name another",
        ),
    ),
    Skill(
        "odd one out", _odd_one_out,
        (
            "Which one does not belong: {list}",
            "Find the odd one out: {list}",
            "{list}: which word does not fit?",
            "Pick the word that is not like the others: {list}",
        ),
    ),
    Skill(
        "how many", _how_many,
        (
            "How many {kinds} are in this list: {list}",
            "Count the {kinds}: {list}",
            "{list}: how many {kinds} are there?",
            "Say the number of {kinds} in {list}",
        ),
    ),
    Skill(
        "remove", _remove,
        (
            "Remove {word} from this list: {list}",
            "Leave out {word}: {list}",
            "{list}: say it without {word}",
            "Write the list without {word}: {list}",
        ),
    ),
)  # fmt: skip
