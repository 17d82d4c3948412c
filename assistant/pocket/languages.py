"""Recognises a question in a language that the pocket preset does not read.

    is_foreign("où est le chien ?")      # True
    is_foreign("where is the dog?")      # False

By the script, or by the commonest words of a few large languages. A language with neither is not recognised,
and neither is a single noun such as "Hund".
"""

import re
import unicodedata

MAX_FOREIGN_SHARE = 0.5  # of letters that are not Latin
# Two such words, or one in a question without an English word, are enough. Without accents, in lower case.
# Words that are English too ("die", "in", "son", "me", "van") are left out.
FOREIGN_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "Spanish": "el los las una unos donde esta estan hay que quien cual hola gracias por favor en del "
        "muestra muestrame encuentra veo buenos dias cuantos cuantas",
        "French": "le les une des ou est sont dans quel quelle quels qui montre montrez moi trouve trouvez "
        "bonjour merci avec voit il elle y-a du cette ce salut combien",
        "German": "der das ein eine einen wo ist sind wer zeig zeige mir finde bitte hallo danke gibt es "
        "auf dem den welche welcher welches und nicht wie viele guten tag",
        "Italian": "il lo gli una dove sono che cosa ciao grazie trova mostra mostrami nella nel quanti "
        "quante dov",
        "Portuguese": "os uma onde esta estao ha quem ola obrigado obrigada encontre mostre na da tem "
        "quantas",
        "Dutch": "de het een waar zijn wie welke toon laat zien vind hallo dank je hoeveel er niet",
        "Polish": "gdzie jest sa kto czy pokaz znajdz dzien dobry dziekuje ile co to na",
        "Swedish": "var ar det en ett finns hej tack visa hitta och som hur manga",
        "Turkish": "nerede var mi nedir kim goster bul merhaba tesekkurler bir kac",
        "Indonesian": "di mana ada apa siapa tunjukkan cari halo terima kasih yang berapa",
        "Vietnamese": "dau la co nao ai xin chao cam con cai o",
    }.items()
}
ENGLISH_WORDS = frozenset(
    "the a an is are was were do does did have has had can could would should will i you we they he "
    "she it this that these those there here what who whose which where when why how many much any "
    "some no not all every and or but of to in on at for from with by near next show find see mark me "
    "my your please segment outline everything thing things one ones".split()
)
ENGLISH_TOO = frozenset(
    "a an in on at me is no are she he it all so as or and do have had of to by my i".split()
)


def is_foreign(question: str) -> bool:
    """Whether a question is in another language than English, as far as its words show."""
    letters = [character for character in question if character.isalpha()]
    foreign = sum(
        not unicodedata.name(letter, "").startswith(("LATIN", "FULLWIDTH LATIN")) for letter in letters
    )
    if letters and foreign > MAX_FOREIGN_SHARE * len(letters):
        return True
    words = re.findall(r"[a-z]+", _without_accents(question.lower()))
    english = sum(word in ENGLISH_WORDS for word in words)
    best = max(
        sum(word in common and word not in ENGLISH_TOO for word in words) for common in FOREIGN_WORDS.values()
    )
    return best > english


def _without_accents(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text.replace("ß", "ss"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))
