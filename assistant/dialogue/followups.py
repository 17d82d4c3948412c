"""Answers what refers to the masks of the last answer: "now remove the cup", "only the smaller one", "not that one".

A reasoner of 135 million parameters does not know what its own masks look like, so rules read such questions
(`assistant.dialogue.followup_parser`) and work on the masks: places and sizes are measured, other candidates are the
selector's. What the rules do not read goes to the model, and so does what they cannot answer, spelled out where that
helps ("the cup on the left").
"""

from dataclasses import replace

import numpy as np

from assistant.answer import Answer, Target
from assistant.dialogue.followup_parser import FollowUp, bare, read, read_about
from assistant.grammar import ABS, SEG, clean_phrase, plain, reply_for

SAID = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}  # others stand before the name
ALIKE = 0.5  # share of the smaller of two masks in the other, from which both are taken for one thing
FEWEST = 0.05  # a part this much smaller than the largest is not an instance of its own
TRIED = 6  # runners-up that are looked at for a comparison


def answer(scene, question: str, options: dict) -> Answer | None:
    """The answer to what refers to `scene.shown`; None where the model should be asked."""
    shown = [t for t in scene.shown if t.present]
    found = read(question, [t.phrase for t in shown])
    if found is None:
        return None
    if found.act == "drop":
        rest = [] if found.phrase == "*" else [t for t in shown if t.phrase != found.phrase]
        gone = "everything" if found.phrase == "*" else f"the {clean_phrase(found.phrase)}"
        left = plain(reply_for([(t.phrase, True) for t in rest])) if rest else "Nothing is left."
        return _answer(scene, question, rest, f"Without {gone}. {left}")
    if found.act == "again":
        return _answer(scene, question, shown)
    if found.act == "keep":
        return _answer(scene, question, [t for t in shown if t.phrase in found.phrase.split("\n")])
    if found.act == "others":
        return _others(scene, question, shown[-1], options)
    if found.act == "add":
        new = scene._ask(f"Where is the {found.phrase}?", options)
        known = {t.phrase.lower() for t in new.targets}
        return _answer(scene, question, [t for t in shown if t.phrase.lower() not in known] + new.targets)
    target = next((t for t in shown if t.phrase == found.phrase), shown[-1])
    mask, proposals = _pick(scene, target, found, options)
    if mask is None:
        name = bare(target.phrase)
        named = f"the {name} {SAID[found.pick]}" if found.pick in SAID else f"the {found.pick} {name}"
        return (
            replace(scene._ask(f"Where is {named}?", options), question=question)
            if found.act == "choose"
            else None
        )
    others = [*target.proposals, *target.others]
    if found.act == "other":  # the rejected last
        others = [*target.others, *target.proposals]
    others = [i for i in others if i not in proposals]
    return _answer(scene, question, [Target(target.phrase, True, target.confidence, mask, proposals, others)])


def _all_but(scene, target: Target, options: dict) -> list[tuple[np.ndarray, list[int]]]:
    """The instances of the target's name that the model finds and that are not alike to it, with their proposals."""
    told = scene._ask(
        f"Please segment {bare(target.phrase)}.", options
    )  # as classes are asked for: all there is of it
    return [
        (m, p)
        for t in told.targets
        if t.present
        for m, p in instances(scene, t)
        if _alike(m, target.mask) < ALIKE
    ]


def _others(scene, question: str, target: Target, options: dict) -> Answer | None:
    """All things of the target's name but the one shown; None where the model finds no other."""
    found = _all_but(scene, target, options)
    if not found:
        return None
    mask, proposals = np.logical_or.reduce([m for m, _ in found]), [i for _, p in found for i in p]
    return _answer(
        scene, question, [Target(target.phrase, True, target.confidence, mask, proposals, target.proposals)]
    )


def answer_about(scene, question: str, about: np.ndarray, options: dict) -> Answer | None:
    """The answer to a question about the part of the picture `about` (H, W) bool; None never: the model's own last."""
    kind, noun = read_about(question) or ("within", "")
    if kind == "name":
        names = scene.assistant.pipeline.name_region(scene.image, scene.opened, about)
        if names:
            (name, sure), rest = names[0], [f"{n} {p:.0%}" for n, p in names[1:3] if p >= 0.05]
            maybe = f" Or else: {', '.join(rest)}." if rest else ""
            inside = [i for i in range(len(scene.proposals)) if _share(scene.proposals.mask(i), about) > 0.8]
            text = f"This looks like: {name} ({sure:.0%}).{maybe}"
            return _answer(scene, question, [Target(name, True, sure, about, inside)], text)
    if kind not in ("within", "name"):
        if noun:
            told = scene._ask(f"Where is the {noun}?", options)
            places = [(m, p, t) for t in told.targets if t.present for m, p in instances(scene, t)]
        else:
            told, places = None, [(scene.proposals.mask(i), [i], None) for i in range(len(scene.proposals))]
        apart = [
            (k, distance(m, about, kind)) for k, (m, _, _) in enumerate(places) if _alike(m, about) < ALIKE
        ]
        fitting = [(d, k) for k, d in apart if d is not None]
        if fitting:
            mask, proposals, target = places[min(fitting)[1]]
            target = target or _named(scene, mask, proposals)
            return _answer(scene, question, [replace(target, mask=mask, proposals=proposals)])
        absent = [_absent(scene, t) for t in told.targets] if told else []
        return _answer(scene, question, absent, None if absent else "There is nothing there that stands out.")
    told = scene._ask(question, options)
    return _answer(scene, question, [_within(scene, t, about) for t in told.targets])


