// What scrolls sideways can be scrolled by keyboard.
window.addEventListener("load", () => {
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((part) => { part.tabIndex = 0; });
});
