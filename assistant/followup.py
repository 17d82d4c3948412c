"""What refers to the masks of the last answer: "now remove the cup", "only the smaller one", "not that one".

A reasoner of 135 million parameters does not know what its own masks look like, so a small layer of rules reads such
questions, in English, and works on the masks: places and sizes are measured, other candidates are the selector's. What
the rules do not read in full goes to the model, and so does what they cannot answer, spelled out where that helps
("the cup on the left").

    read("and the one on the left?", ["cup"])            # FollowUp("choose", "", "left")
    read("not that one, the smaller", ["cup"])           # FollowUp("other", "", "smaller")
    read("now remove the cup", ["cup", "spoon"])         # FollowUp("drop", "cup")
    read("only the cup", ["cup", "spoon"])               # FollowUp("keep", "cup")
    read("also the spoon", ["cup"])                      # FollowUp("add", "spoon")
    read_about("the cup next to it")                     # ("near", "cup")
    read_about("what is this?")                          # ("name", "")
"""

import re
from dataclasses import dataclass, replace

import numpy as np

from assistant.answer import Answer, Target
from assistant.grammar import ABS, SEG, clean_phrase, plain, reply_for

PICKS = {
    name: pick
    for pick, names in {
        "left": "left leftmost lefthand",
        "right": "right rightmost righthand",
        "top": "top topmost upper uppermost highest higher",
        "bottom": "bottom bottommost lower lowest lowermost",
        "middle": "middle central centre center",
        "smallest": "smallest tiniest littlest",
        "largest": "largest biggest hugest",
        "smaller": "small smaller little tiny",
        "larger": "big bigger large larger",
    }.items()
    for name in names.split()
}
SAID = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}  # others stand before the name
FILLER = set(
    "and the a an one ones only just what about is are which on at in to of side hand please now that those "
    "these this it them show me keep i mean meant no so then ok okay but actually rather thing instead where "
    "whats wheres there let see by itself alone make next want need narrow down could can you do mark find as well far "
    "too sorry give".split()
)
# What may stand before and after the matter itself.
LEAD = re.compile(
    r"(?:and|now|then|ok|okay|please|no|so|but|actually|well|sorry|next|good|thanks|yes|of (?:those|them|these)|"
    r"too many|"
    r"not all of them|on second thoughts|(?:can|could|would|will) you|can i see|show(?: me)?|let me see|give me|"
    r"mark|outline|"
    r"select|find|where(?: exactly)? (?:is|are)|wheres|whereabouts (?:is|are)|(?:what|how) about|which(?: one| "
    r"of them)? is|"
    r"i (?:mean|meant|want|need)) "
)
TRAIL = re.compile(r" (?:please|too|as well|now|instead|then|again|sorry)$")
KEEP = re.compile(
    r"(?:only|just|keep|nothing but|nothing except|i (?:only|just) (?:want|need|meant)|make (?:it|that)|leave "
    r"everything out but|"
    r"narrow it down to) (.+)|(.+) (?:only|alone|by (?:itself|themselves)|and nothing else)"
)
DROP = re.compile(
    r"(?:remove|delete|drop|hide|erase|forget|discard|exclude|skip|leave out|take (?:away|out|off)|get rid of|"
    r"without|except|not|"
    r"ignore|i (?:did not|didnt|dont|do not) (?:want|mean|need)|(?:all|everything)(?: of (?:that|them|it))?(?: "
    r"just named)? "
    r"(?:but|except|without)|the same without) (.+)|take (.+) away"
)
OTHER = re.compile(
    r"(?:(?:not|wrong|isnt|its not|it isnt|thats not) (?:it|that|this|the)?(?: one| right)?|wrong|no|another(?: one)?|"
    r"(?:try |show me |show )?another(?: one)?)((?: .*)?)"
)
OTHERS = re.compile(
    r"(?:(?:not|everything but|all but) (?:that|this|it)(?: one)? )?(?:the |all the |all )?(?:others?|other "
    r"ones?|rest(?: of (?:them|those))?|remaining(?: ones?)?)"
)
ADD = re.compile(
    r"(?:also|add|plus|include|as well as) (.+)|((?:the|my|your|his|her|their|that|those) .+) (?:too|as well)"
)
AGAIN = re.compile(
    r"(?:(?:show|point at|point to|outline|select|mark|segment|trace|cut|colour|color|draw|find|see|where(?: "
    r"exactly)? (?:is|are)|"
    r"give me the mask of) )?(?:it|them|that|those|this|these)(?: (?:to me|out|in))?(?: again| once more)?|once "
    r"more(?: please)?(?: where)?|again|"
    r"where(?: again)?"
)
POINTING = set("the one ones on at in to".split())
START = r"(?:(?:and|now|then|ok|okay|please|so|but|can you|could you|well) )*"
IT = set("it that this one them those these".split())
NAME = re.compile(
    START
    + r"(?:what|who|which)(?: kind of| sort of)?(?: \w+)?(?: is| are|s| do you (?:call|see)|)(?: (?:it|this|that|here|"
    r"these|those|there))?(?: \w+)?(?: called)?|(?:tell me what|name) (?:it|this|that)(?: is)?"
)
NAMED = set(
    "what whats who which kind sort of is are s do you call see it this that here these those there thing object "
    "called name tell me".split()
)
RELATION = re.compile(
    START + r"(?:(?:where|what|which|who|find|show me|show|is there|are there|and|wheres|whats)\s+)?(?:is |are )?"
    r"(?:the |a |an |any |some )?(.*?) ?(?:is |are |that is |thats )?"
    r"(?:(?:to|on) the (left|right) of|(left|right) of|(next to|near|beside|by|closest to|nearest to|"
    r"close to)|(above|over)|(below|under|beneath|underneath)) (?:it|this|that|them|these|those)"
)
ALIKE = 0.5  # share of the smaller of two masks in the other, from which both are taken for one thing
FEWEST = 0.05  # a part this much smaller than the largest is not an instance of its own
TRIED = 6  # runners-up that are looked at for a comparison


