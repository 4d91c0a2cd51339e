"""Sentences to be spoken: short phrases in six languages, and made-up words for any other.

Each phrase and word belongs to one of train, dev and test, so that no text of one split occurs in another. The words
carry no emotion: the labels of a generated corpus come from the manner of speaking alone.
"""

import zlib

import numpy as np

from kibun.training.corpora.splits import Split

PHRASES: dict[str, tuple[str, ...]] = {
    "en": (
        "the window is open", "they came back at seven", "put it on the table", "we can see the river",
        "on Monday morning", "after the long road", "my brother has the keys", "the bread is in the kitchen",
        "nobody knew the answer", "it was there all day", "behind the old station", "she wrote it down",
        "between the two houses", "a letter from the office", "the train leaves at noon", "with a cup of tea",
        "you said that before", "as far as I know", "the children are outside", "until the end of the week",
        "we carried the boxes", "under the green lamp", "I met him in the street", "and then we went home",
    ),
    "de": (
        "das Fenster ist offen", "sie kommen um sieben", "der Brief liegt dort", "am Montag im Büro",
        "wir gehen über die Brücke", "mein Bruder hat den Schlüssel", "das Brot ist in der Küche",
        "niemand wusste es genau", "hinter dem alten Bahnhof", "zwischen den beiden Häusern",
        "ich habe es aufgeschrieben", "der Zug fährt am Mittag", "mit einer Tasse Tee", "das hast du schon gesagt",
        "soweit ich weiß", "die Kinder sind draußen", "bis zum Ende der Woche", "wir trugen die Kisten",
        "unter der grünen Lampe", "und dann nach Hause", "das Tuch ist auf dem Stuhl", "morgen früh um acht",
        "sie haben es hochgetragen", "er stellt das Glas hin",
    ),
    "fr": (
        "la fenêtre est ouverte", "ils rentrent à sept heures", "pose-le sur la table", "nous voyons la rivière",
        "lundi dans la matinée", "après un long chemin", "mon frère a les clés", "le pain est dans la cuisine",
        "personne ne le savait", "derrière la vieille gare", "elle l'a noté", "entre les deux maisons",
        "une lettre du bureau", "le train part à midi", "avec une tasse de thé", "tu l'as déjà dit",
        "autant que je sache", "les enfants sont dehors", "jusqu'à la fin de la semaine", "nous portions les caisses",
        "sous la lampe verte", "et puis nous sommes partis", "il ferme la porte", "demain au marché",
    ),
    "es": (
        "la ventana está abierta", "vuelven a las siete", "ponlo en la mesa", "vemos el río",
        "el lunes por la mañana", "después del camino largo", "mi hermano tiene las llaves",
        "el pan está en la cocina", "nadie lo sabía", "detrás de la estación", "ella lo escribió",
        "entre las dos casas", "una carta de la oficina", "el tren sale a mediodía", "con una taza de té",
        "eso ya lo dijiste", "por lo que yo sé", "los niños están fuera", "hasta el fin de semana",
        "llevamos las cajas", "bajo la lámpara verde", "y luego a casa", "cierra la puerta", "mañana en el mercado",
    ),
    "it": (
        "la finestra è aperta", "tornano alle sette", "mettilo sul tavolo", "vediamo il fiume",
        "lunedì mattina", "dopo la lunga strada", "mio fratello ha le chiavi", "il pane è in cucina",
        "nessuno lo sapeva", "dietro la vecchia stazione", "lei l'ha scritto", "tra le due case",
        "una lettera dall'ufficio", "il treno parte a mezzogiorno", "con una tazza di tè", "lo hai già detto",
        "per quanto ne so", "i bambini sono fuori", "fino a domenica", "portavamo le casse",
        "sotto la lampada verde", "e poi a casa", "chiude la porta", "domani al mercato",
    ),
    "nl": (
        "het raam is open", "zij komen om zeven uur", "leg het op de tafel", "wij zien de rivier",
        "maandag in de ochtend", "na de lange weg", "mijn broer heeft de sleutels", "het brood ligt in de keuken",
        "niemand wist het", "achter het oude station", "zij schreef het op", "tussen de twee huizen",
        "een brief van kantoor", "de trein gaat om twaalf uur", "met een kop thee", "dat zei je al",
        "voor zover ik weet", "de kinderen zijn buiten", "tot het eind van de week", "wij droegen de dozen",
        "onder de groene lamp", "en toen naar huis", "hij sluit de deur", "morgen op de markt",
    ),
}  # fmt: skip

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "br", "kl", "tr", "")
_NUCLEI = ("a", "e", "i", "o", "u", "a", "e", "i", "o")
_CODAS = ("", "", "", "n", "r", "l", "s", "t")


def _bucket(item: str) -> Split:
    """One of twelve phrases or words goes to dev, two to test: fixed by the text itself."""
    share = zlib.crc32(item.encode()) % 12
    return "dev" if share == 0 else "test" if share <= 2 else "train"


def _phrase_split(index: int) -> Split:
    return "dev" if index % 6 == 4 else "test" if index % 6 == 5 else "train"


def _made_up_word(rng: np.random.Generator, split: Split) -> str:
    while True:
        syllables = int(rng.integers(1, 4))
        word = "".join(str(rng.choice(_ONSETS)) + str(rng.choice(_NUCLEI)) for _ in range(syllables))
        word += str(rng.choice(_CODAS))
        if len(word) > 1 and _bucket(word) == split:
            return word


def phrases(language: str, split: Split) -> tuple[str, ...]:
    """The phrases of ``language`` (two-letter code) that belong to ``split``; empty where there are none."""
    known = PHRASES.get(language, ())
    return tuple(text for index, text in enumerate(known) if _phrase_split(index) == split)


def make_text(rng: np.random.Generator, language: str, split: Split, words: int) -> list[str]:
    """About ``words`` words to speak: phrases where the language has some, otherwise made-up words."""
    chosen: list[str] = []
    pool = phrases(language, split)
    if not pool or rng.random() < 0.25:
        return [_made_up_word(rng, split) for _ in range(max(1, words))]
    while len(chosen) < words:
        chosen += str(rng.choice(np.array(pool))).split()
    return chosen[: max(words, 2)]
