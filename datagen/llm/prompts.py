"""The prompts for language models, and the form of their answers.

    messages = [{"role": "system", "content": WRITE_PROMPT.format(count=8, kinds=rules)}, ...]

The texts and schemas are part of what answers are cached under (`datagen.llm.answers.request_name`): an edit
of a single word here asks every user's model again, for money. Edit them to get better questions, never to
polish the style.
"""

import hashlib
import json

from datagen.checks import KINDS
from datagen.llm.requests import NUMBERS, STRING, array_schema, object_schema

DESCRIBE_PROMPT = """Describe this photo in four to six plain sentences: what is going on, who and what can be seen, how the things
lie to each other, and what they are for here. Do not guess what cannot be seen."""  # noqa: E501

WRITE_PROMPT = """You write questions that people might ask an assistant about a photo. The assistant answers by outlining things in
the photo, or by saying that a thing is not there. You are told what is in the photo: each thing has a number, a name and a place.

Write {count} questions of different kinds, as varied in wording as people are: short and long, a child and an engineer, plain
requests, needs and problems ("I need to write a letter", "what keeps the rain off?").
{kinds}
Only ask what can be answered from the photo by pointing. A question must have one answer that everybody agrees on.
"phrase" is how the reply calls the thing in a few words without an article: "umbrella", "cup on the left". "name" is its name in
the list; for an absent thing its common name."""  # noqa: E501

KIND_RULES = {
    "implicit": """describes ONE kind of thing by its use, look, material or part in the scene, WITHOUT its name or a synonym. All
  things of that name are meant: give all their numbers.""",  # noqa: E501
    "named": "asks for one kind of thing by name; all their numbers.",
    "multi": "asks for two or three different kinds of things at once, by use or by name; all the numbers of "
    "each.",
    "position": """where there are several of one name, asks for some of them by place, by comparison ("the taller one", "the two
  nearest to the door") or by what they do; only their numbers, never all.""",  # noqa: E501
    "part": "asks for a part of a thing by its use, look or place; the numbers of the parts that are meant.",
    "absent": """asks for something that could well be in such a scene and is NOT there; no numbers. Half of them take it for
  granted ("what is the dog chewing on?" where there is no dog). Never something that may only be hard to see.""",  # noqa: E501
    "followup": """a question that is only clear after one or two others, which stand in "before" with what they are about ("where
  could I sit?" - "and the one nearer to the window?"); its numbers are what the LAST question is about.""",  # noqa: E501
}

ANSWER_PROMPT = """\
A photo shows these things, each with a number, a name and a place. Someone asks a question about the photo. Answer with
the numbers of all things that are meant, and nothing else; an empty list if nothing in the list fits."""  # noqa: E501

VERIFY_PROMPT = """\
Look at this photo. Which of these can be seen anywhere in it, even in part, small, far away or in the background? Answer
with their numbers, and nothing else; an empty list if there is none of them."""  # noqa: E501

TARGET = object_schema("target", phrase=STRING, name=STRING, numbers=NUMBERS)
TURN = object_schema("turn", question=STRING, targets=array_schema(TARGET))
QUESTION = object_schema(
    "question",
    kind=STRING | {"enum": list(KINDS)},
    before=array_schema(TURN),
    question=STRING,
    targets=array_schema(TARGET),
)
QUESTIONS = object_schema("questions", questions=array_schema(QUESTION))
OPINION = object_schema("opinion", numbers=NUMBERS)
DESCRIPTION = object_schema("description", description=STRING)

# Names this version of the texts and schemas; it stands in the source of every record.
PROMPT_VERSION = hashlib.sha256(
    json.dumps(
        [DESCRIBE_PROMPT, WRITE_PROMPT, KIND_RULES, ANSWER_PROMPT, VERIFY_PROMPT, QUESTIONS, OPINION]
    ).encode()
).hexdigest()[:12]