@dataclass(frozen=True)
class FollowUp:
    """act: drop | keep | choose | other | others | add | again; phrase: the name it is about (keep: names, a line
    each; drop:
    "*" = all), "" = what was shown last; pick: a value of PICKS, or ""."""

    act: str
    phrase: str = ""
    pick: str = ""


def words_of(text: str) -> str:
    """Lower case words with single spaces, no punctuation: "What's that?" -> "whats that"."""
    return " ".join(
        re.sub(r"[^\w\s]", " ", re.sub(r"['’]|(?<=left)-(?=hand)|(?<=right)-(?=hand)", "", text.lower())).split()
    )


def singular(word: str) -> str:
    return re.sub(r"(?<=\w\w)(?<!s)s$", "", word)


def name_in(text: str, names: list[str]) -> str | None:
    """The one of `names` that `text` (words) means, by all its words or its last one; None where none or several do."""
    asked = [singular(w) for w in words_of(text).split() if w not in FILLER]
    if not asked:
        return None
    known = [(name, [singular(w) for w in words_of(name).split()]) for name in names]
    exact = [name for name, words in known if words == asked]
    close = [name for name, words in known if words and (set(asked) <= set(words) or words[-1:] == asked[-1:] == asked)]
    return exact[0] if exact else close[0] if len(close) == 1 else None


