"""The parts of the chat page that `app.py` opens. Nothing else in `assistant` imports them.

session.py   what one visitor has open, and what can be done with it; knows nothing of Gradio
work.py      the one worker: reports while it works, and stops when told to
words.py     answers as HTML in which nothing typed has power
canvas.py    the picture with its masks (canvas.js, page.css): what the browser is sent, and what it sends
layout.py    the components, and which action each event is
api.py       the same actions for programs, with typed arguments and RLE masks
"""
