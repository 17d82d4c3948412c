"""What one visitor has open: photos, the conversation about them, what is shown, what is marked by hand.

    session = Session()
    session.add_photo(assistant.open("photo.jpg"), "photo")
    question = session.add_question("where is the cup?")
    session.set_answer(question, session.ask(question))

Everything that a visitor can do on the page is a method here and ends in one call into `assistant`. Methods
that compute are called in the page's worker (`assistant.page.worker`).
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeGuard

import numpy as np

from assistant.answer import Answer, Target
from assistant.dialogue.class_list import ClassMap, ask_classes, read_class_names
from assistant.dialogue.conversation_file import MAX_PHOTOS
from assistant.errors import BadInput
from assistant.export.colours import colours_on
from assistant.grammar import Turn, check_question, plain, reply_for
from assistant.page.manual_prompts import Candidate, ManualPrompts, use_mask
from assistant.page.question import Question
from assistant.sam.proposals import by_granularity
from assistant.scene import Scene, turn_of

MAX_ABSENT_BRIGHTNESS = 0.35  # of the attention map of a thing that is absent or not known
MAX_SET_ASIDE = 5  # earlier conversations of a visit; each is a file of 50 MB at most, mostly of 1 MB
MAX_REGIONS = 60  # of everything mode that are shown, the largest


class View(StrEnum):
    """What the picture shows; the values are the `data-view` of its HTML."""

    ANSWER = "answer"
    BY_HAND = "hand"
    EVERYTHING = "everything"
    CLASSES = "classes"
    ATTENTION = "looking"


@dataclass
class AttentionMap:
    """Where the model attends for a phrase.

    Attributes:
        phrase: The phrase.
        heat: (H, W) float in [0, 1].
        brightness: In [0, 1], how bright its brightest place is drawn: less than 1 for what is absent.
    """

    phrase: str
    heat: np.ndarray
    brightness: float = 1.0


@dataclass(frozen=True)
class Forgotten:
    """Photos and questions that a visitor let be forgotten; the fields are those of `Session`."""

    scenes: list[Scene]
    names: list[str]
    questions: list[Question]
    photo: int
    stored_rows: list[list[str]]


@dataclass(frozen=True)
class SetAside:
    """A conversation that can be reopened during this visit.

    Attributes:
        rows: Its [question, answer] pairs as the browser has stored them, by which it is recognised.
        file: The file that holds it, see `assistant.dialogue.conversation_file`.
    """

    rows: list[list[str]]
    file: Path


def _is_index(value: object, count: int) -> TypeGuard[int]:
    """Whether what a browser sent is an index of `count` things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


