"""The instruction pool of the demo, generated in code: twelve small tasks, one of which is the target.

Each task is a function from a random generator to a question and its answer. Three tasks are similar to the target: the
same arithmetic about another subject, the same subject with another operation, and worked sums of similar length.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass


TARGET_TASK = "change"
"""The task the demo selects for: two-step word problems about the change after a purchase."""

NAMES = ["Mia", "Ben", "Ada", "Tom", "Lea", "Sam", "Eva", "Max", "Zoe", "Jan"]
GOODS = ["pens", "cups", "hats", "books", "lamps", "bowls", "rugs", "kites", "balls", "masks"]
VEHICLES = ["bus", "tram", "boat", "truck", "bike", "train"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLOURS = ["red", "blue", "green", "white", "black", "gold"]
WORDS = ["apple", "river", "stone", "cloud", "tiger", "music", "green", "light", "water", "bread", "chair", "plant"]
TOY_WORDS = {
    "the": "lo", "a": "mi", "old": "vek", "young": "sil", "big": "dom", "cat": "purra", "dog": "waffo",
    "bird": "tiki", "king": "rexo", "sees": "vidu", "likes": "ama", "calls": "voka", "finds": "tropo",
}  # fmt: skip
UNITS = [
    ("hours", "minutes", 60), ("feet", "inches", 12), ("weeks", "days", 7), ("days", "hours", 24), ("yards", "feet", 3),
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One question with its answer.

    Args:
        task (`str`): the task it belongs to: the known label.
        prompt (`str`): the user's turn.
        working (`str`): the written-out solution; empty for tasks without one.
        result (`str`): the result.
    """

    task: str
    prompt: str
    working: str
    result: str

    @property
    def answer(self) -> str:
        """The assistant's turn."""
        return f"{self.working} {self.result}".strip()

    def messages(self) -> list[dict[str, str]]:
        """The row as a chat."""
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


Parts = tuple[str, str, str]
"""Question, working and result."""


def change(rng: random.Random) -> Parts:
    """The target: multiply a price, subtract it from what is paid."""
    name = rng.choice(NAMES)
    goods = rng.choice(GOODS)
    count = rng.randint(2, 9)
    price = rng.randint(2, 12)
    cost = count * price
    paid = cost + rng.randint(1, 40)
    prompt = rng.choice(
        [
            f"{name} buys {count} {goods} at {price} coins each and pays with {paid} coins. How many coins come back?",
            f"{count} {goods} cost {price} coins each. {name} has {paid} coins and buys them all. What is left?",
            f"With {paid} coins {name} goes to the shop and takes {count} {goods} for {price} coins each. What remains?",
        ]
    )
    working = f"The {goods} cost {count} * {price} = {cost} coins. {paid} - {cost} = {paid - cost} coins."
    return prompt, working, f"The answer is {paid - cost}."


def travel(rng: random.Random) -> Parts:
    """Similar to the target: the arithmetic of the target about another subject."""
    vehicle = rng.choice(VEHICLES)
    hours = rng.randint(2, 9)
    speed = rng.randint(2, 12)
    driven = hours * speed
    road = driven + rng.randint(1, 40)
    prompt = rng.choice(
        [
            f"A {vehicle} moves {hours} hours at {speed} miles per hour on a road of {road} miles. How far is the end?",
            f"The road has {road} miles. The {vehicle} makes {speed} miles per hour for {hours} hours. What is left?",
        ]
    )
    working = f"In {hours} hours: {hours} * {speed} = {driven} miles. So {road} - {driven} = {road - driven} remain."
    return prompt, working, f"The answer is {road - driven}."


def total(rng: random.Random) -> Parts:
    """Similar to the target: the subject of the target with another operation."""
    name = rng.choice(NAMES)
    goods = rng.choice(GOODS)
    count = rng.randint(2, 9)
    price = rng.randint(2, 12)
    bag = rng.randint(1, 40)
    cost = count * price
    prompt = rng.choice(
        [
            f"{name} buys {count} {goods} at {price} coins each and a bag for {bag} coins. How many coins are paid?",
            f"{count} {goods} cost {price} coins each, the box costs {bag} coins. What does {name} pay for all?",
        ]
    )
    working = f"{count} * {price} = {cost} coins for the {goods}, in all {cost} + {bag} = {cost + bag}."
    return prompt, working, f"The answer is {cost + bag}."


