// Copy the text beside a button. Without this script, or where the clipboard is refused, the text is selected to be copied.
for (const button of document.querySelectorAll(".copy button")) {
  button.addEventListener("click", () => {
    const text = button.nextElementSibling;
    text.select();
    button.textContent = document.execCommand("copy") ? "copied" : "press Ctrl+C";
  });
}
