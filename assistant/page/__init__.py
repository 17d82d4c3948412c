"""The chat page that `app.py` opens. Nothing else in `assistant` imports it.

layout.py                 which panel stands where
components.py             the components of all panels, by name
handlers.py               the page as its handlers see it, and what they return

photos.py                 dropping and opening photos, starting over
chat.py                   questions and replies
suggestions.py            questions to begin with
earlier_conversations.py  earlier conversations: reopening them, and their text in the browser
thumbnails.py             the photos of a conversation
*_tab.py                  a tab each: answer, by hand, everything, classes, like, save

session.py                what one visitor has open, and what can be done with it; no Gradio in it
question.py               a question of the conversation
manual_prompts.py         masks that are made by hand
example_search.py         what is like an example, in other photos
saved_conversation.py     a session as a file's contents, and back
worker.py                 the thread in which models compute

wording.py                what the page says, as HTML in which nothing typed has power
canvas.py                 the photo with its masks, as the browser is sent it (canvas.js, page.css)
canvas_prompts.py         what the browser says is marked on it
uploads.py                the files that visitors and programs send
examples.py               the photos to begin with

api.py                    the same actions for programs, with typed arguments and RLE masks
"""
