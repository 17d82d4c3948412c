"""What one visitor has open: photos, the conversation about them, what the picture shows, what is marked by hand.

Everything that can be done on the page is a method here and ends in one call into `assistant`; models are asked through
the page's one worker (`assistant.page.work`), so methods that compute are called from it.
"""

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from assistant.answer import Answer, Target
from assistant.dialogue.class_list import ask_classes, class_targets, read_names
from assistant.dialogue.conversation_file import MOST, Conversation, Exchange
from assistant.errors import BadInput
from assistant.grammar import check_question, clean_phrase, plain, reply_for
from assistant.page.hand import Hand
from assistant.sam.proposals import by_granularity
from assistant.scene import turn_of

# What the picture shows.
ANSWER, HAND, EVERYTHING, CLASSES, LOOKING = "answer", "hand", "everything", "classes", "looking"
PHOTOS = 6  # of a conversation
REGIONS = 60  # of everything mode


@dataclass
class Exchanged:
    """A question of the conversation. answer: None while it waits and where it failed; said: what to show then."""

    photo: int
    question: str
    about: Target | None = None
    answer: Answer | None = None
    said: str = ""
    waiting: bool = True
    corrected: bool = False
    options: dict = field(default_factory=dict)  # of `Scene.ask`: a second try is sampled


