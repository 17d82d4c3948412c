"""What the pocket preset says that it knows by name."""

from assistant.pipeline import KnownName
from assistant.pocket.known_names import OTHER_GROUP, known_names


def test_names_have_their_group_and_the_words_that_stand_for_them_alone():
    cup, gearbox, dog = known_names(["cup", "gearbox", "dog"])
    assert (cup.name, cup.group) == ("cup", "tableware") and "mug" in cup.words
    assert gearbox == KnownName("gearbox", OTHER_GROUP)
    assert dog.group == "animal" and {"poodle", "puppy"} <= set(dog.words)
    assert list(dog.words) == sorted(dog.words) and "dog" not in dog.words


def test_a_word_for_several_names_belongs_to_none():
    assert all("pet" not in name.words for name in known_names(["cat", "dog"]))
    assert "pet" in known_names(["dog"])[0].words
