// Before anything is drawn: the theme that the reader chose, and that scripts run.
(function () {
  var root = document.documentElement;
  root.classList.add("js");
  try {
    var chosen = localStorage.getItem("pinstorm-theme");
    if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  } catch (refused) { /* a page from disk may have no storage */ }
})();