class Session:
    """The state of one visitor.

    Attributes:
        stop: Set to end the work that is under way.
        epoch: Counts new beginnings. Work that began in an earlier epoch is dropped.
        marks_round: Counts how often the visitor's marks were taken back.
        corrections: (answer, earlier turns) of the answers saved as training records.
        scenes: The opened photos.
        names: Their names.
        pending: Files of photos that were chosen and still have to be opened.
        questions: The conversation.
        photo: Index of the photo that is shown.
        notice: Text of a last bubble that belongs to no question.
        forgotten: What was forgotten last, which can be brought back; None where nothing was.
        set_aside: Earlier conversations of this visit, oldest first.
        stored_rows: The conversation as the browser has stored it.
        drawn_scene: The scene whose photo the browser shows; None for no photo.
        view: What the picture shows.
        selected: Index of the target that is selected; None for none.
        selected_instance: Index of its instance that is meant; None for all of it.
        recalled: The earlier question whose masks are shown again; None for the latest.
        manual: What is marked by hand.
        candidate: Index of the candidate that is chosen by hand.
        editing: Index of the question that is edited; None for none.
        regions: The targets of everything mode.
        class_map: The semantic map; None where none was asked for.
        class_targets: Its targets.
        attention: The attention map; None where none was asked for.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.epoch = 0
        self.marks_round = 0
        self.corrections: list[tuple[Answer, list[Turn]]] = []
        self.forgotten: Forgotten | None = None
        self.set_aside: list[SetAside] = []
        self._folder: Path | None = None  # of their files; deleted together with the session
        self.clear()

    def __deepcopy__(self, memo: dict) -> Session:
        """A new session: Gradio copies the initial value of a state for each visitor."""
        return Session()

    def clear(self) -> None:
        """Forget photos and conversation; the work under way for them stops. Saved corrections stay."""
        self.interrupt()
        self.epoch += 1
        self.scenes: list[Scene] = []
        self.names: list[str] = []
        self.pending: list[Path] = []
        self.questions: list[Question] = []
        self.photo = 0
        self.notice = ""
        self.stored_rows: list[list[str]] = []
        self.drawn_scene: Scene | None = None
        self.reset_view()

    def end(self) -> None:
        """Forget all, once the visitor is gone."""
        self.clear()
        self.forgotten = None
        self.forget_set_aside()

    def forget(self, photos: bool) -> None:
        """Forget the conversation, so that `bring_back` brings it back.

        Args:
            photos: Whether to forget the photos as well.
        """
        asked = [question for question in self.questions if not question.waiting]
        forgotten = Forgotten(self.scenes, self.names, asked, self.photo, self.stored_rows)
        if photos:
            self.clear()
        elif self.questions:
            self.take_back(0)
        if forgotten.scenes:
            self.forgotten = forgotten

    @property
    def can_bring_back(self) -> bool:
        """Whether something was forgotten and nothing was begun since."""
        if self.forgotten is None or self.questions or self.pending:
            return False
        return not self.scenes or self.scenes == self.forgotten.scenes

    def bring_back(self) -> None:
        """Bring back what was forgotten last. Raises BadInput where there is nothing."""
        forgotten = self.forgotten
        if forgotten is None or not self.can_bring_back:
            raise BadInput("there is nothing to bring back")
        self.clear()
        self.forgotten = None
        self.scenes, self.names, self.questions = forgotten.scenes, forgotten.names, forgotten.questions
        for photo in range(len(self.scenes)):
            self.restore_turns(photo)
        self.photo = forgotten.photo
        self.stored_rows = forgotten.stored_rows
        self.forget_set_aside(self.stored_rows)

    def add_set_aside(self, rows: list[list[str]], text: str) -> None:
        """Note an earlier conversation; where there are too many, the oldest is forgotten.

        Args:
            rows: See `SetAside`; a conversation with the same rows is replaced.
            text: What its file holds.
        """
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="maskpick-visit-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        file = self._folder / f"{uuid.uuid4().hex}.json"
        file.write_text(text, encoding="utf-8")
        self.forget_set_aside(rows)
        while len(self.set_aside) >= MAX_SET_ASIDE:
            self.forget_set_aside(self.set_aside[0].rows)
        self.set_aside = [*self.set_aside, SetAside(rows, file)]

    def set_aside_at(self, index: object) -> SetAside:
        """The earlier conversation of an index, as the browser sends it. Raises BadInput for another."""
        if not _is_index(index, len(self.set_aside)):
            raise BadInput("this conversation cannot be reopened any more")
        return self.set_aside[index]

    def forget_set_aside(self, rows: list[list[str]] | None = None) -> None:
        """Forget the earlier conversation with these rows, or all of them."""
        for other in self.set_aside:
            if rows is None or other.rows == rows:
                other.file.unlink(missing_ok=True)
        self.set_aside = [other for other in self.set_aside if rows is not None and other.rows != rows]

    def interrupt(self) -> None:
        """End the work that is under way."""
        self.stop.set()
        self.stop = threading.Event()

    def reset_view(self) -> None:
        """Show the answer, with nothing selected."""
        self.view = View.ANSWER
        self.selected: int | None = None
        self.selected_instance: int | None = None
        self.recalled: Question | None = None
        self.manual = ManualPrompts()
        self.candidate = 0
        self.editing: int | None = None
        self.regions: list[Target] = []
        self.class_map: ClassMap | None = None
        self.class_targets: list[Target] = []
        self.attention: AttentionMap | None = None

    # -- photos ----------------------------------------------------------------------------------------------

    @property
    def scene(self) -> Scene | None:
        """The scene of the photo that is shown."""
        return self.scenes[self.photo] if self.scenes else None

    def open_scene(self) -> Scene:
        """The scene of the photo that is shown. Raises BadInput where no photo is open."""
        if self.scene is None:
            raise BadInput("no photo is open: drop one first, then ask")
        return self.scene

    def add_photo(self, scene: Scene, name: str) -> None:
        """Add an opened photo to the conversation and show it."""
        self.scenes.append(scene)
        self.names.append(name)
        self.show_photo(len(self.scenes) - 1)

    def show_photo(self, photo: int) -> None:
        """Show the photo of that index. Raises BadInput where there is none."""
        if not 0 <= photo < len(self.scenes):
            raise BadInput("there is no such photo in this conversation")
        if photo != self.photo:
            self.reset_view()
        self.photo = photo

    def queue_photos(self, *files: Path) -> None:
        """Note photos to be opened. Raises BadInput where they would be too many."""
        if len(self.scenes) + len(self.pending) + len(files) > MAX_PHOTOS:
            raise BadInput(f"a conversation has at most {MAX_PHOTOS} photos: start a new one")
        self.notice = ""
        self.pending = [*self.pending, *files]

    # -- asking ----------------------------------------------------------------------------------------------

    @property
    def shown_question(self) -> Question | None:
        """The answered question whose masks are shown: the one recalled, or this photo's latest."""
        answered = [q for q in self.questions if q.answer is not None and q.photo == self.photo]
        if self.recalled in answered:
            return self.recalled
        return answered[-1] if answered else None

    @property
    def answer(self) -> Answer | None:
        """The answer whose masks are shown."""
        return self.shown_question.answer if self.shown_question else None

    def add_question(self, text: str, **options: object) -> Question:
        """Add a question about the photo that is shown, and about the target that is selected, if any.

        Where a question is edited, the new one takes its place and that of those after it. It is about the
        same target unless another one is selected.
        """
        if self.editing is not None and self.editing < len(self.questions):
            edited, selected = self.questions[self.editing], self.subject
            self.take_back(self.editing)
            self.questions.append(Question(edited.photo, text, selected or edited.about, options=options))
            return self.questions[-1]
        self.questions.append(Question(self.photo, text, self.subject, options=options))
        return self.questions[-1]

    def next_question(self) -> Question | None:
        """The oldest question that waits for an answer."""
        return next((question for question in self.questions if question.waiting), None)

    def ask(self, question: Question, stream: Callable[[str], None] | None = None) -> Answer:
        """Ask the assistant. Raises BadInput where no photo is open, and as `Scene.ask`.

        Args:
            question: A question of the conversation.
            stream: Called with each new piece of the reply's text.
        """
        self.open_scene()
        check_question(question.text)
        about = question.about.mask if question.about else None
        return self.scenes[question.photo].ask(question.text, about=about, stream=stream, **question.options)

    def set_answer(self, question: Question, answer: Answer) -> None:
        """Enter the answer to a question, and show it."""
        question.answer = answer
        question.waiting = False
        self.reset_view()
        self.photo = question.photo

    def set_failure(self, question: Question, reason: str) -> None:
        """Enter why a question has no answer."""
        question.status = f"{reason[:1].upper()}{reason[1:]}."
        question.waiting = False

    def stop_all(self) -> None:
        """Stop what is under way and what waits."""
        self.interrupt()
        self.pending = []
        for question in self.questions:
            if question.waiting:
                self.set_failure(question, "stopped")

    def take_back(self, first: int | None = None) -> str:
        """Forget questions and their answers.

        Args:
            first: Index of the first question to forget; None for the last one.

        Returns:
            The text of the first of them.

        Raises:
            BadInput: There are no questions.
        """
        if not self.questions:
            raise BadInput("there is nothing to take back")
        if first is None:
            first = len(self.questions) - 1
        removed = self.questions[first:]
        self.questions = self.questions[:first]
        if any(question.waiting for question in removed):
            self.interrupt()
        for photo in {question.photo for question in removed}:
            self.restore_turns(photo)
        self.reset_view()
        if removed and self.scenes:
            self.photo = removed[0].photo
        return removed[0].text if removed else ""

    def restore_turns(self, photo: int) -> None:
        """Let the scene of a photo remember the conversation as it now stands."""
        if photo < len(self.scenes):
            answers = [q.answer for q in self.questions if q.photo == photo and q.answer is not None]
            self.scenes[photo].restore(answers)

    # -- masks -----------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[Target]:
        """The targets that the picture shows."""
        if self.view == View.EVERYTHING:
            return self.regions
        if self.view == View.ATTENTION:
            return []
        if self.view == View.CLASSES and self.class_map:
            return self.class_targets
        return self.answer.targets if self.answer else []

    @property
    def colours(self) -> list[str]:
        """The "#rrggbb" of each of these targets."""
        if self.view not in (View.EVERYTHING, View.CLASSES):
            return self.answer.colours if self.targets and self.answer else []
        return colours_on(self.open_scene().image, [target.mask for target in self.targets])

    @property
    def selected_target(self) -> Target | None:
        """The target that is selected, where it is present."""
        targets = self.targets
        if self.selected is None or self.selected >= len(targets):
            return None
        return targets[self.selected] if targets[self.selected].present else None

    @property
    def subject(self) -> Target | None:
        """What the next question is about: the selected target, or the instance of it that is meant."""
        target = self.selected_target
        if target is None or self.selected_instance is None:
            return target
        if self.selected_instance >= len(target.instances):
            return target
        name = f"{target.phrase} {self.selected_instance + 1}"
        return Target(name, True, target.confidence, target.instances[self.selected_instance], [])

    def select(self, index: object, instance: object = None) -> None:
        """Select a target, or one of its instances; selecting the same again selects none.

        Args:
            index: Its index, as the browser sends it; anything else selects none.
            instance: The index of the instance; anything else stands for all of the target.
        """
        before = (self.selected, self.selected_instance)
        self.selected = self.selected_instance = None
        if not _is_index(index, len(self.targets)):
            return
        several = len(self.targets[index].instances)
        chosen = (index, instance if several > 1 and _is_index(instance, several) else None)
        if chosen != before:
            self.selected, self.selected_instance = chosen

    @property
    def searched_target(self) -> Target | None:
        """The target whose phrases can be changed: the selected one, or the first that was looked for."""
        if self.view != View.ANSWER:
            return None
        selected = [self.targets[self.selected]] if self.selected is not None else []
        return next((target for target in [*selected, *self.targets] if target.searched), None)

    def look_again(self, text: str) -> None:
        """Look for other phrases in the place of those of `searched_target`.

        Args:
            text: Noun phrases with commas between them, the likeliest first.

        Raises:
            BadInput: There is no such target, or see `Scene.search_again`.
        """
        question, target = self.shown_question, self.searched_target
        if question is None or question.answer is None or target is None:
            raise BadInput("no phrases were looked for here: ask for something first")
        phrases = [phrase for part in text.split(",") if (phrase := " ".join(part.split()))]
        if not phrases:
            raise BadInput("give a name to look for")
        scene = self.scenes[question.photo]
        question.answer = scene.search_again(question.answer, {target.phrase: phrases})
        self.restore_turns(question.photo)
        self.reset_view()
        self.photo = question.photo
        self.recalled = question

    def correct(self, targets: list[Target]) -> None:
        """Put targets that were corrected by hand in place of those of the answer that is shown."""
        question = self.shown_question
        assert question is not None and question.answer is not None
        text = plain(reply_for([(target.phrase, target.present) for target in targets]))
        question.answer = replace(question.answer, text=text, targets=targets, said="")
        question.corrected = True
        self.restore_turns(question.photo)

    def mark_absent(self) -> None:
        """Correct the answer: the selected target is absent. Raises BadInput where none is selected."""
        target = self.selected_target
        if self.view != View.ANSWER or target is None:
            raise BadInput("select one of the answer's masks first, then say that it is not there")
        absent = replace(target, present=False, confidence=0.0, mask=None, proposals=[], others=[])
        self.correct([absent if k == self.selected else t for k, t in enumerate(self.targets)])
        self.selected = None

    def save_correction(self) -> None:
        """Note the answer that is shown as a training record. Raises BadInput where there is none."""
        question = self.shown_question
        if question is None or question.answer is None:
            raise BadInput("there is no answer to save as a training record: ask something first")
        answer = question.answer
        earlier = self.questions[: self.questions.index(question)]
        history = [turn_of(q.answer) for q in earlier if q.photo == question.photo and q.answer is not None]
        others = [
            (other, turns)
            for other, turns in self.corrections
            if other.question != answer.question or other.image is not answer.image
        ]
        self.corrections = [*others, (answer, history)]

    # -- by hand ---------------------------------------------------------------------------------------------

    def start_marking(self) -> None:
        """Mark a new target by hand, or refine the one that is selected."""
        target = self.selected_target
        if target is None:
            self.manual = ManualPrompts()
        else:
            assert target.mask is not None
            replaced = self.selected if self.view == View.ANSWER else None
            unchanged = Candidate("as it was", target.mask, None)
            self.manual = ManualPrompts(replaced, target.mask, [unchanged])
        self.view = View.BY_HAND
        self.selected = None

    def use_candidate(self, index: object, name: str) -> None:
        """Take a mask made by hand into the answer.

        Args:
            index: Index of the candidate; the first where it is no index (a browser sends it).
            name: What the target is called; "" leaves a refined target its name.

        Raises:
            BadInput: Nothing is marked, or a new target has no name.
        """
        candidates = self.manual.candidates
        if not candidates:
            raise BadInput("nothing is marked yet: click on the picture first")
        chosen = index if isinstance(index, int) and 0 <= index < len(candidates) else 0
        earlier = self.answer.targets if self.answer else []
        targets = use_mask(earlier, self.manual.target, name, candidates[chosen].mask)
        if self.shown_question is None:  # a mask that was made before anything was asked
            scene = self.open_scene()
            text = f"Where is the {targets[0].phrase}?"
            answer = Answer("", [], scene.size, scene.image, text)
            self.questions.append(Question(self.photo, text, answer=answer, waiting=False))
        question = self.shown_question
        self.correct(targets)
        self.reset_view()
        self.recalled = question

    # -- everything, classes, attention ----------------------------------------------------------------------

    def show_everything(self, granularity: float) -> None:
        """Show the proposals, from parts (0) to whole objects (1)."""
        proposals = by_granularity(self.open_scene().proposals, granularity)
        largest = np.argsort(-proposals.areas)[:MAX_REGIONS]
        scores = proposals.predicted_iou.clip(0, 1)
        self.regions = [
            Target(f"region {n}", True, float(scores[i]), proposals.mask(int(i)), [])
            for n, i in enumerate(largest, 1)
        ]
        self.view = View.EVERYTHING
        self.selected = None

    def map_classes(self, text: str, check: Callable[[], None] | None = None) -> None:
        """Show the semantic map of pasted class names.

        Raises BadInput for a bad list; text and check: see `read_class_names` and `ask_classes`.
        """
        names = read_class_names(text)
        self.class_map = ask_classes(self.open_scene().fresh(), names, check=check)
        self.class_targets = self.class_map.targets()
        self.view = View.CLASSES
        self.selected = None

    def show_attention(self) -> None:
        """Show where the model attends for the selected target, or for the answer's first that is present.

        Raises BadInput where there is no target, and as `Scene.attend`.
        """
        present = [target for target in self.targets if target.present]
        target = self.selected_target or next(iter(present or self.targets), None)
        if target is None or self.view != View.ANSWER:
            raise BadInput("ask for something first, then see where the model looks for it")
        heat = self.open_scene().attend(target.phrase)
        # What is absent does not shine, however sure the model is of what else it says about it.
        brightness = 1.0 if target.present else min(target.confidence, MAX_ABSENT_BRIGHTNESS)
        self.attention = AttentionMap(target.phrase, heat, brightness)
        self.view = View.ATTENTION
        self.selected = None
