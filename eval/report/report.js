// What the report adds for readers with scripts: a button for light and dark, and tables sorted by their heads.
// Without it everything can be read and opened all the same.
"use strict";

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : dark.matches);

function remember(theme) {
  try { localStorage.setItem("ssl-kd-theme", theme); } catch { /* a file's storage may be closed: then until it is reloaded */ }
}

function remembered() {
  try { return localStorage.getItem("ssl-kd-theme"); } catch { return null; }
}

function addThemeButton() {
  const button = document.createElement("button");
  button.id = "theme";
  button.type = "button";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    remember(root.style.colorScheme);
    show();
  });
  dark.addEventListener("change", show);
  const theme = remembered();
  if (theme === "light" || theme === "dark") root.style.colorScheme = theme;
  show();
  document.querySelector("header").append(button);
}

// "94.3 ±1.9", "2.8 M", "1,024": the number in front, times its unit; NaN for words.
function amount(text) {
  const found = /^[<>]?\s*(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([kMG]?)(?![a-zA-Z])/.exec(text.trim());
  if (!found) return NaN;
  return Number(found[1].replaceAll(",", "")) * { "": 1, k: 1e3, M: 1e6, G: 1e9 }[found[2]];
}

function compare(a, b) {
  const x = amount(a), y = amount(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(table, column, head) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const text = (row) => row.cells[column].textContent.trim();
  rows.sort((a, b) => {
    if (!text(a) || !text(b)) return (text(a) ? 0 : 1) - (text(b) ? 0 : 1); // empty cells stay last
    return falling ? compare(text(b), text(a)) : compare(text(a), text(b));
  });
  for (const row of rows) row.classList.remove("new"); // the rules between tasks would stand anywhere
  table.tBodies[0].append(...rows);
}

function addSortButtons(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.textContent.trim()) return; // a button without a name says nothing
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  });
}

addThemeButton();
document.querySelectorAll("table").forEach(addSortButtons);
