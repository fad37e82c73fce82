window.addEventListener("load", () => {
  // What scrolls sideways can be scrolled by keyboard.
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((part) => { part.tabIndex = 0; });
  // The theme's search is a dialog without a name.
  document.querySelectorAll("[role=dialog]:not([aria-label])").forEach((part) => part.setAttribute("aria-label", "Search"));
  // Each landmark has a name of its own: the theme gives several the same, or none.
  const seen = {};
  document.querySelectorAll("nav").forEach((nav) => {
    const label = document.getElementById(nav.getAttribute("aria-labelledby") || "");
    const name = nav.getAttribute("aria-label") || (label && label.textContent.trim()) || (nav.matches(".md-code__nav") ? "Code" : "Pages");
    seen[name] = (seen[name] || 0) + 1;
    nav.removeAttribute("aria-labelledby");
    nav.setAttribute("aria-label", seen[name] > 1 ? `${name} ${seen[name]}` : name);
  });
});
