"""The parts of the chat page that `app.py` opens. Nothing else in `assistant` imports them.

session.py   what one visitor has open, and what can be done with it (hand.py: masks by hand); knows nothing of Gradio
work.py      the one worker: reports while it works, and stops when told to
words.py     what the page says, as HTML in which nothing typed has power
canvas.py    the picture with its masks (canvas.js, page.css): what the browser is sent, and what it sends

layout.py    which panel stands where
ui.py        the components by name, and what handlers return
photos.py    dropping and opening photos          chat.py    questions and replies
past.py      earlier conversations                *_tab.py   a tab each: answer, hand, everything, classes, like, save

api.py       the same actions for programs, with typed arguments and RLE masks
"""