def read(question: str, names: list[str]) -> FollowUp | None:
    """What `question` asks to do with the things shown, `names` (at least one); None where it is for the model."""
    if not names:
        return None
    whole = text = words_of(question)
    if found := ADD.fullmatch(re.sub(r"^(?:and|now|please|ok) ", "", text)):
        phrase = re.sub(r"^(?:find |show |mark |select )?(?:the|an?|some|any)\s+", "", found[1] or found[2])
        if not set(phrase.split()) & {"other", "others", "rest"} and not set(phrase.split()) <= IT | FILLER:
            return FollowUp("add", phrase)
    while True:  # down to the matter
        if OTHERS.fullmatch(text):
            return FollowUp("others")
        if found := OTHER.fullmatch(text):
            rest = [w for w in found[1].split() if w not in FILLER]
            if rest in (["others"], ["other"], ["rest"]):
                return FollowUp("others")
            if not rest:
                return FollowUp("other")
            if len(rest) == 1 and rest[0] in PICKS:
                return FollowUp("other", "", PICKS[rest[0]])
        if AGAIN.fullmatch(text) and text != whole.split(" ")[0]:
            return FollowUp("again")
        if found := DROP.fullmatch(text):
            return _read_drop(found[1] or found[2], names)
        chosen = _read_choice(text, names)
        if chosen:
            return chosen
        if found := KEEP.fullmatch(text):
            kept = [
                name_in(part, names)
                for part in re.split(r" and |, ", re.sub(r" (?:drop|forget) the rest$", "", found[1] or found[2]))
            ]
            if kept and all(kept):
                return FollowUp("keep", "\n".join(kept))
        shorter = TRAIL.sub("", LEAD.sub("", text, count=1) if LEAD.match(text) else text)
        if shorter == text:
            return None
        text = shorter


def _read_drop(what: str, names: list[str]) -> FollowUp | None:
    words = set(what.split())
    if words <= {"everything", "all", "them", "it", "of", "that"} and words & {"everything", "all", "them"}:
        return FollowUp("drop", "*")
    if words <= IT | FILLER:
        return FollowUp("drop", names[-1])
    name = name_in(what, names)
    return FollowUp("drop", name) if name else None


def _read_choice(text: str, names: list[str]) -> FollowUp | None:
    """One pick, filler, and at most the name of something shown: "and the left one?", "only the smaller cup"."""
    words = [w for w in text.split() if w not in FILLER]
    picks = [w for w in words if w in PICKS]
    if len(picks) != 1:
        return None
    others = " ".join(w for w in words if w not in PICKS)
    if (
        not others
        and picks[0] in ("left", "right", "top", "middle", "little", "big")
        and not POINTING & set(text.split())
    ):
        return None  # "what's left?", "right."
    if not others:
        return FollowUp("choose", "", PICKS[picks[0]])
    name = name_in(others, names)
    return FollowUp("choose", name, PICKS[picks[0]]) if name else None


def read_about(question: str) -> tuple[str, str] | None:
    """(relation, noun) of a question about a marked part of the picture: name | near | left | right | above | below;
    noun: "" for "what is next to it?". None where it is for the model."""
    text = words_of(question)
    if found := RELATION.fullmatch(text):
        noun = "" if found[1] in ("thing", "one", "object", "what", "there", "anything", "something") else found[1]
        kind = found[2] or found[3] or (found[4] and "near") or (found[5] and "above") or "below"
        return kind, noun
    if NAME.fullmatch(text) and set(text.split()) <= NAMED:
        return "name", ""
    return None


# -- working on masks ---------------------------------------------------------------------------------------------


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
        named = f"the {target.phrase} {SAID[found.pick]}" if found.pick in SAID else f"the {found.pick} {target.phrase}"
        return replace(scene._ask(f"Where is {named}?", options), question=question) if found.act == "choose" else None
    others = (
        [*target.others, *target.proposals] if found.act == "other" else [*target.proposals, *target.others]
    )  # the rejected last
    others = [i for i in others if i not in proposals]
    return _answer(scene, question, [Target(target.phrase, True, target.confidence, mask, proposals, others)])


def _all_but(scene, target: Target, options: dict) -> list[tuple[np.ndarray, list[int]]]:
    """The instances of the target's name that the model finds and that are not alike to it, with their proposals."""
    told = scene._ask(f"Where are all the {target.phrase}?", options)
    return [(m, p) for t in told.targets if t.present for m, p in instances(scene, t) if _alike(m, target.mask) < ALIKE]


def _others(scene, question: str, target: Target, options: dict) -> Answer | None:
    """All things of the target's name but the one shown; where the model finds no other, the first runner-up."""
    found = _all_but(scene, target, options)
    found = found or [(scene.proposals.mask(i), [i]) for i in _distinct(scene, target.others, [target.mask])[:1]]
    if not found:
        return None
    mask, proposals = np.logical_or.reduce([m for m, _ in found]), [i for _, p in found for i in p]
    return _answer(scene, question, [Target(target.phrase, True, target.confidence, mask, proposals, target.proposals)])


