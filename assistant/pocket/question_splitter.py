"""Takes a question apart that asks several: the pocket's LLM, of 135 million parameters, forgets or renames what comes second.

    questions_in("who is there, and is there a zebra?")      # ["who is there", "is there a zebra?"]
    questions_in("find the cup and the spoon")               # as it is: things of one question

Rules, in English. What they do not take apart is asked as it is, and so is what refers back ("and what is next to it?").
"""

import re

MOST = 6  # questions in one; what comes after is left in the last
WANTING = r"(?:find|show|mark|segment|outline|locate|trace|highlight|point|pick|select|cut|look for|spot|detect|identify|draw)"
ASKING = (
    r"(?:what(?:['’]s)?|who(?:['’]s)?|whose|which|whereabouts|how (?:many|do|can|could|would|should)|"
    r"where(?:['’]s| (?:is|are|can|could|do|does|did|would|should|might))|"
    r"(?:is|are) (?:there|the|an?|any|some|this|that)|(?:do|did|can|could|would|have|might) (?:you|we|i|they|there)|"
    r"does (?:the|this|it|anyone|anybody)|has (?:any|some|the)|any chance|let me see|(?:show|give|find|get|tell) me|"
    r"see (?:if|whether)|check (?:if|whether|for)|i (?:need|want|would like|am looking)|i['’](?:d like|m looking)|"
    r"i spy|help me)"
)
REQUEST = rf"(?:{WANTING} (?:me |out |at |up )?(?:the|an?|all|every\w*|any\w*|some\w*|whatever|what|who|where|my|your|please)\b)"
LEAD = r"(?:(?:and|also|then|now|please|ok|okay|so|well|but|hi|hello|thanks)[,!]? )*"
ASKS = re.compile(rf"{LEAD}(?:{ASKING}|{REQUEST})\b", re.I)
WANTS = re.compile(rf"{LEAD}{WANTING}\b", re.I)
# Before one of these something new may begin: the end of a sentence, a comma with "and", "and" alone.
JOINT = re.compile(r"(?<=[?!;])\s+|(?<=[^.]\.)\s+(?=[A-Z])|,? (?:and|but|or)(?: also| then)? (?=\w)", re.I)
BACK = re.compile(
    r"\b(?:it|them|(?<!did )they|he|she|him|others?|the rest|both|same|ones|(?:the|that|this|which)(?: \w+)? one|"
    r"one(?= (?:on|in|at|to|that|which|near|with)\b|\W*$))\b",
    re.I,
)


def questions_in(question: str) -> list[str]:
    """The questions that `question` joins, in order; itself alone where it asks one, or one that needs the other."""
    found, start = [], 0
    for joint in JOINT.finditer(question):
        before, after = question[start : joint.start()], question[joint.end() :]
        first = _last_sentence(before)
        if len(found) + 1 >= MOST or not (ASKS.match(first) or WANTS.match(first)):
            continue
        fits = ASKS.match(after) or WANTS.match(after)
        if joint[0].startswith(" ") and joint[0].strip() and WANTS.match(after):
            # "find the cup and mark the spoon", but not "what could I use to cut and mark the wood?"
            fits = ASKS.match(after) and WANTS.match(first)
        if not fits:
            continue
        found.append(before.strip(" ,;"))
        start = joint.end()
    found.append(question[start:].strip())
    return [question] if len(found) == 1 or any(BACK.search(part) for part in found[1:]) else found


def _last_sentence(text: str) -> str:
    """What may ask in the text so far: "My hands are dirty. Where do I go" asks with its second sentence."""
    return re.split(r"(?<=[.?!;:])\s+|, (?=(?:where|what|who|which|is|are|can|do)\b)", text.strip())[-1]
