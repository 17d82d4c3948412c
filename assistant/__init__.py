"""maskpick: ask a picture in everyday words.

from assistant import Assistant
scene = Assistant.from_preset("pocket").open("photo.jpg")
print(scene.ask("what keeps the rain off?").text)
"""


def __getattr__(name: str):  # torch is loaded when it is needed, so that every --help is instant
    if name in ("Assistant", "Scene"):
        from assistant import scene

        return getattr(scene, name)
    raise AttributeError(name)
