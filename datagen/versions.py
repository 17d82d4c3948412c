"""The version of each step's output, part of the names under which results are cached.

    name = fingerprint(image_name, COMPOSER_VERSION)

A result in DIR/kept.sqlite is used again as long as the version of the step that made it is still the one
below. Whoever changes what a step makes gives the step a new version, in the same commit: any string that it
has not had before, such as "2". Edits that leave the output as it is (names, comments, types) leave the
version as it is too, because a new one makes every user's folder do the step again, and with language models
behind it that costs money.

The first versions look like checksums because they are: up to commit 48e4087 the source files were hashed
instead, and folders from that time hold these values.
"""

ANNOTATION_READER_VERSION = "2"  # sources/formats.py: the rows in DIR/photos.sqlite
OUTLINER_VERSION = "ea8c5836baecc884"  # sources/outline.py, llm/naming.py: masks from boxes, named regions
FAILED_BOXES_VERSION = "2"  # sources/outline.py: what becomes of an image with a box that SAM does not fill
COMPOSER_VERSION = "4fbf4385083d96ff"  # composer/: questions from the phrase bank
LLM_WRITER_VERSION = "1f0c7b31b5f7cba1"  # checks.py, llm/: questions by a language model