def answer_about(scene, question: str, about: np.ndarray, options: dict) -> Answer | None:
    """The answer to a question about the part of the picture `about` (H, W) bool; None never: the model's own last."""
    kind, noun = read_about(question) or ("within", "")
    namer = getattr(scene.assistant.parts, "name", None)
    if kind == "name" and namer:
        names = namer(scene.image, scene.view, about)
        if names:
            (name, sure), rest = names[0], [f"{n} {p:.0%}" for n, p in names[1:3] if p >= 0.05]
            maybe = f" Or else: {', '.join(rest)}." if rest else ""
            inside = [i for i in range(len(scene.proposals)) if _share(scene.proposals.mask(i), about) > 0.8]
            return _answer(
                scene,
                question,
                [Target(name, True, sure, about, inside)],
                f"This looks like: {name} ({sure:.0%}).{maybe}",
            )
    if kind not in ("within", "name"):
        if noun:
            told = scene._ask(f"Where is the {noun}?", options)
            places = [(m, p, t) for t in told.targets if t.present for m, p in instances(scene, t)]
        else:
            told, places = None, [(scene.proposals.mask(i), [i], None) for i in range(len(scene.proposals))]
        fitting = [
            (d, k)
            for k, (m, _, _) in enumerate(places)
            if _alike(m, about) < ALIKE and (d := distance(m, about, kind)) is not None
        ]
        if fitting:
            mask, proposals, target = places[min(fitting)[1]]
            if target is None:
                names = namer(scene.image, scene.view, mask) if namer else []
                quality = float(scene.proposals.predicted_iou[proposals[0]].clip(0, 1))
                target = Target(
                    *((names[0][0], True, names[0][1]) if names else ("thing", True, quality)), mask, proposals
                )
            return _answer(scene, question, [replace(target, mask=mask, proposals=proposals)])
        absent = (
            [
                replace(t, present=False, mask=None, confidence=min(t.confidence, scene.assistant.threshold))
                for t in told.targets
            ]
            if told
            else []
        )
        return _answer(scene, question, absent, None if absent else "There is nothing there that stands out.")
    told = scene._ask(question, options)
    return _answer(scene, question, [_within(scene, t, about) for t in told.targets])


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
        return replace(target, present=False, mask=None, confidence=min(target.confidence, scene.assistant.threshold))
    return replace(target, mask=mask, proposals=inside)


def instances(scene, target: Target) -> list[tuple[np.ndarray, list[int]]]:
    """The single things that a target's mask is made of: [((H, W) bool, their proposals)].

    Its proposals, best first, without those that mostly lie in one before; where that leaves one, the mask's own
    connected parts, from FEWEST of the largest one's area.
    """
    from scipy import ndimage

    kept = _distinct(scene, [i for i in target.proposals if _share(scene.proposals.mask(i), target.mask) > 0.9], [])
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
    model
    finds, else among the runners-up."""
    shown = instances(scene, target)
    if found.pick and len(shown) > 1:
        return min(shown, key=lambda one: _rank(one[0], found.pick))
    others = _distinct(scene, target.others, [target.mask])
    if not found.pick:
        return (scene.proposals.mask(others[0]), others[:1]) if others else (None, [])
    fitting = [
        one for one in _all_but(scene, target, options) if _rank(one[0], found.pick) < _rank(target.mask, found.pick)
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
    aside = {"left": abs(down), "right": abs(down), "above": abs(right), "below": abs(right)}.get(relation, 0.0)
    return float(np.hypot(right, down)) if ahead > 0 and ahead >= aside / 2 else None


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Share of `part` that lies in `whole`."""
    return float((part & whole).sum() / max(1, part.sum()))


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller mask that lies in the other."""
    return float((a & b).sum() / max(1, min(a.sum(), b.sum())))
