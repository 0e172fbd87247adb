"""Simple English from a small grammar: the plain-text half of phi3-nano's training text."""

from __future__ import annotations

import random
from collections.abc import Sequence


def words(text: str, separator: str = " ") -> list[str]:
    return text.split(separator)


NAMES = words(
    "Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Kate Leo Mary Noah Olga Paul Rosa Sam "
    "Tina Victor Wanda Xavier Yara Zeno Lena Oscar"
)
ANIMALS = words("cat dog horse goat fox rabbit hen duck mouse cow sheep owl frog donkey bear crow")
PEOPLE = words(
    "teacher doctor baker farmer sailor driver painter neighbour child singer cook guest tailor "
    "gardener engineer student postman fisherman"
)
THINGS = words(
    "book lamp chair table cup bottle basket coat hat letter map clock key knife rope box bell "
    "drum blanket mirror ladder bucket pencil violin kettle candle suitcase wheel ribbon stone"
)
FOODS = words("bread cheese soup apples rice cake honey fish plums beans eggs butter nuts pears")
PLACES = words(
    "garden market kitchen station harbour school library forest village bridge mill island river "
    "hill valley tower square field barn bakery cellar attic meadow beach"
)
ADJECTIVES = words(
    "old new small large heavy light clean dirty round broken warm cold quiet strange simple "
    "pretty dark bright empty wet soft narrow plain wooden ugly expensive"
)
MOODS = words("happy sad tired angry proud hungry nervous calm curious lonely cheerful patient")
COLOURS = words("red blue green yellow white black brown grey orange purple")
WEATHER = words(
    "it was raining|the sun was shining|the wind was strong|snow was falling|the sky was grey|"
    "it was very hot|a storm was coming|the fog was thick|the moon was full|it was cold",
    "|",
)
TIMES = words(
    "in the morning|in the evening|at noon|at night|on Monday|on Tuesday|on Wednesday|on Thursday|"
    "on Friday|on Saturday|on Sunday|last winter|last summer|after lunch|before breakfast|"
    "in the afternoon|a week later|an hour later|the next day",
    "|",
)
MOVES = words("walked|ran|went|rode|hurried|drove|came back|climbed|wandered|moved", "|")
TAKES = words(
    "found|bought|lost|carried|painted|repaired|sold|hid|cleaned|borrowed|dropped|kept", "|"
)
SEES = words("saw|met|heard|followed|helped|called|watched|greeted|thanked|visited|fed|forgot", "|")
ADVERBS = words("slowly quickly quietly carefully gladly suddenly often never always soon again")
NUMBERS = words("two three four five six seven eight nine ten eleven twelve twenty thirty fifty")
UNITS = words("coins pages steps days hours miles letters windows boats trees stars doors")
LINKS = words("but and so because while although")
VERBS = words("read sleep sing cook swim dance write draw fish travel work wait play build dig")


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


