// What scrolls (wide tables, long lines of code) can be reached by keyboard; each block of code has a
// landmark of its own.
const complete = () => {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap")) wrap.tabIndex = 0;
  for (const code of document.querySelectorAll("pre > code")) {
    const wide = code.scrollWidth > code.clientWidth || code.scrollHeight > code.clientHeight;
    if (wide !== code.hasAttribute("tabindex")) code.toggleAttribute("tabindex", wide);
    if (wide && code.tabIndex !== 0) code.tabIndex = 0;
  }
  document.querySelectorAll(".md-code__nav").forEach((nav, place) => {
    const label = `Code block ${place + 1}`;
    if (nav.getAttribute("aria-label") !== label) nav.setAttribute("aria-label", label);
  });
};
document.addEventListener("DOMContentLoaded", () => {
  complete();
  new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
  addEventListener("resize", complete);
});