class Session:
    def __init__(self):
        self.stop = threading.Event()
        self.epoch = 0  # counts beginnings: work begun for an earlier one is dropped
        self.round = 0  # counts what the picture was cleared of marks for
        self.corrections = []  # (answer, history) saved as training records
        self.clear()

    def __deepcopy__(self, memo):  # Gradio copies a state's first value for each visitor
        return Session()

    def clear(self) -> None:
        """Forget everything; work under way for it stops."""
        self.interrupt()
        self.epoch += 1
        self.scenes, self.names, self.pending = (
            [],
            [],
            [],
        )  # pending: Paths of photos that were chosen, not yet open
        self.log: list[Exchanged] = []
        self.at = 0  # photo that is shown
        self.note = ""  # a last bubble that belongs to no question
        self.kept: list = []  # what the browser keeps of this conversation
        self.drawn = None  # scene whose photo the browser shows
        self.look()

    def interrupt(self) -> None:
        """End the work that is under way."""
        self.stop.set()
        self.stop = threading.Event()

    def look(self) -> None:
        """Back to the plain picture with the answer."""
        self.view, self.selected, self.current, self.hand = ANSWER, None, None, Hand()
        self.choice, self.editing = 0, None  # candidate by hand; number of the exchange that is being edited
        self.regions: list[Target] = []
        self.classes: dict | None = None
        self.heat: tuple | None = None  # (phrase, (H, W) float in [0, 1])

    # -- photos ---------------------------------------------------------------------------------------------------

    @property
    def scene(self):
        return self.scenes[self.at] if self.scenes else None

    def add(self, scene, name: str) -> None:
        self.scenes.append(scene)
        self.names.append(name)
        self.show_photo(len(self.scenes) - 1)

    def show_photo(self, at: int) -> None:
        if not 0 <= at < len(self.scenes):
            raise BadInput("there is no such photo in this conversation")
        if at != self.at:
            self.look()
        self.at = at

    def choose(self, *paths: Path) -> None:
        """Queue photos to be opened."""
        if len(self.scenes) + len(self.pending) + len(paths) > PHOTOS:
            raise BadInput(f"a conversation has at most {PHOTOS} photos: start a new one")
        self.note, self.pending = "", [*self.pending, *paths]

    # -- asking ---------------------------------------------------------------------------------------------------

    @property
    def exchange(self) -> Exchanged | None:
        """The answered question whose masks are shown: the one chosen, or this photo's latest."""
        answered = [e for e in self.log if e.answer is not None and e.photo == self.at]
        return (
            self.current if any(e is self.current for e in answered) else answered[-1] if answered else None
        )

    @property
    def answer(self) -> Answer | None:
        return self.exchange.answer if self.exchange else None

    def put(self, question: str, **options) -> Exchanged:
        """Queue a question about the photo that is shown, and about the mask that is selected, if any."""
        self.log.append(Exchanged(self.at, question, self.chosen, options=options))
        return self.log[-1]

    def next(self) -> Exchanged | None:
        return next((e for e in self.log if e.waiting), None)

    def ask(self, exchange: Exchanged, stream=None) -> Answer:
        if not self.scenes:
            raise BadInput("no photo is open: drop one first, then ask")
        check_question(exchange.question)
        about = {} if exchange.about is None else {"about": exchange.about.mask}
        return self.scenes[exchange.photo].ask(exchange.question, stream=stream, **about, **exchange.options)

    def answered(self, exchange: Exchanged, answer: Answer) -> None:
        exchange.answer, exchange.waiting = answer, False
        self.look()
        self.at = exchange.photo

    def halt(self) -> None:
        """Stop what runs and what waits."""
        self.interrupt()
        self.pending = []
        for exchange in self.log:
            if exchange.waiting:
                self.failed(exchange, "stopped")

    def failed(self, exchange: Exchanged, said: str) -> None:
        exchange.said, exchange.waiting = f"{said[:1].upper()}{said[1:]}.", False

    def take_back(self, first: int | None = None) -> str:
        """Forget the exchanges from number `first` on (None: the last one); the question of the first of them."""
        if not self.log:
            raise BadInput("there is nothing to take back")
        first = len(self.log) - 1 if first is None else first
        gone, self.log = self.log[first:], self.log[:first]
        if any(e.waiting for e in gone):
            self.interrupt()
        for photo in {e.photo for e in gone}:
            self.remember(photo)
        self.look()
        if gone and self.scenes:
            self.at = gone[0].photo
        return gone[0].question if gone else ""

    def remember(self, photo: int) -> None:
        """Let a scene know the conversation as the log now has it."""
        if photo < len(self.scenes):
            told = [e.answer for e in self.log if e.photo == photo and e.answer is not None]
            self.scenes[photo].turns[:] = [turn_of(a) for a in told]
            self.scenes[photo].shown = told[-1].targets if told else []

    # -- masks ----------------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[Target]:
        """What the picture shows now."""
        if self.view == EVERYTHING:
            return self.regions
        if self.view == LOOKING:
            return []
        if self.view == CLASSES and self.classes:
            return self.classes["targets"]
        return self.answer.targets if self.answer else []

    @property
    def chosen(self) -> Target | None:
        """The target that is selected and has a mask."""
        if self.selected is None or self.selected >= len(self.targets):
            return None
        return self.targets[self.selected] if self.targets[self.selected].present else None

    def select(self, number) -> None:
        """Select a target by its number, or none; the same again lets go."""
        known = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(self.targets)
        self.selected = number if known and number != self.selected else None

    def change(self, targets: list[Target]) -> None:
        """Put these in place of the targets of the answer that is shown: a correction by hand."""
        exchange = self.exchange
        text = plain(reply_for([(t.phrase, t.present) for t in targets]))
        exchange.answer = replace(exchange.answer, text=text, targets=targets, said="")
        exchange.corrected = True
        self.remember(exchange.photo)

    def not_there(self) -> None:
        """The selected target of the answer is said to be absent, by the visitor."""
        if self.view != ANSWER or self.chosen is None:
            raise BadInput("select one of the answer's masks first, then say that it is not there")
        gone = replace(self.chosen, present=False, confidence=0.0, mask=None, proposals=[], others=[])
        self.change([gone if k == self.selected else t for k, t in enumerate(self.targets)])
        self.selected = None

    def save_correction(self) -> None:
        """Mark the answer that is shown as a training record."""
        exchange = self.exchange
        if exchange is None:
            raise BadInput("there is no answer to save as a training record: ask something first")
        answer, earlier = exchange.answer, self.log[: self.log.index(exchange)]
        history = [turn_of(e.answer) for e in earlier if e.photo == exchange.photo and e.answer is not None]
        same = lambda other: other.question == answer.question and other.image is answer.image
        self.corrections = [one for one in self.corrections if not same(one[0])] + [(answer, history)]

    # -- by hand --------------------------------------------------------------------------------------------------

    def start_hand(self) -> None:
        """Mark something new, or refine what is selected."""
        chosen, number = self.chosen, self.selected
        kept = number if self.view == ANSWER and chosen is not None else None
        self.view, self.selected = HAND, None
        self.hand = (
            Hand(kept) if chosen is None else Hand(kept, chosen.mask, [("as it was", chosen.mask, None)])
        )

    def use(self, number: int, name: str) -> None:
        """Take a candidate into the answer, in place of the target that it refines, or as a new thing called `name`."""
        if not self.hand.found:
            raise BadInput("nothing is marked yet: click on the picture first")
        if not (isinstance(number, int) and 0 <= number < len(self.hand.found)):
            number = 0
        mask, targets = self.hand.found[number][1], list(self.answer.targets) if self.answer else []
        if self.hand.target is not None and self.hand.target < len(targets):
            phrase = name.strip() or targets[self.hand.target].phrase
            targets[self.hand.target] = Target(clean_phrase(phrase)[:200], True, 1.0, mask, [])
        else:
            if not name.strip():
                raise BadInput("give the thing a name first, then use the mask")
            phrase = clean_phrase(name)[:200]
            gone = [k for k, t in enumerate(targets) if not t.present and t.phrase.lower() == phrase.lower()]
            target = Target(phrase, True, 1.0, mask, [])
            targets = (
                [target if k in gone[:1] else t for k, t in enumerate(targets)]
                if gone
                else [*targets, target]
            )
        if self.exchange is None:
            question = f"Where is the {targets[0].phrase}?"
            empty = Answer("", [], self.scene.size, self.scene.image, question)
            self.log.append(Exchanged(self.at, question, answer=empty, waiting=False))
        current = self.exchange
        self.change(targets)
        self.look()
        self.current = current

    # -- everything and classes -----------------------------------------------------------------------------------

    def everything(self, granularity: float) -> None:
        found = by_granularity(self.scene.proposals, granularity)
        order = np.argsort(-found.areas)[:REGIONS]
        self.regions = [
            Target(f"region {n}", True, float(found.predicted_iou[i].clip(0, 1)), found.mask(int(i)), [])
            for n, i in enumerate(order, 1)
        ]
        self.view, self.selected = EVERYTHING, None

    def map_classes(self, text: str, check=None) -> None:
        names = read_names(text)
        found = ask_classes(self.scene.fresh(), names, check=check)
        unanswered = [n for n in names if n not in found["said"]]
        self.classes = {"targets": class_targets(found, names), "unanswered": unanswered}
        self.view, self.selected = CLASSES, None

    # -- elsewhere ------------------------------------------------------------------------------------------------

    def attend(self) -> None:
        """Where the model looks for the thing that is selected, or for the answer's first."""
        target = self.chosen or next(iter(self.targets), None)
        if target is None or self.view != ANSWER:
            raise BadInput("ask for something first, then see where the model looks for it")
        self.heat = target.phrase, self.scene.attend(target.phrase)
        self.view, self.selected = LOOKING, None

    def find_alike(self, label: str, tell) -> int:
        """Find on every other photo what is like the selected mask; how many photos. label: its name, or ""."""
        example, shown = self.chosen, self.at
        if example is None:
            raise BadInput("select a mask first: click on it, or make one by hand")
        others = [k for k in range(len(self.scenes)) if k != shown]
        if not others:
            raise BadInput('there is no other photo yet: add those to search with "Add photos"')
        label, found = " ".join(label.split())[:200], []
        phrase = clean_phrase(label or example.phrase)
        for number in others:
            tell("photo", number)
            scene = self.scenes[number]
            mask, score = scene.segment_like(self.scenes[shown].image, example.mask, label or None)
            question, there = f"Where is what is like the {phrase} of photo {shown + 1}?", bool(mask.any())
            target = Target(phrase, there, float(min(max(score, 0.0), 1.0)), mask if there else None, [])
            text = f"The most alike here is this {phrase}; whether it is one was not asked."
            text = text if there else f"Nothing here is like the {phrase}."
            answer = Answer(text, [target], scene.size, scene.image, question)
            found.append(Exchanged(number, question, answer=answer, waiting=False))
        self.log += found
        for number in others:
            self.remember(number)
        self.show_photo(others[0])
        self.look()
        return len(others)

    # -- files ----------------------------------------------------------------------------------------------------

    def conversation(self) -> Conversation:
        answered = [e for e in self.log if e.answer is not None][-MOST["exchanges"] :]
        return Conversation(
            [(n, s.image) for n, s in zip(self.names, self.scenes)],
            [Exchange(e.photo, e.question, e.answer, e.about.mask if e.about else None) for e in answered],
        )

    def reopen(self, saved: Conversation, scenes: list) -> None:
        """Go on with a conversation that was saved; scenes: its photos, opened."""
        self.clear()
        self.scenes, self.names = scenes, [Path(name).name or "photo" for name, _ in saved.photos]
        for e in saved.exchanges:
            about = None if e.about is None else Target("this", True, 1.0, e.about, [])
            self.log.append(
                Exchanged(
                    e.photo, e.question, about, replace(e.answer, image=scenes[e.photo].image), waiting=False
                )
            )
        for photo in range(len(scenes)):
            self.remember(photo)
        self.at = saved.exchanges[-1].photo if saved.exchanges else 0
