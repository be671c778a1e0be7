"""The words that the demo's task is about: everyday words with what a child knows of them."""

__all__ = [
    "CATEGORIES",
    "DAYS",
    "MONTHS",
    "NOUNS",
    "NUMBER_WORDS",
    "OPPOSITES",
    "PAST",
    "category_of",
    "plurals",
    "with_article",
]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": _words("cat dog horse cow pig sheep goat lion wolf fox mouse rat duck goose owl elephant"),
    "fruit": _words("apple pear plum peach cherry banana lemon grape"),
    "vegetable": _words("carrot onion potato bean pea cabbage leek radish"),
    "colour": _words("red blue green yellow black white brown orange"),
    "garment": _words("shirt coat hat shoe sock scarf dress boot"),
    "tool": _words("hammer saw drill axe rake knife ladder chisel"),
    "vehicle": _words("car bus train boat ship plane truck van"),
    "instrument": _words("piano violin guitar drum flute harp"),
    "building": _words("house school church castle hotel tower"),
    "body part": _words("hand foot head arm leg nose ear eye tooth"),
    "job": _words("baker farmer doctor nurse teacher singer writer pilot"),
}
"""Words by what they name. No word stands in two categories."""

NOUNS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)

_IRREGULAR_PLURALS: dict[str, tuple[str, ...]] = {
    "sheep": ("sheep",),
    "wolf": ("wolves",),
    "mouse": ("mice",),
    "goose": ("geese",),
    "potato": ("potatoes",),
    "scarf": ("scarves", "scarfs"),
    "knife": ("knives",),
    "foot": ("feet",),
    "tooth": ("teeth",),
}

OPPOSITES: dict[str, tuple[str, ...]] = {
    "hot": ("cold",), "cold": ("hot",), "big": ("small", "little"), "small": ("big", "large"), "little": ("big",),
    "large": ("small",), "old": ("new", "young"), "new": ("old",), "young": ("old",), "fast": ("slow",),
    "slow": ("fast", "quick"), "quick": ("slow",), "high": ("low",), "low": ("high",), "long": ("short",),
    "tall": ("short",), "short": ("long", "tall"), "happy": ("sad",), "sad": ("happy",), "light": ("dark", "heavy"),
    "dark": ("light",), "heavy": ("light",), "hard": ("soft", "easy"), "soft": ("hard",),
    "easy": ("hard", "difficult"), "difficult": ("easy",), "rich": ("poor",), "poor": ("rich",), "clean": ("dirty",),
    "dirty": ("clean",), "full": ("empty",), "empty": ("full",), "open": ("closed", "shut"), "closed": ("open",),
    "shut": ("open",), "wet": ("dry",), "dry": ("wet",), "early": ("late",), "late": ("early",), "near": ("far",),
    "far": ("near",), "left": ("right",), "right": ("left", "wrong"), "wrong": ("right",), "strong": ("weak",),
    "weak": ("strong",), "thick": ("thin",), "thin": ("thick",), "wide": ("narrow",), "narrow": ("wide",),
    "loud": ("quiet",), "quiet": ("loud",), "up": ("down",), "down": ("up",), "good": ("bad",), "bad": ("good",),
    "first": ("last",), "last": ("first",), "always": ("never",), "never": ("always",),
}  # fmt: skip
"""Opposites; several right answers where the word has several meanings."""

PAST: dict[str, tuple[str, ...]] = {
    "walk": ("walked",), "talk": ("talked",), "play": ("played",), "jump": ("jumped",), "cook": ("cooked",),
    "help": ("helped",), "call": ("called",), "look": ("looked",), "wash": ("washed",), "paint": ("painted",),
    "work": ("worked",), "ask": ("asked",), "wait": ("waited",), "learn": ("learned", "learnt"),
    "dream": ("dreamed", "dreamt"), "burn": ("burned", "burnt"), "go": ("went",), "eat": ("ate",), "see": ("saw",),
    "run": ("ran",), "write": ("wrote",), "sing": ("sang",), "drink": ("drank",), "sleep": ("slept",),
    "buy": ("bought",), "give": ("gave",), "take": ("took",), "come": ("came",), "make": ("made",),
    "find": ("found",), "know": ("knew",), "swim": ("swam",), "drive": ("drove",), "fly": ("flew",),
    "begin": ("began",), "speak": ("spoke",), "think": ("thought",), "catch": ("caught",), "teach": ("taught",),
    "win": ("won",), "lose": ("lost",), "sit": ("sat",), "stand": ("stood",), "build": ("built",), "hold": ("held",),
}  # fmt: skip

DAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: tuple[str, ...] = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBER_WORDS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
)  # fmt: skip

_CATEGORY = {word: category for category, words in CATEGORIES.items() for word in words}


def category_of(noun: str) -> str:
    """What kind of thing a noun of :data:`NOUNS` names."""
    return _CATEGORY[noun]


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an". No word here begins with a silent h or a vowel that sounds like a consonant."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plurals(noun: str) -> tuple[str, ...]:
    """The right plurals of a noun of :data:`NOUNS`."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return (f"{noun}es",)
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return (f"{noun[:-1]}ies",)
    return (f"{noun}s",)
