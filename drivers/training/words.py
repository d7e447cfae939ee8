"""The words that the generated tasks are made of; the tokenizer is trained on them too."""

from __future__ import annotations

import random

WORDS = str.split(
    "apple anchor arrow badger banana barrel basket beacon bear bell berry bird boat bottle bread "
    "bridge brook brush bucket butter button cabin camel candle canyon carpet castle cat cedar chain "
    "chair cherry circle clock cloud clover coat comet copper coral corn cotton cow cricket crow "
    "crown cup daisy deer desk diamond dog dolphin donkey door dove dragon drum duck eagle elbow "
    "ember engine falcon farm feather fern fiddle field finch fire fish flag flame flower flute "
    "forest fox frog garden garlic gate ghost glass globe glove goat gold goose grape grass hammer "
    "harbor harp hat hawk hazel heron hill honey horse house ice iron island ivory jacket jade jewel "
    "juniper kettle key king kite kitten ladder lake lamp lantern leaf lemon letter lily lion lizard "
    "lotus magnet maple marble meadow mirror monkey moon mountain mouse nest needle night oak ocean "
    "olive onion orange orchid otter owl paper parrot peach pearl pebble pencil pepper piano pigeon "
    "pillow pine planet plum pocket pond poppy potato prince pumpkin queen quilt rabbit rain raven "
    "ribbon river robin rocket rose ruby saddle sail salt sand scarf sea seal shadow sheep shell ship "
    "silver sky snail snow spider spoon spring squirrel star stone stork storm sugar sun swan sword "
    "table tea thistle thorn tiger tomato torch tower train tree trumpet tulip turtle valley velvet "
    "violin wagon walnut water whale wheat wheel willow wind window winter wolf wood wool zebra"
)

NAMES = str.split(
    "Ada Alan Alice Anna Ben Bob Carla Clara Dan David Ella Emma Eva Felix Frank George Grace Hana "
    "Harry Helen Henry Ida Ivan Jack James Jane John Kate Ken Lara Leo Lily Lucy Maria Mark Mary Max "
    "Mia Nina Noah Oliver Omar Paul Peter Rosa Ruth Sam Sara Sofia Tom Vera Victor Wendy Yuki Zoe"
)

ADJECTIVES = str.split(
    "big small old young happy sad brave kind clever quiet loud quick slow warm cold red blue green "
    "white black golden little tall funny gentle proud"
)

ONSETS = str.split("b d f g h j k l m n p r s t v z br dr gr kl pl st tr")
VOWELS = str.split("a e i o u")


def pseudo_word(rng: random.Random) -> str:
    """An invented word, so that recall cannot lean on what a word usually means."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3))))


def number(rng: random.Random) -> str:
    """A number of two to four digits."""
    return str(rng.randrange(10, 10 ** rng.choice((2, 3, 3, 4))))
