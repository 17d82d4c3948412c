"""Splits a question that joins several: the pocket LLM, of 135 million parameters, forgets the second.

    split_question("who is there, and is there a zebra?")      # ["who is there", "is there a zebra?"]
    split_question("find the cup and the spoon")               # unchanged: two targets of one question

The rules are for English. A question that they do not cover is asked unchanged, and so is one whose second
part refers back to the first ("and what is next to it?").
"""

import re

MAX_QUESTIONS = 6  # in one; the last of them holds whatever follows
REQUEST_VERB = (
    r"(?:find|show|mark|segment|outline|locate|trace|highlight|point|pick|select|cut|look for|spot|detect|"
    r"identify|draw)"
)
QUESTION_START = (
    r"(?:what(?:['’]s)?|who(?:['’]s)?|whose|which|whereabouts|how (?:many|do|can|could|would|should)|"
    r"where(?:['’]s| (?:is|are|can|could|do|does|did|would|should|might))|"
    r"(?:is|are) (?:there|the|an?|any|some|this|that)|"
    r"(?:do|did|can|could|would|have|might) (?:you|we|i|they|there)|"
    r"does (?:the|this|it|anyone|anybody)|has (?:any|some|the)|any chance|let me see|"
    r"(?:show|give|find|get|tell) me|see (?:if|whether)|check (?:if|whether|for)|"
    r"i (?:need|want|would like|am looking)|i['’](?:d like|m looking)|i spy|help me)"
)
REQUEST = (
    rf"(?:{REQUEST_VERB} (?:me |out |at |up )?"
    r"(?:the|an?|all|every\w*|any\w*|some\w*|whatever|what|who|where|my|your|please)\b)"
)
LEADING_WORDS = r"(?:(?:and|also|then|now|please|ok|okay|so|well|but|hi|hello|thanks)[,!]? )*"
IS_QUESTION = re.compile(rf"{LEADING_WORDS}(?:{QUESTION_START}|{REQUEST})\b", re.I)
IS_REQUEST = re.compile(rf"{LEADING_WORDS}{REQUEST_VERB}\b", re.I)
# Where a new question may begin: after a sentence, after a comma with "and", after "and" alone.
JOINT = re.compile(r"(?<=[?!;])\s+|(?<=[^.]\.)\s+(?=[A-Z])|,? (?:and|but|or)(?: also| then)? (?=\w)", re.I)
REFERS_BACK = re.compile(
    r"\b(?:it|them|(?<!did )they|he|she|him|others?|the rest|both|same|ones|"
    r"(?:the|that|this|which)(?: \w+)? one|"
    r"one(?= (?:on|in|at|to|that|which|near|with)\b|\W*$))\b",
    re.I,
)


def split_question(question: str) -> list[str]:
    """The questions that `question` joins, in order; itself if it is one, or if one refers to another."""
    parts: list[str] = []
    start = 0
    for joint in JOINT.finditer(question):
        before, after = question[start : joint.start()], question[joint.end() :]
        if len(parts) + 1 < MAX_QUESTIONS and _separates(before, joint[0], after):
            parts.append(before.strip(" ,;"))
            start = joint.end()
    parts.append(question[start:].strip())
    if len(parts) == 1 or any(REFERS_BACK.search(part) for part in parts[1:]):
        return [question]
    return parts


def _separates(before: str, joint: str, after: str) -> bool:
    """Whether a joint stands between two questions."""
    first = _last_sentence(before)
    if not (IS_QUESTION.match(first) or IS_REQUEST.match(first)):
        return False
    if joint.startswith(" ") and joint.strip() and IS_REQUEST.match(after):
        # "find the cup and mark the spoon", but not "what could I use to cut and mark the wood?"
        return bool(IS_QUESTION.match(after) and IS_REQUEST.match(first))
    return bool(IS_QUESTION.match(after) or IS_REQUEST.match(after))


def _last_sentence(text: str) -> str:
    """The sentence that asks: in "My hands are dirty. Where do I go" the second."""
    return re.split(r"(?<=[.?!;:])\s+|, (?=(?:where|what|who|which|is|are|can|do)\b)", text.strip())[-1]
