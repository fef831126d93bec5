"""The task ``facts``: people who tell an assistant about themselves, among small talk, and ask much later.

Told facts and their questions come from ``facts.py``. Every exchange with the assistant is one source, as a chat
that remembers would write it. Some facts are changed later, and only the newest counts; some questions are
about what was never told.
"""

import random
from collections.abc import Iterator
from itertools import islice

from mplus.evaluation.facts import Split
from mplus.evaluation.personas import Told, persona, unknown_questions
from mplus.evaluation.tasks import Question, Task

FACTS_PER_PERSON = 10
SMALL_TALK = (
    ("Good morning!", "Good morning! What can I do for you today?"),
    ("Can you suggest a title for a poem about rain?", 'How about "What the Gutters Sing"?'),
    ("What is 17 times 6?", "17 times 6 is 102."),
    ("How long do I boil an egg?", "About seven minutes for a yolk that is just set."),
    ("I could not sleep at all last night.", "I am sorry to hear that. A short walk in daylight may help."),
    ("Is it worth learning to juggle?", "Certainly: it is fun, and you can do it anywhere."),
    ("Give me a synonym for happy.", "Cheerful, glad or content."),
    ("Which is heavier, a litre of oil or of water?", "Water; oil floats on it."),
    ("Thanks, that helped a lot.", "You are welcome!"),
    ("Why is the sky dark at night?", "Because our side of the earth has turned away from the sun."),
    ("How do I get candle wax out of a tablecloth?", "Let it harden, scrape it off, then iron the rest through paper."),
    ("Tell me something nice.", "Somewhere a dog has just been told that it is a good dog."),
    ("What should I cook with leftover rice?", "Fried rice with peas and a fried egg on top."),
    ("Write one line about autumn.", "The maple lets its letters fall, unread."),
    ("Do plants need water in winter?", "Yes, but less; let the soil dry between waterings."),
    ("How many minutes are in a day?", "There are 1,440 minutes in a day."),
    ("I finally cleaned the windows.", "Well done! Everything looks brighter afterwards."),
    ("Is a tomato a fruit?", "Botanically yes, in the kitchen no."),
    ("Can you remind me how to spell rhythm?", "R-H-Y-T-H-M."),
    ("What rhymes with station?", "Nation, ration, and vacation, among others."),
    ("The bus was late again.", "How annoying. I hope you still arrived in time."),
    ("How do I fold a fitted sheet?", "Tuck the corners into each other, lay it flat, and fold it in thirds."),
    ("What is a haiku?", "A short poem in three lines of five, seven and five syllables."),
    ("Name three kinds of clouds.", "Cumulus, stratus and cirrus."),
    ("I am bored.", "Shall we play twenty questions, or would you like a riddle?"),
    ("Give me a riddle then.", "What has hands but cannot clap? A clock."),
    ("Does honey go bad?", "Hardly ever, if the jar stays closed and dry."),
    ("How warm is a warm bath?", "Around 38 degrees Celsius feels pleasant to most people."),
    ("Translate good evening into French.", "Bonsoir."),
    ("See you later.", "See you later, take care!"),
)
ACKNOWLEDGED = ("Noted.", "Got it.", "Thanks, I will remember that.", "Good to know.", "All right, I have noted it.")


def facts(questions: int, unanswerable: int, seed: int, *, split: Split = "dev", updated: float = 0.4) -> Task:
    """People, what each told in order, and what they ask.

    Args:
        questions: Questions that can be answered.
        unanswerable: Questions about what was never told, spread over the people.
        seed: Decides everything.
        split: Whose names and values: "dev" has none in common with training.
        updated: Share of facts that are changed later.
    """
    contexts: dict[str, str] = {}
    asked: list[Question] = []
    people = max(-(-questions // FACTS_PER_PERSON), 1)
    for number in range(people):
        rng = random.Random(f"{seed} person {number}")
        wanted = min(FACTS_PER_PERSON, questions - number * FACTS_PER_PERSON)
        told = persona(rng, split, wanted, updated=updated)
        exchanges, where = _conversation(rng, told, f"person-{number}")
        contexts |= exchanges
        names = tuple(exchanges)
        for place, one in enumerate(told):
            kind = "told" if one.earlier is None else "updated"
            gold = (where[one.statements[-1]],)
            answers = (one.fact.answer,)
            asked.append(Question(f"person-{number}/fact-{place}", one.fact.question, answers, names, gold, kind))
        share = unanswerable // people + (number < unanswerable % people)
        for place, fact in enumerate(islice(_distinct(rng, split, told), share)):
            asked.append(Question(f"person-{number}/unknown-{place}", fact, (), names, (), "unknown"))
    return Task("facts", contexts, tuple(asked), style="plain")


def _distinct(rng: random.Random, split: Split, told: list[Told]) -> Iterator[str]:
    """Questions about what was not told, each asked once."""
    seen: set[str] = set()
    for fact in unknown_questions(rng, split, told):
        if fact.kind not in seen:
            seen.add(fact.kind)
            yield fact.question


def _conversation(rng: random.Random, told: list[Told], person: str) -> tuple[dict[str, str], dict[str, str]]:
    """Exchanges by name in the order they happened, and the exchange in which each statement was made."""
    first = [one.statements[0] for one in told]
    rng.shuffle(first)
    later = [one.statements[1] for one in told if one.earlier is not None]
    small_talk = rng.sample(SMALL_TALK, min(len(first) + len(later), len(SMALL_TALK)))
    exchanges: dict[str, str] = {}
    where: dict[str, str] = {}
    for statement in (*first, *later):
        name = f"{person}/turn-{len(exchanges)}"
        exchanges[name] = f"User: {statement}\nAssistant: {rng.choice(ACKNOWLEDGED)}"
        where[statement] = name
        if small_talk and rng.random() < 0.8:
            said, reply = small_talk.pop()
            exchanges[f"{person}/turn-{len(exchanges)}"] = f"User: {said}\nAssistant: {reply}"
    return exchanges, where