class Story:
    """One little story: a hero, and sentences that often return to what was said before."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.hero = rng.choice(NAMES)
        self.friend = rng.choice([name for name in NAMES if name != self.hero])
        self.animal = rng.choice(ANIMALS)
        self.thing = rng.choice(THINGS)
        self.place = rng.choice(PLACES)
        self.pronoun = "she" if self.hero[-1] in "aey" else "he"

    def pick(self, words: Sequence[str]) -> str:
        return self.rng.choice(words)

    def noun(self, words: Sequence[str]) -> str:
        """A noun with an article and, half of the time, an adjective."""
        noun = self.pick(words)
        if self.rng.random() < 0.5:
            noun = f"{self.pick(ADJECTIVES)} {noun}"
        return f"the {noun}" if self.rng.random() < 0.5 else with_article(noun)

    def who(self) -> str:
        """Somebody: mostly the hero or the friend of this story."""
        chance = self.rng.random()
        if chance < 0.35:
            return self.pronoun
        if chance < 0.55:
            return self.hero
        if chance < 0.7:
            return self.friend
        if chance < 0.8:
            return f"the {self.animal}"
        return f"the {self.pick(PEOPLE)}"

    def where(self) -> str:
        place = self.place if self.rng.random() < 0.4 else self.pick(PLACES)
        return f"{self.pick(['to', 'near', 'behind', 'towards', 'past', 'through'])} the {place}"

    def what(self) -> str:
        if self.rng.random() < 0.3:
            return f"the {self.thing}"
        if self.rng.random() < 0.25:
            return f"some {self.pick(FOODS)}"
        return self.noun(THINGS)

    def clause(self) -> str:
        """A subject with a verb phrase, without a capital or a full stop."""
        form = self.rng.randrange(10)
        who = self.who()
        if form < 2:
            return f"{who} {self.pick(MOVES)} {self.where()}"
        if form < 4:
            return f"{who} {self.pick(TAKES)} {self.what()}"
        if form == 4:
            return f"{who} {self.pick(SEES)} {self.noun(PEOPLE)}"
        if form == 5:
            return f"{who} {self.pick(SEES)} {self.noun(ANIMALS)} in the {self.pick(PLACES)}"
        if form == 6:
            return f"{who} was {self.pick(MOODS)}"
        if form == 7:
            return f"{who} wanted to {self.pick(VERBS)}"
        if form == 8:
            return f"{who} counted {self.pick(NUMBERS)} {self.pick(UNITS)}"
        return f"{who} {self.pick(ADVERBS)} gave {self.what()} to the {self.pick(PEOPLE)}"

    def sentence(self) -> str:
        """One sentence with its capital and its full stop."""
        form = self.rng.randrange(12)
        if form < 3:
            text = self.clause()
        elif form < 5:
            text = f"{self.pick(TIMES)} {self.clause()}"
        elif form == 5:
            text = f"{self.pick(WEATHER)}, {self.pick(LINKS)} {self.clause()}"
        elif form < 8:
            text = f"{self.clause()}, {self.pick(LINKS)} {self.clause()}"
        elif form == 8:
            text = (
                f"the {self.thing} was {self.pick(ADJECTIVES)} and {self.pick(COLOURS)}, "
                f"and it cost {self.rng.randrange(2, 100)} coins"
            )
        elif form == 9:
            verb = self.pick(["was", "stood", "lay"])
            text = f"there {verb} {with_article(self.pick(THINGS))} in the {self.place}"
        elif form == 10:
            return f'"{self.speech()}" said {self.pick([self.hero, self.friend])}.'
        else:
            text = f"{self.who()} did not {self.pick(VERBS)}, {self.pick(LINKS)} {self.clause()}"
        return text[0].upper() + text[1:] + "."

    def speech(self) -> str:
        form = self.rng.randrange(4)
        if form == 0:
            return f"Where is the {self.pick([self.thing, *THINGS])}?"
        if form == 1:
            return f"I can {self.pick(VERBS)} {self.pick(TIMES)},"
        if form == 2:
            return f"Do not go to the {self.pick(PLACES)},"
        return f"I have {self.pick(NUMBERS)} {self.pick(UNITS)},"

    def text(self) -> str:
        """The whole story: an opening and four to twelve sentences in one paragraph."""
        animal = with_article(self.animal)
        opening = self.pick(
            [
                f"{self.hero} lived near the {self.place} with {animal}.",
                f"Once {self.hero} had {with_article(self.pick(ADJECTIVES))} {self.thing}.",
                f"{self.hero} and {self.friend} met {self.pick(TIMES)} in the {self.place}.",
                f"This is a story about {self.hero}, {self.friend} and {animal}.",
            ]
        )
        return " ".join([opening, *(self.sentence() for _ in range(self.rng.randint(4, 12)))])


def stories(count: int, seed: int) -> list[str]:
    """Distinct stories that hold at least ``count`` words together."""
    rng = random.Random(seed)
    texts: list[str] = []
    while count > 0:
        texts.append(Story(rng).text())
        count -= len(texts[-1].split())
    return texts
