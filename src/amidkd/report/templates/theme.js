/* Before the page is drawn: the theme that the reader chose on another visit. Without one, the system decides. */
try {
  const kept = localStorage.getItem("amidkd-theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
} catch { /* A browser without storage follows the system. */ }
