"""Short question-answer turns in the chat format, with answers that can be checked.

A conversation is `<s>`, sometimes a system message, then turns
`<|user|>question<|end|><|assistant|>answer<|end|>`. Questions weigh 0.3 (so that the model also
learns how people ask), answers 2.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from drivers.training.document import Document, Encode
from drivers.training.tokenizer import ASSISTANT, BOS, END, SYSTEM, USER
from drivers.training.words import ADJECTIVES, NAMES, WORDS

Turn = tuple[str, str]

CAPITALS = dict(
    pair.split(":")
    for pair in str.split(
        "France:Paris Italy:Rome Spain:Madrid Germany:Berlin England:London Japan:Tokyo China:Beijing "
        "Russia:Moscow Portugal:Lisbon Greece:Athens Egypt:Cairo Ireland:Dublin Norway:Oslo "
        "Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Austria:Vienna Hungary:Budapest "
        "Poland:Warsaw Belgium:Brussels Canada:Ottawa Cuba:Havana Peru:Lima Chile:Santiago "
        "Kenya:Nairobi Turkey:Ankara India:Delhi Korea:Seoul Thailand:Bangkok Iceland:Reykjavik"
    )
)
AUTHORS = {
    "War and Peace": "Leo Tolstoy",
    "Anna Karenina": "Leo Tolstoy",
    "Botchan": "Natsume Soseki",
    "I Am a Cat": "Natsume Soseki",
    "Hamlet": "William Shakespeare",
    "Macbeth": "William Shakespeare",
    "Romeo and Juliet": "William Shakespeare",
    "Don Quixote": "Miguel de Cervantes",
    "Emma": "Jane Austen",
    "Oliver Twist": "Charles Dickens",
}
OPPOSITES = dict(
    pair.split(":")
    for pair in str.split(
        "big:small small:big hot:cold cold:hot up:down down:up old:new new:old day:night night:day "
        "open:closed fast:slow slow:fast happy:sad sad:happy black:white white:black left:right "
        "right:left long:short short:long rich:poor poor:rich early:late late:early full:empty "
        "empty:full strong:weak weak:strong good:bad bad:good light:dark dark:light high:low low:high"
    )
)
SOUNDS = dict(
    pair.split(":")
    for pair in str.split(
        "dog:woof cat:meow cow:moo sheep:baa duck:quack owl:hoot lion:roar frog:croak horse:neigh "
        "mouse:squeak bee:buzz crow:caw wolf:howl snake:hiss"
    )
)
COLOURS = dict(
    pair.split(":")
    for pair in str.split(
        "sky:blue grass:green snow:white coal:black blood:red banana:yellow carrot:orange "
        "chocolate:brown sea:blue lemon:yellow leaf:green milk:white tomato:red ruby:red crow:black"
    )
)
KINDS = {
    "animal": str.split(
        "dog cat cow sheep duck owl lion frog horse mouse wolf fox tiger rabbit whale bear deer goat"
    ),
    "fruit": str.split("apple banana cherry grape lemon orange peach plum olive"),
    "plant": str.split("oak pine rose lily fern poppy tulip willow maple cedar"),
    "metal": str.split("iron gold silver copper"),
}
DAYS = str.split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = str.split("January February March April May June July August September October November December")
DIGITS = str.split("zero one two three four five six seven eight nine ten eleven twelve")
PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "child": "children",
    "man": "men",
    "leaf": "leaves",
    "wolf": "wolves",
}

FIXED: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What is your name?", "Who are you?", "What are you?", "Tell me your name."),
        "I am the built-in model of llmos.",
    ),
    (("Hello!", "Hi!", "Hello.", "Hi there!", "Good morning!", "Hey"), "Hello! How can I help you?"),
    (("How are you?", "How are you today?"), "I am fine, thank you. How are you?"),
    (("Thank you!", "Thanks!", "Thank you very much."), "You are welcome."),
    (("Goodbye!", "Bye!", "Good night!"), "Goodbye! Have a nice day."),
    (
        ("What can you do?", "Help", "How can you help me?"),
        "I can answer small questions, remember what you tell me, copy text, add numbers "
        "and tell short stories.",
    ),
    (("What is llmos?", "Tell me about llmos."), "llmos is an operating system for language models."),
    (("Are you a person?", "Are you human?"), "No, I am a small language model."),
    (("How large are you?", "How big are you?"), "I am very small. I have a few million parameters."),
    (
        ("What is an operating system?",),
        "An operating system is a program that shares a computer among other programs.",
    ),
    (("What is a process?",), "A process is a running program. In llmos, a process is a running generation."),
    (("How many days are in a week?",), "There are seven days in a week."),
    (("How many months are in a year?",), "There are twelve months in a year."),
    (("How many hours are in a day?",), "There are twenty-four hours in a day."),
    (("How many minutes are in an hour?",), "There are sixty minutes in an hour."),
    (("How many legs does a spider have?",), "A spider has eight legs."),
    (("How many legs does a dog have?",), "A dog has four legs."),
    (("What is the largest planet?",), "The largest planet is Jupiter."),
    (("What is the largest ocean?",), "The largest ocean is the Pacific."),
    (("What do bees make?",), "Bees make honey."),
    (("What is water made of?",), "Water is made of hydrogen and oxygen."),
    (("Where does the sun rise?",), "The sun rises in the east."),
)


def a(noun: str) -> str:
    """The noun with its article."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def fixed(rng: random.Random) -> Turn:
    """A question with one standing answer."""
    questions, answer = rng.choice(FIXED)
    return rng.choice(questions), answer


