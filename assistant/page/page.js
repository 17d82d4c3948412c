// Runs once the page is loaded. Gradio's list of examples says "list" of a group of buttons, its pictures are called
// by their files' names, and a bubble's label holds the HTML of its text: all are put right whenever they are drawn.
() => {
  const name = () => {
    for (const examples of document.querySelectorAll("#chat .examples")) {
      if (examples.getAttribute("role") === "list") examples.setAttribute("role", "group");
      for (const image of examples.querySelectorAll("img")) {
        const plain = image.alt.replace(/^Example:\s*/i, "").replace(/\.\w+$/, "").replaceAll("_", " ");
        if (image.alt !== plain) image.alt = plain;
      }
    }
    for (const bubble of document.querySelectorAll("#chat [data-testid=bot], #chat [data-testid=user]")) {
      if (bubble.ariaLabel) bubble.ariaLabel = null; // a screen reader reads the text itself
    }
  };
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}
