// Runs once the page is loaded. Gradio's list of examples says "list" of a group of buttons, and its pictures
// are called by their files' names: both are put right whenever the list is drawn.
() => {
  const name = () => {
    for (const examples of document.querySelectorAll("#chat .examples")) {
      if (examples.getAttribute("role") === "list") examples.setAttribute("role", "group");
      for (const image of examples.querySelectorAll("img")) {
        const plain = image.alt.replace(/^Example:\s*/i, "").replace(/\.\w+$/, "").replaceAll("_", " ");
        if (image.alt !== plain) image.alt = plain;
      }
    }
  };
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