def capital(rng: random.Random) -> Turn:
    country, city = rng.choice(list(CAPITALS.items()))
    if rng.random() < 0.25:
        return f"Which country has the capital {city}?", f"{city} is the capital of {country}."
    ask = rng.choice(
        ("What is the capital of {}?", "What is the capital city of {}?", "Name the capital of {}.")
    )
    return ask.format(country), f"The capital of {country} is {city}."


def author(rng: random.Random) -> Turn:
    book, name = rng.choice(list(AUTHORS.items()))
    return rng.choice(("Who wrote {}?", "Who is the author of {}?")).format(
        book
    ), f"{book} was written by {name}."


def arithmetic(rng: random.Random) -> Turn:
    x, y = rng.randrange(0, 13), rng.randrange(0, 13)
    ask = rng.choice(("What is {}?", "How much is {}?", "{} = ?"))
    if rng.random() < 0.5:
        return ask.format(f"{x} + {y}"), f"{x} + {y} = {x + y}"
    x, y = max(x, y), min(x, y)
    return ask.format(f"{x} - {y}"), f"{x} - {y} = {x - y}"


def larger(rng: random.Random) -> Turn:
    x, y = rng.sample(range(0, 100), 2)
    return f"Which is larger, {x} or {y}?", f"{max(x, y)} is larger than {min(x, y)}."


def opposite(rng: random.Random) -> Turn:
    word, other = rng.choice(list(OPPOSITES.items()))
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def sound(rng: random.Random) -> Turn:
    animal, noise = rng.choice(list(SOUNDS.items()))
    return f"What does {a(animal)} say?", f"{a(animal).capitalize()} says {noise}."


def colour(rng: random.Random) -> Turn:
    thing, name = rng.choice(list(COLOURS.items()))
    return rng.choice(("What colour is {}?", "What is the colour of {}?")).format(
        thing
    ), f"The colour is {name}."


def kind(rng: random.Random) -> Turn:
    name = rng.choice(list(KINDS))
    thing = rng.choice(KINDS[name])
    if rng.random() < 0.4:
        other = rng.choice(list(KINDS))
        yes = "Yes" if other == name else "No"
        return f"Is {thing} a kind of {other}?", f"{yes}, {thing} is a kind of {name}."
    return f"What is {thing}?", f"{thing.capitalize()} is a kind of {name}."


def following(rng: random.Random) -> Turn:
    series = rng.choice((DAYS, MONTHS))
    i = rng.randrange(len(series))
    if rng.random() < 0.5:
        return f"What comes after {series[i]}?", f"After {series[i]} comes {series[(i + 1) % len(series)]}."
    return f"What comes before {series[i]}?", f"Before {series[i]} comes {series[i - 1]}."


def spelling(rng: random.Random) -> Turn:
    word = rng.choice(WORDS)
    if rng.random() < 0.3:
        return f"What is the first letter of {word}?", f"The first letter of {word} is {word[0]}."
    return rng.choice(("Spell {}.", "How do you spell {}?")).format(word), " ".join(word)


def plural(rng: random.Random) -> Turn:
    word = rng.choice(
        [*PLURALS, *(w for w in ("dog", "cat", "book", "tree", "house", "star", "king", "bird"))]
    )
    return f"What is the plural of {word}?", f"The plural of {word} is {PLURALS.get(word, word + 's')}."


