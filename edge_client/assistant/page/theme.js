// Runs before the first paint, so that no light page flashes in the dark. Without a choice the system's holds.
(() => {
  try {
    const chosen = localStorage.getItem("outrider.theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch {
    // storage may be forbidden; then the system's choice holds
  }
})();