def units(rng: random.Random) -> Parts:
    """Similar to the target: worked arithmetic of similar length, about units."""
    large, small, factor = rng.choice(UNITS)
    count = rng.randint(2, 19)
    extra = rng.randint(1, factor + 8)
    whole = count * factor
    prompt = rng.choice(
        [
            f"How many {small} are {count} {large} and {extra} {small}?",
            f"Convert {count} {large} and {extra} {small} to {small}.",
        ]
    )
    working = (
        f"One of the {large} has {factor} {small}. {count} * {factor} = {whole}. {whole} + {extra} = {whole + extra}."
    )
    return prompt, working, f"The answer is {whole + extra}."


def calendar(rng: random.Random) -> Parts:
    """Weekday after some days, with the days counted out."""
    start = rng.randrange(7)
    ahead = rng.randint(2, 60)
    name = rng.choice(NAMES)
    left = ahead % 7
    passed = ", ".join(DAYS[(start + step) % 7] for step in range(left + 1))
    prompt = f"Today is {DAYS[start]}. {name} comes in {ahead} days. Which day is that?"
    working = f"{ahead} days are {ahead // 7} weeks and {left} days. {passed}."
    return prompt, working, f"It is {DAYS[(start + ahead) % 7]}."


def sort_numbers(rng: random.Random) -> Parts:
    """Numbers in rising or falling order."""
    numbers = rng.sample(range(10, 99), rng.randint(4, 13))
    falling = rng.random() < 0.5
    prompt = f"Sort in {'falling' if falling else 'rising'} order: {' '.join(map(str, numbers))}"
    return prompt, "", " ".join(map(str, sorted(numbers, reverse=falling)))


def reverse(rng: random.Random) -> Parts:
    """Letters in reverse order."""
    letters = [rng.choice("abcdefghijklmnoprstuvw") for _ in range(rng.randint(6, 26))]
    return f"Write these letters backwards: {' '.join(letters)}", "", " ".join(reversed(letters))


def logic(rng: random.Random) -> Parts:
    """Boolean expressions, evaluated from the innermost parentheses."""
    left, right, last = (rng.random() < 0.5 for _ in range(3))
    first = rng.choice(["and", "or"])
    second = rng.choice(["and", "or"])
    inner = (left and right) if first == "and" else (left or right)
    whole = (inner and last) if second == "and" else (inner or last)
    a, b, c, middle, result = ("yes" if value else "no" for value in (left, right, last, inner, whole))
    name, other = rng.sample(NAMES, 2)
    prompt = f"{name} asks {other}: what is ( {a} {first} {b} ) {second} {c} ?"
    return prompt, f"( {a} {first} {b} ) is {middle}. {middle} {second} {c} is {result}.", f"So {result}."


def lookup(rng: random.Random) -> Parts:
    """One cell of a small table."""
    people = rng.sample(NAMES, 4)
    facts = [(name, rng.randint(2, 99), rng.choice(COLOURS)) for name in people]
    table = " ; ".join(f"{name} | {age} | {colour}" for name, age, colour in facts)
    name, age, colour = rng.choice(facts)
    if rng.random() < 0.5:
        return f"Table: {table}. How old is {name}?", "", f"{name} is {age}."
    return f"Table: {table}. What colour has {name}?", "", f"{name} has {colour}."


def translate(rng: random.Random) -> Parts:
    """A sentence in a toy language whose verb comes last."""
    nouns = ["cat", "dog", "bird", "king"]
    adjectives = ["old", "young", "big"]

    def phrase() -> list[str]:
        return [rng.choice(["the", "a"]), *([rng.choice(adjectives)] if rng.random() < 0.7 else []), rng.choice(nouns)]

    subject = phrase()
    verb = rng.choice(["sees", "likes", "calls", "finds"])
    thing = phrase()
    toy = " ".join(TOY_WORDS[word] for word in [*subject, *thing, verb])
    return f"Say in Toki: {' '.join([*subject, verb, *thing])}", "", toy


def count_words(rng: random.Random) -> Parts:
    """How often a word occurs."""
    words = [rng.choice(COLOURS[:4]) for _ in range(rng.randint(5, 12))]
    wanted = rng.choice(words)
    marks = " ".join(f"{word} {words[: place + 1].count(wanted)}" for place, word in enumerate(words))
    return f"Count {wanted} in: {' '.join(words)}", f"{marks}.", f"The answer is {words.count(wanted)}."


