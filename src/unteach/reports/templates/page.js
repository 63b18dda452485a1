for (const bar of document.querySelectorAll(".tools")) {
  const section = bar.closest("section");
  const button = document.createElement("button");
  let open = false;
  const label = () => (button.textContent = open ? "Close all" : "Open all");
  button.type = "button";
  button.addEventListener("click", () => {
    open = !open;
    for (const part of section.querySelectorAll("details")) part.open = open;
    label();
  });
  label();
  bar.append(button);
}