def _named(scene, mask: np.ndarray, proposals: list[int]) -> Target:
    """A proposal under the name that is likeliest, where the preset names parts of a picture."""
    names = scene.assistant.pipeline.name_region(scene.image, scene.opened, mask)
    name, sure = (
        names[0] if names else ("thing", float(scene.proposals.predicted_iou[proposals[0]].clip(0, 1)))
    )
    return Target(name, True, sure, mask, proposals)


def _absent(scene, target: Target) -> Target:
    return replace(
        target, present=False, mask=None, confidence=min(target.confidence, scene.assistant.threshold)
    )


def _answer(scene, question: str, targets: list[Target], text: str | None = None) -> Answer:
    text = plain(reply_for([(t.phrase, t.present) for t in targets])) if text is None else text
    said = ", ".join(f"{clean_phrase(t.phrase)} {SEG if t.present else ABS}" for t in targets)
    return Answer(text, targets, scene.size, scene.image, question, None, f"{said}." if said else "")


def _within(scene, target: Target, about: np.ndarray) -> Target:
    """The part of a target that lies in `about`; absent where hardly anything does."""
    if not target.present:
        return target
    inside = [i for i in target.proposals if _share(scene.proposals.mask(i), about) > 0.6]
    mask = scene.union(inside) & about if inside else target.mask & about
    if mask.sum() < 0.1 * min(target.mask.sum(), about.sum()):
        return _absent(scene, target)
    return replace(target, mask=mask, proposals=inside)


def instances(scene, target: Target) -> list[tuple[np.ndarray, list[int]]]:
    """The single things that a target's mask is made of: [((H, W) bool, their proposals)].

    Its proposals, best first, without those that mostly lie in one before; where that leaves one, the mask's own
    connected parts, from FEWEST of the largest one's area.
    """
    from scipy import ndimage

    kept = _distinct(
        scene, [i for i in target.proposals if _share(scene.proposals.mask(i), target.mask) > 0.9], []
    )
    if len(kept) > 1:
        return [(scene.proposals.mask(i), [i]) for i in kept]
    parts, count = ndimage.label(target.mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = [k for k in range(count) if sizes[k] >= FEWEST * sizes.max()]
    if len(large) < 2:
        return [(target.mask, list(target.proposals))]
    return [(parts == k + 1, []) for k in large]


def _distinct(scene, proposals: list[int], rejected: list[np.ndarray]) -> list[int]:
    """Of `proposals`, in order, those that are alike to none of the masks before them nor of `rejected`."""
    kept, masks = [], list(rejected)
    for i in proposals:
        mask = scene.proposals.mask(i)
        if all(_alike(mask, other) < ALIKE for other in masks):
            kept.append(i)
            masks.append(mask)
    return kept


def _pick(scene, target: Target, found: FollowUp, options: dict) -> tuple[np.ndarray | None, list[int]]:
    """The instance meant and its proposals: among those shown if there are several, else among the others that the
    model finds, else among the runners-up."""
    shown = instances(scene, target)
    if found.pick and len(shown) > 1:
        return min(shown, key=lambda one: _rank(one[0], found.pick))
    others = _distinct(scene, target.others, [target.mask])
    if not found.pick:
        return (scene.proposals.mask(others[0]), others[:1]) if others else (None, [])
    fitting = [
        one
        for one in _all_but(scene, target, options)
        if _rank(one[0], found.pick) < _rank(target.mask, found.pick)
    ]
    if fitting:
        return min(fitting, key=lambda one: _rank(one[0], found.pick))
    for i in others[:TRIED]:  # best first: the first that is smaller than, left of, ... what was shown
        mask = scene.proposals.mask(i)
        if _rank(mask, found.pick) < _rank(target.mask, found.pick):
            return mask, [i]
    return None, []


def _rank(mask: np.ndarray, pick: str) -> float:
    """Lower fits better."""
    if pick in ("smaller", "smallest", "larger", "largest"):
        return float(mask.sum()) * (1 if pick.startswith("small") else -1)
    y, x = (float(v.mean()) for v in np.nonzero(mask))
    middle = np.hypot(y - mask.shape[0] / 2, x - mask.shape[1] / 2)
    return {"left": x, "right": -x, "top": y, "bottom": -y, "middle": middle}[pick]


def distance(mask: np.ndarray, about: np.ndarray, relation: str) -> float | None:
    """How far (px, between centres) `mask` is from `about`, None where it does not lie on that side of it."""
    (y, x), (v, u) = ([float(c.mean()) for c in np.nonzero(m)] for m in (mask, about))
    right, down = x - u, y - v
    ahead = {"near": 1.0, "left": -right, "right": right, "above": -down, "below": down}[relation]
    aside = {"left": abs(down), "right": abs(down), "above": abs(right), "below": abs(right)}.get(
        relation, 0.0
    )
    return float(np.hypot(right, down)) if ahead > 0 and ahead >= aside / 2 else None


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Share of `part` that lies in `whole`."""
    return float((part & whole).sum() / max(1, part.sum()))


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller mask that lies in the other."""
    return float((a & b).sum() / max(1, min(a.sum(), b.sum())))