def counting(rng: random.Random) -> Turn:
    first = rng.randrange(0, 10)
    last = first + rng.randrange(2, 11)
    if rng.random() < 0.3:
        n = rng.randrange(len(DIGITS))
        return f"Write {n} as a word.", DIGITS[n].capitalize() + "."
    return f"Count from {first} to {last}.", " ".join(str(n) for n in range(first, last + 1))


def about_me(rng: random.Random) -> Turn:
    name, thing = rng.choice(NAMES), rng.choice(WORDS)
    if rng.random() < 0.5:
        return f"My name is {name}. What is my name?", f"Your name is {name}."
    return f"{name} has {a(thing)}. What does {name} have?", f"{name} has {a(thing)}."


def as_json(rng: random.Random) -> Turn:
    name, age = rng.choice(NAMES), rng.randrange(1, 100)
    return f"Write JSON for {name}, age {age}.", f'{{"name": "{name}", "age": {age}}}'


def story(rng: random.Random) -> Turn:
    """A four-sentence story around a hero and a thing."""
    name, word, thing, friend = (
        rng.choice(NAMES),
        rng.choice(ADJECTIVES),
        rng.choice(WORDS),
        rng.choice(NAMES),
    )
    animal = rng.choice(KINDS["animal"])
    place = rng.choice(
        ("in a small house by the sea", "at the edge of a forest", "near a quiet river", "on a high hill")
    )
    event = rng.choice(
        (
            f"One day {name} found {a(thing)} under a tree.",
            f"One morning {name} lost {a(thing)} and looked for it everywhere.",
            f"One evening {friend} came to visit and brought {a(thing)}.",
        )
    )
    middle = rng.choice(
        (
            f'"What a fine {thing}!" said {friend}.',
            f"{friend} helped, and they talked until the sun went down.",
            "The wind was cold, but nobody was afraid.",
        )
    )
    end = rng.choice(
        (
            "After that they were friends for ever.",
            f"And {name} was {rng.choice(('happy', 'proud', 'glad'))} again.",
            f"That night {name} slept very well.",
        )
    )
    about = rng.random()
    if about < 0.4:
        ask, hero = f"Tell me a story about {a(animal)}.", f"{a(word)} {animal} called {name}"
    elif about < 0.7:
        ask, hero = f"Tell me a story about {name}.", f"{a(word)} child called {name}"
    else:
        ask, hero = (
            rng.choice(("Tell me a story.", "Write a short story.")),
            f"{a(word)} {animal} called {name}",
        )
    return ask, f"Once there was {hero}, who lived {place}. {event} {middle} {end}"


CHECKED: tuple[Callable[[random.Random], Turn], ...] = (
    fixed, capital, author, arithmetic, larger, opposite, sound, colour, kind, following, spelling, plural,
    counting, about_me, as_json,
)  # fmt: skip
SYSTEMS = (
    "You are a helpful assistant.",
    "You are the built-in model of llmos.",
    "Answer in one short sentence.",
)


def continuation(rng: random.Random, prose: Sequence[str]) -> Turn:
    """Prose in the chat format: a sentence of a book and the one that follows it."""
    i = rng.randrange(len(prose) - 3)
    ask = rng.choice(("Continue: {}", "Continue this text: {}", "What comes next? {}"))
    return ask.format(prose[i]), " ".join(prose[i + 1 : i + 1 + rng.choice((1, 2))])


def chat_turn(rng: random.Random, prose: Sequence[str]) -> Turn:
    """One question and its answer."""
    draw = rng.random()
    if draw < 0.10:
        return continuation(rng, prose)
    if draw < 0.20:
        return story(rng)
    if draw < 0.35:
        return arithmetic(rng)
    return rng.choice(CHECKED)(rng)


def chat_document(rng: random.Random, encode: Encode, prose: Sequence[str], num_tokens: int) -> Document:
    """Conversations of one to six turns, packed until the row is full."""
    doc = Document(encode)
    while len(doc) <= num_tokens:
        doc.add(BOS, 0)
        if rng.random() < 0.25:
            doc.add(f"{SYSTEM}{rng.choice(SYSTEMS)}{END}", 0)
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            question, answer = chat_turn(rng, prose)
            doc.add(USER, 0)
            doc.add(question, 0.3)
            doc.add(f"{END}{ASSISTANT}", 0)
            doc.add(f"{answer}{END}", 2)
    return doc