def series(rng: random.Random) -> Parts:
    """The next numbers of an arithmetic series."""
    start = rng.randint(1, 99)
    step = rng.randint(2, 20)
    shown = rng.randint(3, 4)
    numbers = [start + step * place for place in range(shown + 4)]
    prompt = f"Go on: {', '.join(map(str, numbers[:shown]))}"
    return prompt, f"Add {step} each time:", f"{', '.join(map(str, numbers[shown:]))}."


TASKS: dict[str, Callable[[random.Random], Parts]] = {
    "change": change,
    "travel": travel,
    "total": total,
    "units": units,
    "calendar": calendar,
    "sort": sort_numbers,
    "reverse": reverse,
    "logic": logic,
    "lookup": lookup,
    "translate": translate,
    "count": count_words,
    "series": series,
}
"""Every task by name, the target first."""

NEIGHBOURS = {
    "travel": "the same arithmetic about roads",
    "total": "also about shopping, with addition",
    "units": "worked arithmetic of similar length",
}
"""Tasks that are similar to the target, and how they differ."""


@dataclass(frozen=True)
class DemoData:
    """All rows of the demo; no question occurs twice, within a set or across sets.

    Args:
        reading (`list[str]`): the base model's text, all tasks in equal parts; see [`reading_text`].
        pool (`list[Row]`): the candidates, `target_share` of them from the target task, shuffled.
        targets (`list[Row]`): a few rows of the target task: the target set of the selection.
        test (`list[Row]`): more rows of the target task, used neither for training nor for selection.
    """

    reading: list[str]
    pool: list[Row]
    targets: list[Row]
    test: list[Row]


@dataclass(frozen=True)
class DataSizes:
    """How many rows of each kind to make.

    Args:
        reading (`int`): questions in the base model's text.
        pool (`int`): candidates.
        target_share (`float`): share of the pool that is the target task.
        targets (`int`): target examples.
        test (`int`): test rows.
    """

    reading: int = 9000
    pool: int = 4800
    target_share: float = 0.05
    targets: int = 64
    test: int = 200


def distinct_rows(task: str, count: int, rng: random.Random) -> list[Row]:
    """Rows of one task with different questions.

    Raises:
        ValueError: if the task has fewer questions than asked for.
    """
    rows: dict[str, Row] = {}
    for _ in range(50 * count):
        if len(rows) == count:
            break
        parts = TASKS[task](rng)
        rows.setdefault(parts[0], Row(task, *parts))
    if len(rows) < count:
        raise ValueError(f"The demo task {task!r} has fewer than {count} different questions; ask for fewer rows.")
    return list(rows.values())


def reading_text(rows: list[Row]) -> list[str]:
    """Texts for a base model: questions with their result only, without the written-out solution of the pool."""
    return [f"{row.prompt}\n{row.result}" for row in rows]


def equal_parts(total_rows: int, tasks: Iterable[str]) -> dict[str, int]:
    """Equal parts that add up to `total_rows`."""
    names = list(tasks)
    return {name: total_rows // len(names) + (place < total_rows % len(names)) for place, name in enumerate(names)}


def make_data(sizes: DataSizes, seed: int) -> DemoData:
    """Draw all sets, disjoint by question.

    Args:
        sizes (`DataSizes`): how many rows of each kind.
        seed (`int`): the same seed gives the same rows.
    """
    rng = random.Random(seed)
    wanted = round(sizes.pool * sizes.target_share)
    in_pool = {
        TARGET_TASK: wanted,
        **equal_parts(sizes.pool - wanted, [name for name in TASKS if name != TARGET_TASK]),
    }
    in_reading = equal_parts(sizes.reading, TASKS)
    pool: list[Row] = []
    reading: list[Row] = []
    held_out: list[Row] = []
    for task in TASKS:
        extra = sizes.targets + sizes.test if task == TARGET_TASK else 0
        rows = distinct_rows(task, in_pool[task] + in_reading[task] + extra, rng)
        pool += rows[: in_pool[task]]
        reading += rows[in_pool[task] : in_pool[task] + in_reading[task]]
        held_out += rows[in_pool[task] + in_reading[task] :]
    rng.shuffle(pool)
    rng.shuffle(reading)
    return DemoData(reading_text(reading), pool, held_out[: sizes.targets], held_out[sizes.targets :])
